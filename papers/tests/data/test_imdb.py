"""IMDb: tables and archive give the same numbers, only training words are known, nothing is read twice."""

import csv
import gzip
import hashlib
import io
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from flatwise.study.tasks.classification import DataError
from flatwise_papers.data import imdb
from flatwise_papers.data.imdb import encode, load_imdb, number_words, read_archive, read_table, split_words

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_reviews = pytest.mark.skipif(
    not (SHARED / "imdb").is_dir(), reason="no IMDb in ../shared/data beside the checkout"
)
PER_CLASS = 6


def reviews(split):
    """Rows (id, rating, label, text) in a wrong order, as the archive may have them."""
    rows = []
    for label, word, rating in ((1, "fine", 8), (0, "bad", 2)):
        for number in reversed(range(PER_CLASS)):
            rows.append((number, rating, label, f"A {word} film,<br /><br />it's {split} number{number}\nof “Zoë”"))
    return rows


def table(rows):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "rating", "label", "text"])
    writer.writerows(rows)
    return gzip.compress(text.getvalue().encode("utf-8"))


def archive(splits):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:

        def add(name, text):
            data = text.encode("utf-8")
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        add("aclImdb/README", "not a review")
        add("aclImdb/train/unsup/0_0.txt", "unlabelled, so not a review of ours")
        add("aclImdb/train/urls_pos.txt", "http://example.org")
        for split, rows in splits.items():
            for number, rating, label, text in rows:
                add(f"aclImdb/{split}/{'pos' if label else 'neg'}/{number}_{rating}.txt", text)
    return content.getvalue()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A made data set of 12 + 12 reviews, 4 of them for validation, and a cache of its own. Gives a folder's maker."""
    monkeypatch.delenv("FLATWISE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(imdb, "REVIEWS_PER_CLASS", PER_CLASS)
    monkeypatch.setattr(imdb, "VALIDATION_SIZE", 4)
    splits = {split: reviews(split) for split in ("train", "test")}
    contents = {f"{split}.csv.gz": table(rows) for split, rows in splits.items()}
    contents["aclImdb_v1.tar.gz"] = archive(splits)

    def known(file):
        return replace(file, sha256=hashlib.sha256(contents[file.name]).hexdigest(), mirrors=())

    monkeypatch.setattr(imdb, "TABLES", {split: known(file) for split, file in imdb.TABLES.items()})
    monkeypatch.setattr(imdb, "ARCHIVE", known(imdb.ARCHIVE))

    def folder(name, *files, inner="imdb"):
        place = tmp_path / name / inner
        place.mkdir(parents=True)
        for file in files:
            (place / file).write_bytes(contents[file])
        return tmp_path / name

    return folder


def tensors(data):
    return [data.train_x, data.train_y, data.val_x, data.val_y, data.test_x, data.test_y]


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't <br />stop!", ["don't", "stop"]),
        ("one<br />two<br /><br />three", ["one", "two", "three"]),
        ("'quoted' rock'n'roll, 10/10", ["quoted", "rock'n'roll", "10", "10"]),
        ("Zoë's café…", ["zoë's", "café"]),
        ("<br /> ...", []),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


def test_most_frequent_words_first_then_the_alphabet(monkeypatch):
    assert number_words(["b a c", "c b", "c d"]) == {"c": 2, "b": 3, "a": 4, "d": 5}
    monkeypatch.setattr(imdb, "VOCABULARY_SIZE", 4)
    assert number_words(["b a c", "c b", "c d"]) == {"c": 2, "b": 3}


def test_the_last_words_are_kept_and_short_texts_padded_in_front(monkeypatch):
    monkeypatch.setattr(imdb, "LENGTH", 3)
    rows = encode(["a b c d e", "c", "", "x e x d"], {"c": 2, "d": 3, "e": 4})
    assert rows.tolist() == [[2, 3, 4], [0, 0, 2], [0, 0, 0], [4, 1, 3]]
    assert rows.dtype == np.int16


# Files


def test_table_and_archive_are_the_same_reviews():
    splits = {split: reviews(split) for split in ("train", "test")}
    train, test = read_archive(archive(splits))
    assert train == read_table(table(splits["train"]))
    assert test == read_table(table(splits["test"]))
    assert [(r.label, r.id) for r in train] == [(label, n) for label in (0, 1) for n in range(PER_CLASS)]
    assert train[0].text == "A bad film,<br /><br />it's train number0\nof “Zoë”"


def test_loading(small):
    data = load_imdb(small("tables", "train.csv.gz", "test.csv.gz"))
    shapes = [tuple(t.shape) for t in tensors(data)]
    assert shapes == [(8, 80), (8,), (4, 80), (4,), (12, 80), (12,)]
    assert all(t.dtype == torch.int64 for t in tensors(data))
    assert data.classes == 2
    assert data.test_y.tolist() == [0] * 6 + [1] * 6

    order = np.random.RandomState(0).permutation(12)
    rows = read_table(table(reviews("train")))
    train = [rows[i] for i in sorted(order[4:])]
    val = [rows[i] for i in sorted(order[:4])]
    assert data.train_y.tolist() == [r.label for r in train]
    assert data.val_y.tolist() == [r.label for r in val]
    vocabulary = number_words(r.text for r in train)
    assert torch.equal(data.train_x, torch.from_numpy(encode([r.text for r in train], vocabulary).astype(np.int64)))
    assert torch.equal(data.val_x, torch.from_numpy(encode([r.text for r in val], vocabulary).astype(np.int64)))


def test_words_of_validation_and_test_alone_are_unknown(small):
    data = load_imdb(small("tables", "train.csv.gz", "test.csv.gz"))
    assert (data.train_x != imdb.UNKNOWN).all()
    # The test reviews' "test", and numbers of validation reviews that no training review has.
    assert ((data.test_x == imdb.UNKNOWN).sum(dim=1) >= 1).all()


def test_archive_gives_the_same_data(small, tmp_path):
    first = load_imdb(small("tables", "train.csv.gz", "test.csv.gz"))
    second = load_imdb(small("archive", "aclImdb_v1.tar.gz", inner=""))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(second), strict=True))
    assert len(list((tmp_path / "cache/flatwise/decoded").iterdir())) == 2  # one for each source


def test_the_environment_names_the_folder_too(small, monkeypatch):
    monkeypatch.setenv("FLATWISE_DATA", str(small("tables", "train.csv.gz", "test.csv.gz")))
    assert len(load_imdb().train_x) == 8


def test_texts_are_read_once(small, monkeypatch):
    folder = small("tables", "train.csv.gz", "test.csv.gz")
    first = load_imdb(folder)
    monkeypatch.setattr(imdb, "read_table", lambda content: pytest.fail("read again"))
    assert all(torch.equal(a, b) for a, b in zip(tensors(first), tensors(load_imdb(folder)), strict=True))
    monkeypatch.setattr(imdb, "READING", "another")
    with pytest.raises(pytest.fail.Exception):
        load_imdb(folder)


def test_missing_files_name_what_to_put_where(small):
    with pytest.raises(DataError, match=r"'aclImdb_v1\.tar\.gz' is not in the data folder .*/imdb/aclImdb_v1"):
        load_imdb(small("empty"))
    with pytest.raises(DataError, match=r"'test\.csv\.gz' is not in the data folder"):
        load_imdb(small("half", "train.csv.gz"))


def test_corrupt_file(small):
    folder = small("tables", "train.csv.gz", "test.csv.gz")
    (folder / "imdb/test.csv.gz").write_bytes(b"no")
    with pytest.raises(DataError, match="is corrupt"):
        load_imdb(folder)


def test_a_split_that_is_not_whole_is_refused(small, monkeypatch):
    monkeypatch.setattr(imdb, "REVIEWS_PER_CLASS", PER_CLASS + 1)
    with pytest.raises(DataError, match="training split must have 7 reviews of each class"):
        load_imdb(small("tables", "train.csv.gz", "test.csv.gz"))


# The real reviews


@needs_reviews
def test_real_reviews():
    content = (SHARED / "imdb/train.csv.gz").read_bytes()
    assert hashlib.sha256(content).hexdigest() == imdb.TABLES["train"].sha256
    rows = read_table(content)
    assert Counter(r.label for r in rows) == {0: 12_500, 1: 12_500}
    assert [r.id for r in rows[:12_500]] == [r.id for r in rows[12_500:]] == list(range(12_500))
    assert len(rows) - len({r.text for r in rows}) == 96
    train, val = imdb.split_indices()
    assert (len(train), len(val)) == (20_000, 5_000)
    assert sorted([*train, *val]) == list(range(25_000))
    assert val[:3].tolist() == [4, 7, 12]
    texts = {rows[i].text for i in train}
    assert sum(rows[i].text in texts for i in val) == 33
    vocabulary = number_words(r.text for r in rows[::100])
    assert list(vocabulary)[:3] == ["the", "a", "and"]
    assert (encode([rows[0].text], vocabulary) > imdb.UNKNOWN).any()


@needs_reviews
def test_real_test_split_checksum():
    content = (SHARED / "imdb/test.csv.gz").read_bytes()
    assert hashlib.sha256(content).hexdigest() == imdb.TABLES["test"].sha256

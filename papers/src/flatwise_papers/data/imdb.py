"""IMDb film reviews (Maas et al. 2011), positive or negative, as sequences of word numbers."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from flatwise.study.tasks.classification import Classification, DataError
from flatwise_papers.data.files import ENVIRONMENT_VARIABLE, DataFile, cached_pixels, read_file

FOLDERS = ("imdb", "")
ARCHIVE = DataFile(
    name="aclImdb_v1.tar.gz",
    sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    folders=FOLDERS,
    mirrors=("https://ai.stanford.edu/~amaas/data/sentiment/",),
)
# The same reviews as tables, with the columns id, rating, label and text. Published nowhere; much quicker to read.
TABLES = {
    split: DataFile(name=f"{split}.csv.gz", sha256=sha256, folders=FOLDERS, mirrors=())
    for split, sha256 in {
        "train": "3a3581bc93515b3e503677e7d82c333057c6ac58ea7cad85951e2ff1055e0ead",
        "test": "4f53e27f75e869d1111dc2a34f1e6811b0efd6fd1159dbf2a81c3bf28689cf73",
    }.items()
}
REVIEWS_PER_CLASS = 12_500  # in each of the two published splits
SPLIT_SEED = 0
VALIDATION_SIZE = 5_000

VOCABULARY_SIZE = 20_000
LENGTH = 80
PADDING, UNKNOWN = 0, 1
WORD = re.compile(r"\w+(?:'\w+)*")
READING = "1"  # a name for how texts become numbers: a new one for every change, so that no old numbers are reused

Numbers = npt.NDArray[np.int16]


class Review(NamedTuple):
    """A review of a published split. Sorted, reviews are in the order of the data set: negative first, then by id.

    Attributes:
        label: 1 if it is positive (7 to 10 stars of 10), 0 if negative (1 to 4).
        id: its number among those of its split and label.
        text: as published, with ``<br />`` tags.
    """

    label: int
    id: int
    text: str


def load_imdb(data_dir: str | Path | None = None) -> Classification:
    """Return the reviews as numbers of words: 20,000 training, 5,000 validation and 25,000 test reviews.

    The test set is the published one. The validation set is drawn from the 25,000 training reviews at random, always
    the same: see :func:`split_indices`. The set has repeated texts, which are left in: 96 in the published training
    split (33 validation reviews are training reviews too), 199 in the test split; 123 texts are in both.

    An input is the last 80 words of a review, int64, shape ``(n, 80)``, shorter ones padded in front by 0, as in
    Keras's example ``imdb_lstm``. Words are numbered by :func:`number_words` over the 20,000 training reviews alone; 1
    stands for all others. The numbers are kept in flatwise's cache, so the texts are read once.

    Args:
        data_dir: folder with ``train.csv.gz`` and ``test.csv.gz``, or else the published ``aclImdb_v1.tar.gz``, in
            ``imdb`` or the folder itself. ``None``: the environment variable ``FLATWISE_DATA``, else the per-user
            cache, which downloads the published archive.

    Raises:
        DataError: a file is missing, corrupt, unreadable or cannot be downloaded.
    """
    files = list(TABLES.values()) if _has_tables(data_dir) else [ARCHIVE]
    contents = [read_file(file, data_dir) for file in files]
    splits = 2 * REVIEWS_PER_CLASS

    def make() -> npt.NDArray[np.uint8]:
        train, test = map(read_table, contents) if len(contents) == 2 else read_archive(contents[0])
        for name, reviews in (("training", train), ("test", test)):
            if [review.label for review in reviews] != labels.tolist():
                raise DataError(f"IMDb's {name} split must have {REVIEWS_PER_CLASS} reviews of each class")
        vocabulary = number_words(train[index].text for index in split_indices()[0])
        return encode([review.text for review in (*train, *test)], vocabulary).view(np.uint8)

    labels = np.repeat(np.array([0, 1]), REVIEWS_PER_CLASS)
    source = " ".join([READING, *(file.sha256 for file in files)])
    key = f"imdb-{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    numbers = cached_pixels(key, (2 * splits, 2 * LENGTH), make).view(np.int16)

    def inputs(rows: Numbers) -> torch.Tensor:
        return torch.from_numpy(rows.astype(np.int64))

    train, val = split_indices()
    return Classification(
        train_x=inputs(numbers[train]),
        train_y=torch.from_numpy(labels[train]),
        val_x=inputs(numbers[val]),
        val_y=torch.from_numpy(labels[val]),
        test_x=inputs(numbers[splits:]),
        test_y=torch.from_numpy(labels.copy()),
        classes=2,
    )


def split_indices() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices into the 25,000 published training reviews: 20,000 for training and 5,000 for validation, each ascending.

    Validation is the first 5,000 of ``numpy.random.RandomState(0).permutation(25000)``, whose numbers are frozen.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(2 * REVIEWS_PER_CLASS)
    return np.sort(order[VALIDATION_SIZE:]), np.sort(order[:VALIDATION_SIZE])


def split_words(text: str) -> list[str]:
    """Return the words of a text: in lower case, without ``<br />``; letters and digits, with apostrophes inside.

    ``"Don't <br />stop!"`` has the words ``don't`` and ``stop``.
    """
    return WORD.findall(text.lower().replace("<br />", " "))


def number_words(texts: Iterable[str]) -> dict[str, int]:
    """Number the most frequent words from 2 on, the most frequent first; of equally frequent ones the alphabet decides.

    0 and 1 are kept for padding and unknown words, so ``VOCABULARY_SIZE - 2`` words get a number.
    """
    counts = Counter(word for text in texts for word in split_words(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: number for number, word in enumerate(ranked[: VOCABULARY_SIZE - 2], start=UNKNOWN + 1)}


def encode(texts: Sequence[str], vocabulary: Mapping[str, int]) -> Numbers:
    """Return the numbers of the last ``LENGTH`` words of each text, int16, shape ``(n, LENGTH)``, padded in front."""
    numbers = np.full((len(texts), LENGTH), PADDING, dtype=np.int16)
    for row, text in zip(numbers, texts, strict=True):
        words = split_words(text)[-LENGTH:]
        if words:
            row[-len(words) :] = [vocabulary.get(word, UNKNOWN) for word in words]
    return numbers


def read_table(content: bytes) -> list[Review]:
    """Return the reviews of a gzipped table, sorted."""
    with io.StringIO(gzip.decompress(content).decode("utf-8"), newline="") as lines:
        return sorted(Review(int(row["label"]), int(row["id"]), row["text"]) for row in csv.DictReader(lines))


def read_archive(content: bytes) -> tuple[list[Review], list[Review]]:
    """Return the training and the test reviews of the published archive, each sorted."""
    splits: dict[str, list[Review]] = {"train": [], "test": []}
    name = re.compile(r"aclImdb/(train|test)/(neg|pos)/(\d+)_\d+\.txt")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for member in archive:
            found = name.fullmatch(member.name)
            file = archive.extractfile(member) if found else None
            if found and file:
                split, label, number = found.groups()
                splits[split].append(Review(int(label == "pos"), int(number), file.read().decode("utf-8")))
    return sorted(splits["train"]), sorted(splits["test"])


def _has_tables(data_dir: str | Path | None) -> bool:
    """Whether a folder was given that has the tables."""
    given = data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE)
    if not given:
        return False
    return any((Path(given).expanduser() / inner / TABLES["train"].name).is_file() for inner in FOLDERS)

"""CIFAR's archives and its JPEG copy are read as published, split the same way always, and cached outside the data."""

import hashlib
import io
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pooch
import pytest
import torch

from flatwise.study.tasks.classification import DataError
from flatwise_papers.data import images as cifar
from flatwise_papers.data.files import DataFile, cached_pixels, read_file
from flatwise_papers.data.images import channel_statistics, images_of, load_cifar10, load_cifar10_jpeg, load_cifar100
from flatwise_papers.data.mnist import load_mnist, load_mnist_images

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
needs_jpegs = pytest.mark.skipif(
    not (SHARED / "cifar10-jpeg").is_dir(), reason="no CIFAR-10 (JPEG q75) in ../shared/data beside the checkout"
)
needs_mnist = pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no MNIST in ../shared/data")


@pytest.fixture(autouse=True)
def small_and_alone(monkeypatch, tmp_path):
    """A hundredth of the images; neither the machine's FLATWISE_DATA nor its cache decide a test."""
    monkeypatch.delenv("FLATWISE_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setattr(cifar, "TRAIN_SIZE", 500)
    monkeypatch.setattr(cifar, "TEST_SIZE", 100)
    monkeypatch.setattr(cifar, "VALIDATION_SIZE", 50)
    monkeypatch.setattr(cifar, "SHA256", dict(cifar.SHA256))


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: byte strings as such, and numpy under its old name."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    def save_array(self, array):
        def reduced(module, name, *arguments):
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
            self.save(arguments)
            self.write(pickle.REDUCE)

        self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n" + pickle.MARK)
        self.write(pickle.GLOBAL + b"numpy\nndarray\n")
        self.save((0,))
        self.save(b"b")
        self.write(pickle.TUPLE + pickle.REDUCE + pickle.MARK)
        self.save(1)
        self.save(array.shape)
        reduced("numpy", "dtype", b"u1", 0, 1)
        self.save((3, b"|", None, None, None, -1, -1, 0))
        self.write(pickle.BUILD)
        self.save(False)
        self.save(array.tobytes())
        self.write(pickle.TUPLE + pickle.BUILD)

    dispatch[bytes] = save_bytes
    dispatch[np.ndarray] = save_array


def python2(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue()


def python3(content):
    return pickle.dumps(content, protocol=3)


def write_archive(folder, name, members, monkeypatch):
    """Writes a tar.gz archive of the members and tells flatwise its checksum."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    write_bytes(folder, name, file.getvalue(), monkeypatch)


def write_bytes(folder, name, content, monkeypatch):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    monkeypatch.setitem(cifar.SHA256, name, hashlib.sha256(content).hexdigest())


RANDOM = np.random.RandomState(0)
TRAIN_X, TEST_X = (RANDOM.randint(0, 256, size=(n, 3072), dtype=np.uint8) for n in (500, 100))
TRAIN_Y, TEST_Y = (RANDOM.permutation(np.arange(n) % 10) for n in (500, 100))


def cifar10_members(dump=python2, **changes):
    members = {
        f"cifar-10-batches-py/data_batch_{n + 1}": dump(
            {b"data": TRAIN_X[100 * n : 100 * n + 100], b"labels": TRAIN_Y[100 * n : 100 * n + 100].tolist()}
        )
        for n in range(5)
    }
    members["cifar-10-batches-py/test_batch"] = dump({b"data": TEST_X, b"labels": TEST_Y.tolist()})
    members["cifar-10-batches-py/readme.html"] = b"no pickle"
    return {**members, **{f"cifar-10-batches-py/{name}": content for name, content in changes.items()}}


# The original archives


@pytest.mark.parametrize("dump", [python2, python3])
@pytest.mark.parametrize("inner", ["", "cifar"])
def test_cifar10_images_and_labels_stay_together(tmp_path, monkeypatch, dump, inner):
    write_archive(tmp_path / "data" / inner, "cifar-10-python.tar.gz", cifar10_members(dump), monkeypatch)
    data = load_cifar10(tmp_path / "data")
    train, val = cifar.split_indices(TRAIN_Y)
    for x, y, images, labels in (
        (data.train_x, data.train_y, TRAIN_X[train], TRAIN_Y[train]),
        (data.val_x, data.val_y, TRAIN_X[val], TRAIN_Y[val]),
        (data.test_x, data.test_y, TEST_X, TEST_Y),
    ):
        assert (x.dtype, y.dtype, x.shape) == (torch.uint8, torch.int64, (len(labels), 3, 32, 32))
        assert np.array_equal(x.numpy().reshape(len(x), -1), images)  # red, green, blue; each row by row
        assert np.array_equal(y.numpy(), labels)
    assert data.classes == 10


def test_cifar100_has_the_fine_labels(tmp_path, monkeypatch):
    labels = [np.arange(n) % 100 for n in (500, 100)]
    parts = {
        name: python2({b"data": x, b"fine_labels": y.tolist(), b"coarse_labels": (y // 5).tolist()})
        for name, x, y in zip(("train", "test"), (TRAIN_X, TEST_X), labels, strict=True)
    }
    members = {f"cifar-100-python/{name}": content for name, content in parts.items()}
    write_archive(tmp_path, "cifar-100-python.tar.gz", members, monkeypatch)
    monkeypatch.setattr(cifar, "VALIDATION_SIZE", 100)  # a fifth: one of the five images of each class
    data = load_cifar100(tmp_path)
    assert data.classes == 100
    assert data.test_y.tolist() == list(range(100))
    assert data.val_y.bincount().tolist() == [1] * 100


def test_archive_without_the_published_checksum_is_not_opened(tmp_path, monkeypatch):
    write_archive(tmp_path, "cifar-10-python.tar.gz", cifar10_members(), monkeypatch)
    path = tmp_path / "cifar-10-python.tar.gz"
    path.write_bytes(path.read_bytes() + b"\0")
    monkeypatch.setattr(tarfile, "open", lambda **_: pytest.fail("opened"))
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz' is corrupt: expected SHA-256"):
        load_cifar10(tmp_path)


def test_missing_archive(tmp_path):
    with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz' is not in the data folder"):
        load_cifar100(tmp_path)


def test_download_addresses_are_the_official_sites():
    assert cifar.MIRRORS == ("https://www.cs.toronto.edu/~kriz/",)


def fail():
    pytest.fail("a pickle ran code")


class Evil:
    def __reduce__(self):
        return (fail, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_batch": python3(Evil())}, r"names \S+fail, which is no part of an array"),
        ({"test_batch": python2({b"data": TEST_X})}, "b'labels'"),
        ({"test_batch": python2({b"data": TEST_X, b"labels": [0] * 99})}, r"labels of shape \(99,\)"),
        ({"test_batch": python2({b"data": TEST_X[:, :-1], b"labels": [0] * 100})}, "cannot reshape"),
        ({"test_batch": python2({b"data": TEST_X, b"labels": [0] * 99 + [10]})}, "labels from 0 to 10"),
        ({"test_batch": python3({b"data": TEST_X.astype(float), b"labels": [0] * 100})}, "float64 images"),
        (
            {"test_batch": python2({b"data": TEST_X, b"labels": [0] * 100})[:-99]},
            "Ran out of input|pickle data was truncated",
        ),
        ({"test_batch": python2([TEST_X])}, "list indices"),
    ],
)
def test_archive_with_other_content(tmp_path, monkeypatch, changes, message):
    write_archive(tmp_path, "cifar-10-python.tar.gz", cifar10_members(**changes), monkeypatch)
    with pytest.raises(
        DataError, match=rf"^'cifar-10-batches-py/test_batch' in .*({message}).*: get the archive again\.$"
    ):
        load_cifar10(tmp_path)


def test_archive_without_a_member(tmp_path, monkeypatch):
    members = cifar10_members()
    del members["cifar-10-batches-py/data_batch_3"]
    write_archive(tmp_path, "cifar-10-python.tar.gz", members, monkeypatch)
    with pytest.raises(DataError, match="has no member 'cifar-10-batches-py/data_batch_3'"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize("cut", [10, -5000])
def test_archive_that_is_cut_off(tmp_path, monkeypatch, cut):
    write_archive(tmp_path, "cifar-10-python.tar.gz", cifar10_members(), monkeypatch)
    content = (tmp_path / "cifar-10-python.tar.gz").read_bytes()
    write_bytes(tmp_path, "cifar-10-python.tar.gz", content[:cut], monkeypatch)
    with pytest.raises(DataError, match=r"is not a whole tar\.gz archive"):
        load_cifar10(tmp_path)


# The split


def test_split_is_balanced_disjoint_complete_and_pinned(monkeypatch):
    monkeypatch.undo()  # the real sizes
    labels = np.arange(50_000) % 10
    train, val = cifar.split_indices(labels)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(50_000))
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10
    # The split is part of what published numbers mean: a change must be seen.
    assert hashlib.sha256(val.astype("<i8").tobytes()).hexdigest().startswith("39010c31f7e19609")


def test_split_does_not_move_the_global_random_state():
    before = np.random.get_state()[1].copy()
    cifar.split_indices(TRAIN_Y)
    assert np.array_equal(np.random.get_state()[1], before)


# CIFAR-10 (JPEG q75)


def jpeg_files(images):
    from PIL import Image

    files = []
    for image in images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75)
        files.append(file.getvalue())
    return files


@pytest.fixture
def jpegs(tmp_path, monkeypatch):
    """The made-up images as the JPEG copy's files; gives the data folder and the files of the training images."""
    kept = {}
    for name, x, y in (("train.npz", TRAIN_X, TRAIN_Y), ("test.npz", TEST_X, TEST_Y)):
        files = kept[name] = jpeg_files(x)
        npz = io.BytesIO()
        offsets = np.cumsum([0, *map(len, files)]).astype(np.uint32)
        np.savez(npz, jpeg=np.frombuffer(b"".join(files), np.uint8), offsets=offsets, labels=y.astype(np.uint8))
        write_bytes(tmp_path / "data" / "cifar10-jpeg", name, npz.getvalue(), monkeypatch)
    return tmp_path / "data", kept["train.npz"]


def decoded(file):
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)


def counting_decoder(monkeypatch):
    calls = []
    decode = cifar.decode_jpegs
    monkeypatch.setattr(cifar, "decode_jpegs", lambda *a: calls.append(1) or decode(*a))
    return calls


def test_jpegs_are_decoded_and_split_as_the_originals(jpegs):
    folder, files = jpegs
    data = load_cifar10_jpeg(folder)
    train, val = cifar.split_indices(TRAIN_Y)
    for rows, x, y in ((train, data.train_x, data.train_y), (val, data.val_x, data.val_y)):
        assert np.array_equal(y.numpy(), TRAIN_Y[rows])
        for position in (0, 17, len(rows) - 1):
            assert np.array_equal(x[position].numpy(), decoded(files[rows[position]]))
    assert data.test_y.tolist() == TEST_Y.tolist()


def test_jpegs_are_decoded_once_and_the_data_folder_is_left_alone(jpegs, monkeypatch, tmp_path):
    folder, _ = jpegs
    calls = counting_decoder(monkeypatch)
    before = sorted(folder.rglob("*"))
    first, second = load_cifar10_jpeg(folder), load_cifar10_jpeg(folder)
    assert len(calls) == 2  # training and test
    for name in ("train_x", "val_x", "test_x"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert sorted(folder.rglob("*")) == before
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(path.stat().st_size for path in kept) == [100 * 3072 + 32, 500 * 3072 + 32]  # and nothing half-made


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "folder"])
def test_damaged_cache_is_made_anew(jpegs, monkeypatch, tmp_path, damage):
    folder, _ = jpegs
    first = load_cifar10_jpeg(folder)
    for path in (tmp_path / "cache" / "flatwise" / "decoded").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.unlink()
        if damage == "folder":  # nothing can be written there
            path.mkdir()
        else:
            path.write_bytes({"flip": content, "cut": content[:-1], "empty": b""}[damage])
    calls = counting_decoder(monkeypatch)
    for expected_calls in (2, 4 if damage == "folder" else 2):
        again = load_cifar10_jpeg(folder)
        assert torch.equal(again.train_x, first.train_x)
        assert torch.equal(again.test_x, first.test_x)
        assert len(calls) == expected_calls
    assert not [p for p in (tmp_path / "cache").rglob("*") if len(p.name) > len(f"cifar10-jpeg-{'0' * 64}")]


def test_cache_that_cannot_be_made(jpegs, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should go")
    assert len(load_cifar10_jpeg(jpegs[0]).train_x) == 450


def test_cached_pixels_are_writable_and_of_their_shape(tmp_path):
    made = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for _ in range(2):
        found = cached_pixels("six", (2, 3), lambda: made)
        assert np.array_equal(found, made)
        assert found.flags.writeable


def test_missing_jpegs_are_not_looked_for_on_the_internet():
    with pytest.raises(DataError, match=r"'train\.npz' is published nowhere .* 'cifar10-jpeg/train\.npz' as data_dir"):
        load_cifar10_jpeg()


def test_corrupt_jpegs(jpegs):
    path = jpegs[0] / "cifar10-jpeg" / "test.npz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test\.npz' is corrupt"):
        load_cifar10_jpeg(jpegs[0])


def test_without_pillow_the_extra_is_named(jpegs, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'flatwise-papers\[images\]'"):
        load_cifar10_jpeg(jpegs[0])


@needs_jpegs
def test_real_jpegs(monkeypatch):
    monkeypatch.undo()
    for name, size, first in (("train.npz", 50_000, [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]), ("test.npz", 10_000, [0] * 10)):
        file = DataFile(name=name, sha256=cifar.SHA256[name], folders=("cifar10-jpeg",), mirrors=())
        with np.load(io.BytesIO(read_file(file, SHARED)), allow_pickle=False) as arrays:
            assert np.bincount(arrays["labels"]).tolist() == [size // 10] * 10
            assert arrays["labels"][:10].tolist() == first  # as in every tutorial; the test images are sorted
            images = cifar.decode_jpegs(arrays["jpeg"], arrays["offsets"][:201])
        assert images.shape == (200, 3, 32, 32)
        # The known statistics, 0.49, 0.48, 0.45 and 0.25, 0.24, 0.26, as near as 200 images come (airplanes in test).
        if name == "train.npz":
            mean, std = channel_statistics(images)
            assert np.allclose(mean.flatten() / 255, [0.49, 0.48, 0.45], atol=0.03)
            assert np.allclose(std.flatten() / 255, [0.25, 0.24, 0.26], atol=0.03)


# Images


def made(sizes=(7, 4, 5), channels=2):
    random = np.random.RandomState(1)
    splits = [
        (random.randint(0, 200 + n, size=(n, channels, 3, 4), dtype=np.uint8), np.arange(n, dtype=np.uint8))
        for n in sizes
    ]
    return images_of(*splits, classes=7), splits


def test_normalisation_uses_the_training_images_alone_channel_by_channel():
    data, splits = made()
    mean, std = splits[0][0].mean(axis=(0, 2, 3)), splits[0][0].std(axis=(0, 2, 3))
    assert np.allclose(data.mean.flatten(), mean)
    assert np.allclose(data.std.flatten(), std)
    for x, (pixels, _) in zip((data.train_x, data.val_x, data.test_x), splits, strict=True):
        assert x.dtype == torch.uint8
        found = data.normalised(x)
        assert found.dtype == torch.float32
        assert np.allclose(found, (pixels - mean[:, None, None]) / std[:, None, None], atol=1e-6)
        assert torch.equal(x, torch.from_numpy(pixels))  # left alone


def test_statistics_of_many_images_are_those_of_numpy():
    pixels = np.random.RandomState(2).randint(0, 256, size=(2500, 1, 5, 3), dtype=np.uint8)
    mean, std = channel_statistics(pixels)
    assert mean.shape == std.shape == (1, 1, 1)
    assert mean.item() == pytest.approx(pixels.mean(), rel=1e-6)
    assert std.item() == pytest.approx(pixels.std(), rel=1e-6)


def test_images_move_to_a_device_whole():
    data, _ = made()
    moved = data.to("meta")
    for name in ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y", "mean", "std"):
        assert getattr(moved, name).device.type == "meta"
        assert getattr(moved, name).shape == getattr(data, name).shape
    assert moved.classes == 7


def test_images_without_test():
    data, _ = made()
    tuning = data.without_test().to("cpu")
    assert tuning.test_x is None
    assert tuning.test_y is None
    assert torch.equal(tuning.train_x, data.train_x)
    assert tuning.subset(train=2, val=1, test=1).test_x is None


def test_subset_takes_images_at_equal_distances():
    data, _ = made()
    fewer = data.subset(train=3, val=4, test=2)
    assert fewer.train_y.tolist() == [0, 2, 4]
    assert fewer.val_y.tolist() == [0, 1, 2, 3]
    assert fewer.test_y.tolist() == [0, 2]
    assert torch.equal(fewer.train_x, data.train_x[[0, 2, 4]])
    assert torch.equal(fewer.mean, data.mean)
    for wrong in ({"train": 8, "val": 1, "test": 1}, {"train": 1, "val": 0, "test": 1}):
        with pytest.raises(ValueError, match="take from 1 to"):
            data.subset(**wrong)


@needs_mnist
def test_mnist_as_images_is_mnist():
    flat, images = load_mnist(SHARED), load_mnist_images(SHARED)
    for split in ("train", "val", "test"):
        x = getattr(images, f"{split}_x")[:500]
        assert x.shape == (500, 1, 28, 28)
        assert torch.allclose(images.normalised(x).flatten(1), getattr(flat, f"{split}_x")[:500], atol=1e-5)
        assert torch.equal(getattr(images, f"{split}_y"), getattr(flat, f"{split}_y"))

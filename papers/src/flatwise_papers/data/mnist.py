"""MNIST from its four original files, read with numpy alone."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flatwise.study.tasks.classification import Classification, DataError, Pixels, normalised
from flatwise_papers.data.files import DataFile, read_file
from flatwise_papers.data.images import Images, images_of

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# torchvision's layout, a folder that holds it, and the files laid down by hand.
FOLDERS = ("MNIST/raw", "mnist/MNIST/raw", "raw", "")
SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
SPLIT_SEED = 0
VALIDATION_SIZE = 10_000


class MnistArrays(NamedTuple):
    """MNIST as published: uint8 images, shape ``(n, 28, 28)``, and uint8 labels, shape ``(n,)``."""

    train_images: Pixels
    train_labels: Pixels
    test_images: Pixels
    test_labels: Pixels


def load_mnist(data_dir: str | Path | None = None) -> Classification:
    """Return MNIST in the split of the LEAP paper: 50,000 training, 10,000 validation and 10,000 test images.

    The test set is the published one. The validation set is drawn from the 60,000 training images at random (not
    stratified), always the same: see :func:`split_indices`. Inputs have 784 features, ``(pixel - mean) / std`` with
    two numbers over all pixels of the 50,000 training images.

    Args:
        data_dir: folder with the four ``.gz`` files, in ``MNIST/raw``, ``mnist/MNIST/raw``, ``raw`` or the folder
            itself. ``None``: the environment variable ``FLATWISE_DATA``, else the per-user cache, which downloads.

    Raises:
        DataError: a file is missing, corrupt, unreadable or cannot be downloaded.
    """
    return normalised(*_splits(data_dir), classes=10)


def load_mnist_images(data_dir: str | Path | None = None) -> Images:
    """Return the MNIST of :func:`load_mnist` as images of one channel, 28×28 pixels; arguments and errors as there."""
    return images_of(*_splits(data_dir), classes=10)


def _splits(data_dir: str | Path | None) -> list[tuple[Pixels, Pixels]]:
    """Images, shape ``(n, 1, 28, 28)``, and labels of the training, validation and test split."""
    raw = read_mnist(data_dir)
    # How the axis is added decides the strides, by these the order in which dropout draws, and so a trial's bits.
    images = raw.train_images[:, None]
    splits = [(images[rows], raw.train_labels[rows]) for rows in split_indices()]
    return [*splits, (raw.test_images[:, None], raw.test_labels)]


def split_indices() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices into the 60,000 training images: 50,000 for training and 10,000 for validation, each ascending.

    Validation is the first 10,000 of ``numpy.random.RandomState(0).permutation(60000)``: numpy has frozen the numbers
    of ``RandomState`` for good, which it promises for no newer generator.
    """
    order = np.random.RandomState(SPLIT_SEED).permutation(60_000)
    return np.sort(order[VALIDATION_SIZE:]), np.sort(order[:VALIDATION_SIZE])


def read_mnist(data_dir: str | Path | None = None) -> MnistArrays:
    """Return MNIST as published; arguments and errors as in :func:`load_mnist`. The arrays are read-only."""

    def read(name: str, shape: tuple[int, ...]) -> Pixels:
        file = DataFile(name=name, sha256=SHA256[name], folders=FOLDERS, mirrors=MIRRORS)
        return parse_idx(read_file(file, data_dir), shape, name)

    return MnistArrays(
        train_images=read("train-images-idx3-ubyte.gz", (60_000, 28, 28)),
        train_labels=read("train-labels-idx1-ubyte.gz", (60_000,)),
        test_images=read("t10k-images-idx3-ubyte.gz", (10_000, 28, 28)),
        test_labels=read("t10k-labels-idx1-ubyte.gz", (10_000,)),
    )


def parse_idx(content: bytes, shape: tuple[int, ...], name: str) -> Pixels:
    """Return the uint8 array in a gzipped idx file.

    The format: two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian 32-bit
    integer, then the values, last dimension fastest.

    Args:
        content: the gzipped file.
        shape: the shape that the file must have.
        name: file name, for messages.

    Raises:
        DataError: not gzip, cut off, another type or shape, or a size that does not fit the shape.
    """
    try:
        raw = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{name}' is not a whole gzip file ({error}): get the file again.") from error
    start = 4 + 4 * len(shape)
    magic = bytes([0, 0, 8, len(shape)])
    if raw[:4] != magic:
        raise DataError(
            f"'{name}' is no idx file of {len(shape)}-dimensional uint8: it starts with '{raw[:4].hex()}', expected "
            f"'{magic.hex()}': get the file again."
        )
    if len(raw) < start:
        raise DataError(f"'{name}' ends inside its header, after {len(raw)} of {start} bytes: get the file again.")
    found = struct.unpack(f">{len(shape)}I", raw[4:start])
    if found != shape:
        raise DataError(f"'{name}' says that its shape is {found}, expected {shape}: get the file again.")
    if len(raw) - start != math.prod(shape):
        raise DataError(
            f"'{name}' holds {len(raw) - start} values, expected {math.prod(shape)} for the shape {shape}: get the "
            "file again."
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)

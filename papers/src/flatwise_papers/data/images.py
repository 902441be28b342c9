"""An image data set as tensors: bytes as published, normalised where they are used."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flatwise.study.tasks.classification import Labels, Pixels


@dataclass(frozen=True, slots=True)
class Images:
    """Images and labels of the training, validation and test split.

    The images stay bytes, a quarter of the memory of floats, and are normalised batch by batch: :meth:`normalised`.

    Attributes:
        train_x, val_x, test_x: images, uint8, shape ``(n, channels, height, width)``.
        train_y, val_y, test_y: class of each image, int64, shape ``(n,)``, in ``0 .. classes - 1``.
        mean, std: of each channel over all pixels of the *training* split, in units of a pixel's value; the standard
            deviation is the population's (divided by n). float32, shape ``(channels, 1, 1)``.
        classes: number of classes.

    ``test_x`` and ``test_y`` are ``None`` in what a tuning trial is handed: see :meth:`without_test`.
    """

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor | None
    test_y: Tensor | None
    mean: Tensor
    std: Tensor
    classes: int

    def to(self, device: torch.device | str) -> Images:
        """Return the same data on ``device``; tensors that are there already are shared, not copied."""
        return replace(
            self,
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            val_x=self.val_x.to(device),
            val_y=self.val_y.to(device),
            test_x=None if self.test_x is None else self.test_x.to(device),
            test_y=None if self.test_y is None else self.test_y.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def without_test(self) -> Images:
        """Return the same data without the test split: what is not there cannot be chosen on."""
        return replace(self, test_x=None, test_y=None)

    def subset(self, train: int, val: int, test: int) -> Images:
        """Return so many images of each split, at equal distances (some test sets are sorted by class).

        ``mean`` and ``std`` stay those of the whole training split.

        Raises:
            ValueError: more images than a split has, or none.
        """
        train_rows, val_rows = _spread(train, len(self.train_x), "train"), _spread(val, len(self.val_x), "val")
        fewer = replace(
            self,
            train_x=self.train_x[train_rows],
            train_y=self.train_y[train_rows],
            val_x=self.val_x[val_rows],
            val_y=self.val_y[val_rows],
        )
        if self.test_x is None or self.test_y is None:
            return fewer
        test_rows = _spread(test, len(self.test_x), "test")
        return replace(fewer, test_x=self.test_x[test_rows], test_y=self.test_y[test_rows])

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
    mean, std = channel_statistics(train[0])
    return Images(
        train_x=_tensor(train[0]),
        train_y=torch.from_numpy(train[1].astype(np.int64)),
        val_x=_tensor(val[0]),
        val_y=torch.from_numpy(val[1].astype(np.int64)),
        test_x=_tensor(test[0]),
        test_y=torch.from_numpy(test[1].astype(np.int64)),
        mean=mean,
        std=std,
        classes=classes,
    )


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


def _tensor(pixels: Pixels) -> Tensor:
    # Arrays read from bytes are read-only, which tensors cannot be.
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())


def _spread(wanted: int, available: int, split: str) -> Tensor:
    if not 1 <= wanted <= available:
        raise ValueError(f"{split} = {wanted}: the split has {available} images; take from 1 to {available}")
    return torch.arange(wanted) * available // wanted

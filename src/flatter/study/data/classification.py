"""A classification data set as tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Classification:
    """Inputs and labels of the training, validation and test split.

    Attributes:
        train_x, val_x, test_x: inputs, shape ``(n, features)``: of images normalised pixels, float32, flattened row
            by row; of texts the numbers of words, int64.
        train_y, val_y, test_y: class of each input, int64, shape ``(n,)``, in ``0 .. classes - 1``.
        classes: number of classes.

    ``test_x`` and ``test_y`` are ``None`` in what a tuning trial is handed: see :meth:`without_test`.
    """

    train_x: torch.Tensor
    train_y: torch.Tensor
    val_x: torch.Tensor
    val_y: torch.Tensor
    test_x: torch.Tensor | None
    test_y: torch.Tensor | None
    classes: int

    def to(self, device: torch.device | str) -> Classification:
        """Return the same data on ``device``; tensors that are there already are shared, not copied."""
        return Classification(
            train_x=self.train_x.to(device),
            train_y=self.train_y.to(device),
            val_x=self.val_x.to(device),
            val_y=self.val_y.to(device),
            test_x=None if self.test_x is None else self.test_x.to(device),
            test_y=None if self.test_y is None else self.test_y.to(device),
            classes=self.classes,
        )

    def without_test(self) -> Classification:
        """Return the same data without the test split: what is not there cannot be chosen on."""
        return replace(self, test_x=None, test_y=None)


def normalised(
    train: tuple[Pixels, Labels], val: tuple[Pixels, Labels], test: tuple[Pixels, Labels], *, classes: int
) -> Classification:
    """Make a :class:`Classification` of images and labels: ``x = (pixel - mean) / std``.

    ``mean`` and ``std`` (the population's, divided by n) are two numbers, taken over all pixels of all images of the
    *training* split. One pair for all pixels, as is usual for MNIST: many pixels are always 0 and have no spread of
    their own to divide by.

    Args:
        train, val, test: images, uint8, shape ``(n, height, width)``, and labels, shape ``(n,)``.
        classes: number of classes.
    """
    # A histogram gives both statistics exactly, from integers, without a float copy of all pixels.
    counts = np.bincount(train[0].reshape(-1), minlength=256)
    values = np.arange(256)
    mean = float((counts * values).sum() / counts.sum())
    std = float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
    table = ((values - mean) / std).astype(np.float32)

    def inputs(pixels: Pixels) -> torch.Tensor:
        return torch.from_numpy(table[pixels.reshape(len(pixels), -1)])

    def targets(labels: Labels) -> torch.Tensor:
        return torch.from_numpy(labels.astype(np.int64))

    return Classification(
        train_x=inputs(train[0]),
        train_y=targets(train[1]),
        val_x=inputs(val[0]),
        val_y=targets(val[1]),
        test_x=inputs(test[0]),
        test_y=targets(test[1]),
        classes=classes,
    )

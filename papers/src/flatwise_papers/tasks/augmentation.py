"""Augmentation of training images, a whole batch at a time, on whatever device they are.

What is drawn is drawn by :class:`Augmentation` on the CPU, so that it is the same on every device. What is done with it
is done by functions without randomness.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flatwise_papers.tasks.image_settings import ImageSettings

PADDING = 4


class Crops(NamedTuple):
    """Where each image is cropped, and whether it is mirrored.

    Attributes:
        top, left: first row and column of the crop in the padded image, int64, shape ``(n,)``, 0 to 8; 4 moves nothing.
        mirrored: bool, shape ``(n,)``.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor


class Box(NamedTuple):
    """Rows ``top`` to ``bottom - 1`` and columns ``left`` to ``right - 1``."""

    top: int
    bottom: int
    left: int
    right: int


class Mixture(NamedTuple):
    """How the images of a batch are mixed with others of it.

    Attributes:
        partner: for each image the position of the other one, int64, shape ``(batch,)``.
        weight: of the image's own loss, 0 to 1; the partner's has the rest.
        box: what is replaced by the partner's pixels (CutMix); ``None``: all pixels are mixed by weight (Mixup).
    """

    partner: Tensor
    weight: float
    box: Box | None


class Augmentation:
    """The random numbers of the augmentation: the same for the same seed, whatever else is random.

    Crops, holes and mixtures have a generator each, so that arms with and without Cutout, say, see the same crops.
    """

    def __init__(self, settings: ImageSettings, seed: int, *, mirror: bool) -> None:
        self.settings = settings
        self.mirror = mirror
        # RandomState: its numbers are frozen for good, which numpy promises for no newer generator.
        self._crops, self._holes, self._mixtures = (
            np.random.RandomState(np.random.MT19937(child)) for child in np.random.SeedSequence(seed).spawn(3)
        )

    def crops(self, images: int) -> Crops:
        """Draw crops for so many images."""
        top, left = torch.from_numpy(self._crops.randint(0, 2 * PADDING + 1, size=(2, images)))
        mirrored = torch.from_numpy(self._crops.random_sample(images) < 0.5) & self.mirror
        return Crops(top, left, mirrored)

    def holes(self, images: int, height: int, width: int) -> Tensor:
        """Draw the row and the column of the centre of a hole for each image: int64, shape ``(2, images)``."""
        return torch.from_numpy(
            np.stack([self._holes.randint(0, height, size=images), self._holes.randint(0, width, size=images)])
        )

    def mixture(self, batch: int, height: int, width: int) -> Mixture | None:
        """Draw how a batch is mixed: ``None`` where it is not."""
        random, mixup, cutmix = self._mixtures, self.settings.mixup, self.settings.cutmix
        if mixup:
            weight = float(random.beta(mixup, mixup))
            return Mixture(torch.from_numpy(random.permutation(batch)), weight, None)
        if not cutmix or random.random_sample() >= self.settings.cutmix_probability:
            return None
        partner = torch.from_numpy(random.permutation(batch))
        side = (1 - random.beta(cutmix, cutmix)) ** 0.5
        box = clipped_box(
            random.randint(height), random.randint(width), int(height * side), int(width * side), height, width
        )
        # The box may reach over the edge: the weight is that of the pixels that were really left.
        replaced = (box.bottom - box.top) * (box.right - box.left)
        return Mixture(partner, 1 - replaced / (height * width), box)


def clipped_box(row: int, column: int, rows: int, columns: int, height: int, width: int) -> Box:
    """Return a box of ``rows`` × ``columns`` pixels around a pixel, as far as it lies in the image."""
    top, left = row - rows // 2, column - columns // 2
    return Box(max(top, 0), min(top + rows, height), max(left, 0), min(left + columns, width))


def crop_windows(images: Tensor) -> Tensor:
    """Return all crops of all images, padded by 4 black pixels on each side, as one view.

    Padding all images once saves padding every batch. The view takes no memory beyond that of the padded images.

    Args:
        images: shape ``(n, channels, height, width)``.

    Returns:
        A tensor of shape ``(n, channels, 9, 9, height, width)``: at ``[i, :, t, l]`` the crop from row t, column l.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, (PADDING,) * 4)
    return padded.unfold(2, height, 1).unfold(3, width, 1)


def cropped(windows: Tensor, images: Tensor, crops: Crops) -> Tensor:
    """Return the images at the positions ``images``, shape ``(batch,)``, cropped and mirrored.

    Args:
        windows: see :func:`crop_windows`.
        images: int64, shape ``(batch,)``.
        crops: of these images.
    """
    x = windows[images, :, crops.top, crops.left]
    return torch.where(crops.mirrored[:, None, None, None], x.flip(3), x)


def cut_out(images: Tensor, centres: Tensor, size: int) -> Tensor:
    """Set a square around a pixel of each image to 0, as far as it lies in the image (Cutout).

    0 is the mean of the training images, if the images are normalised, as in DeVries and Taylor (2017).

    Args:
        images: shape ``(n, channels, height, width)``; changed in place, and returned.
        centres: row and column of each centre, shape ``(2, n)``; a square of even size has one pixel more before it.
        size: side of the square in pixels.
    """

    def inside(centre: Tensor, length: int) -> Tensor:
        offset = torch.arange(length, device=images.device) - (centre[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    rows, columns = inside(centres[0], images.shape[2]), inside(centres[1], images.shape[3])
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


def mix(images: Tensor, mixture: Mixture) -> Tensor:
    """Return the images mixed with their partners: Mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019).

    Args:
        images: shape ``(n, channels, height, width)``; CutMix changes them in place.
        mixture: how; on the images' device.
    """
    partner, weight, box = mixture
    if box is None:
        return torch.lerp(images[partner], images, weight)
    inside = (slice(None), slice(None), slice(box.top, box.bottom), slice(box.left, box.right))
    images[inside] = images[inside][partner]
    return images

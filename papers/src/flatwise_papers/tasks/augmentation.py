"""Settings of image tasks, and the batches of an epoch: shuffled, augmented and normalised on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor
from torch.nn import functional as F

from flatwise.study.task import ClassificationSettings
from flatwise.study.tasks.training import disturb_labels
from flatwise_papers.data.images import Images


class ImageSettings(ClassificationSettings):
    """Settings of an image task.

    Attributes:
        augment: whether every training image is padded by 4 black pixels on each side, cropped to its size at a random
            place, and mirrored with probability 0.5 (not on MNIST, where a mirrored digit is no digit).
        cutout: side of the square hole that is cut into every training image at a random place, in pixels; 0: none.
            RALR's paper has 8 on CIFAR-100.
        mixup: α of the Beta(α, α) distribution of the weights by which pairs of images and their losses are mixed, one
            weight for a batch; 0: none. RALR's paper has 1.
        cutmix: α of the Beta(α, α) distribution of the share of an image that a box from another one leaves, one box
            for a batch; 0: none. RALR's paper has 1. Not together with mixup.
        cutmix_probability: probability in (0, 1] that a batch is mixed by ``cutmix``; default 0.5, as in RALR's paper.
        label_smoothing: in [0, 1): share of the target that is spread evenly over all classes. RALR's paper has 0.1.
        precision: of the forward pass. ``"float32"``; ``"bfloat16"`` or ``"float16"``: mixed precision by autocast,
            with parameters in float32. With ``"float16"`` the loss is scaled, and a step whose gradients are not finite
            is left out: it draws no noise and does not count as a step of the perturbation.
        channels_last: whether images and kernels are stored with the channels last, which some devices are faster with.
    """

    augment: bool = True
    cutout: int = Field(default=0, ge=0)
    mixup: float = Field(default=0.0, ge=0)
    cutmix: float = Field(default=0.0, ge=0)
    cutmix_probability: float = Field(default=0.5, gt=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False

    @field_validator("cutmix")
    @classmethod
    def _one_mixture(cls, cutmix: float, info: ValidationInfo) -> float:
        if cutmix and info.data.get("mixup"):
            raise PydanticCustomError("cutmix", "mixup is on too: set one of the two to 0")
        return cutmix

    @field_validator("cutmix_probability")
    @classmethod
    def _has_cutmix(cls, probability: float, info: ValidationInfo) -> float:
        if probability != cls.model_fields["cutmix_probability"].default and info.data.get("cutmix") == 0:
            raise PydanticCustomError("cutmix", "cutmix is off: set cutmix, as in cutmix = 1")
        return probability


class DropoutImageSettings(ImageSettings):
    """Settings of an image task whose model has dropout.

    Attributes:
        dropout: probability in [0, 1) that a feature is dropped; which features, each model says. 0: none.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)


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


FLATNESS_BATCH = 500


class Batch(NamedTuple):
    """A batch of training images.

    Attributes:
        x: normalised images, float32, shape ``(batch, channels, height, width)``.
        y: their classes, int64, shape ``(batch,)``.
        partner_y: classes of what they are mixed with; ``None`` where they are not mixed.
        weight: of ``y`` in the loss; ``partner_y`` has the rest.
    """

    x: Tensor
    y: Tensor
    partner_y: Tensor | None
    weight: float

    def loss(self, outputs: Tensor, label_smoothing: float) -> Tensor:
        """Return the mean cross-entropy of a model's outputs, shape ``(batch, classes)``, over the batch."""
        loss = F.cross_entropy(outputs, self.y, label_smoothing=label_smoothing)
        if self.partner_y is None:
            return loss
        other = F.cross_entropy(outputs, self.partner_y, label_smoothing=label_smoothing)
        return self.weight * loss + (1 - self.weight) * other


@dataclass
class TrainingBatches:
    """The training images, epoch after epoch, each time in a new order and newly augmented.

    All of an epoch's random numbers but those of the mixtures go to the device at its start, none within a step.

    Attributes:
        data: on the device of the model.
        settings: batch size and augmentation.
        order: generator of the order, of the CPU.
        augmentation: what draws the augmentation.
        label_noise: generator of which labels are wrong, of the CPU.
    """

    data: Images
    settings: ImageSettings
    order: torch.Generator
    augmentation: Augmentation
    label_noise: torch.Generator

    def __post_init__(self) -> None:
        self._windows = crop_windows(self.data.train_x) if self.settings.augment else None

    def epoch(self) -> Iterator[Batch]:
        """Yield every training image once; the last batch holds what is left."""
        data, settings, augmentation = self.data, self.settings, self.augmentation
        images, _, height, width = data.train_x.shape
        device = data.train_x.device
        size = settings.batch_size
        labels = disturb_labels(data.train_y, settings.label_noise, data.classes, self.label_noise)
        rows = torch.randperm(images, generator=self.order).to(device)
        # Each holds one row an image, in the order in which the epoch uses them.
        crops = [part.to(device) for part in augmentation.crops(images)] if settings.augment else []
        holes = augmentation.holes(images, height, width).to(device) if settings.cutout else None
        for start in range(0, images, size):
            here = slice(start, start + size)
            batch = rows[here]
            y = labels[batch]
            if self._windows is None:
                x = data.train_x[batch]
            else:
                x = cropped(self._windows, batch, Crops(*(part[here] for part in crops)))
            x = data.normalised(x)
            if holes is not None:
                x = cut_out(x, holes[:, here], settings.cutout)
            mixture = augmentation.mixture(len(batch), height, width)
            if mixture is None:
                yield Batch(x, y, None, 1.0)
            else:
                mixture = mixture._replace(partner=mixture.partner.to(device))
                yield Batch(mix(x, mixture), y, y[mixture.partner], mixture.weight)


@dataclass
class FlatnessBatches:
    """The training images in the data set's order, 500 at a time, not augmented: the same for every arm and seed.

    Normalised while they are read, since all of them as floats would take much memory.
    """

    data: Images

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and classes."""
        x, y = torch.split(self.data.train_x, FLATNESS_BATCH), torch.split(self.data.train_y, FLATNESS_BATCH)
        for images, classes in zip(x, y, strict=True):
            yield self.data.normalised(images), classes

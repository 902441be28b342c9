"""The batches of an epoch of images: shuffled, augmented and normalised on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from flatwise.study.tasks.training import disturb_labels
from flatwise_papers.data import Images
from flatwise_papers.tasks.augmentation import Augmentation, Crops, crop_windows, cropped, cut_out, mix
from flatwise_papers.tasks.image_settings import ImageSettings

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


class TrainingBatches:
    """The training images, epoch after epoch, each time in a new order and newly augmented.

    All of an epoch's random numbers but those of the mixtures go to the device at its start, none within a step.

    Args:
        data: on the device of the model.
        settings: batch size and augmentation.
        order: generator of the order, of the CPU.
        augmentation: what draws the augmentation.
        label_noise: generator of which labels are wrong, of the CPU.
    """

    def __init__(
        self,
        data: Images,
        settings: ImageSettings,
        order: torch.Generator,
        augmentation: Augmentation,
        label_noise: torch.Generator,
    ) -> None:
        self.data = data
        self.settings = settings
        self.order = order
        self.augmentation = augmentation
        self.label_noise = label_noise
        self._windows = crop_windows(data.train_x) if settings.augment else None

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


class FlatnessBatches:
    """The training images in the data set's order, 500 at a time, not augmented: the same for every arm and seed.

    Normalised while they are read, since all of them as floats would take much memory.
    """

    def __init__(self, data: Images) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and classes."""
        x, y = torch.split(self.data.train_x, FLATNESS_BATCH), torch.split(self.data.train_y, FLATNESS_BATCH)
        for images, classes in zip(x, y, strict=True):
            yield self.data.normalised(images), classes

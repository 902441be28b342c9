"""The training function that all image tasks share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flatwise.study.tasks.schedules import attach
from flatwise.study.tasks.training import build_optimizer, find_device, initialized, now
from flatwise_papers.data import Images
from flatwise_papers.tasks.augmentation import Augmentation
from flatwise_papers.tasks.image_batches import FlatnessBatches, TrainingBatches
from flatwise_papers.tasks.image_models import build_image_model
from flatwise_papers.tasks.image_settings import DropoutImageSettings, ImageSettings

if TYPE_CHECKING:
    from flatwise.study.trial import Trial

EVALUATION_BATCH = 1000


def train_images(trial: Trial, settings: ImageSettings, data: Images, *, model: str, mirror: bool = True) -> None:
    """Train a network for images with cross-entropy and report every epoch to the trial.

    The trial's seed decides the initial weights, the order of the data, the augmentation, the masks of dropout and
    which labels are wrong, and nothing else does. Each has a generator of its own, so settings that change one leave
    the others as they are, and the global random state is as it was. All but the masks are drawn on the CPU, so they
    are the same on every device. Every epoch visits each training image once; the last, smaller batch is kept, so an
    epoch has ``ceil(n / batch_size)`` steps.

    Reported per epoch: ``train_loss``, the mean over the images of the loss at the step that used them (augmented,
    smoothed and mixed as they are trained on); ``val_error`` and, where the data have a test split, ``test_error``
    after the epoch, in percent, of the images as they are, with the running statistics of batch normalization, in the
    precision of the training, NaN when an output of the model is not finite; ``seconds``, the time for training alone,
    evaluation excluded. The flatness, where it is asked for, is that of the cross-entropy alone in float32, on the
    first training images as they are.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train; a model with dropout needs :class:`DropoutImageSettings`.
        data: what to train on, on any device.
        model: name of the network, a key of :data:`flatwise_papers.tasks.image_models.IMAGE_MODELS`.
        mirror: whether augmented images may be mirrored.

    Raises:
        SettingsError: the settings ask for a device that is not there.
    """
    device = find_device(settings)
    data = data.to(device)
    seeds = (int(seed) for seed in np.random.SeedSequence(trial.seed).generate_state(5, np.uint64))
    init_seed, order_seed, augmentation_seed, dropout_seed, label_seed = seeds
    dropout = settings.dropout if isinstance(settings, DropoutImageSettings) else 0.0
    masks = torch.Generator(device).manual_seed(dropout_seed)
    network = initialized(
        lambda: build_image_model(model, data.classes, dropout=dropout, generator=masks), init_seed
    ).to(device)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    batches = TrainingBatches(
        data,
        settings,
        order=torch.Generator().manual_seed(order_seed),
        augmentation=Augmentation(settings, augmentation_seed, mirror=mirror),
        label_noise=torch.Generator().manual_seed(label_seed),
    )

    steps = math.ceil(len(data.train_x) / settings.batch_size)
    optimizer = build_optimizer(settings, network.parameters())
    pace = attach(trial, optimizer, settings, steps)
    autocast = torch.autocast(
        device.type, dtype=getattr(torch, settings.precision), enabled=settings.precision != "float32"
    )
    # Without float16 it hands the loss and the step through.
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")

    for _ in range(settings.epochs):
        network.train()
        start = now(device)
        total_loss = torch.zeros((), dtype=torch.float64, device=device)  # stays there: no wait for it at each step
        for batch in batches.epoch():
            with autocast:
                loss = batch.loss(network(batch.x.contiguous(memory_format=layout)), settings.label_smoothing)
            optimizer.zero_grad()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            total_loss += loss.detach() * len(batch.y)
            pace.step_ended()
        pace.epoch_ended()
        seconds = now(device) - start

        network.eval()
        with autocast:
            errors = _errors(network, data)
        trial.report(seconds=seconds, train_loss=total_loss.item() / len(data.train_x), **errors)
    trial.measure_flatness(network, F.cross_entropy, FlatnessBatches(data))


def _errors(network: nn.Module, data: Images) -> dict[str, float]:
    """Error on the validation split, and on the test split where the data have one."""
    errors = {"val_error": error_percent(network, data, data.val_x, data.val_y)}
    if data.test_x is not None and data.test_y is not None:
        errors["test_error"] = error_percent(network, data, data.test_x, data.test_y)
    return errors


@torch.no_grad()
def error_percent(network: nn.Module, data: Images, x: Tensor, y: Tensor) -> float:
    """Return the share of wrongly classified images in percent; NaN if any output of the model is not finite.

    Args:
        network: in evaluation mode.
        data: what normalises the images.
        x: images, uint8, shape ``(n, channels, height, width)``.
        y: their classes, shape ``(n,)``.
    """
    wrong = torch.zeros((), dtype=torch.int64, device=x.device)
    finite = torch.ones((), dtype=torch.bool, device=x.device)
    for images, classes in zip(torch.split(x, EVALUATION_BATCH), torch.split(y, EVALUATION_BATCH), strict=True):
        outputs = network(data.normalised(images))
        wrong += (outputs.argmax(dim=1) != classes).sum()
        finite &= outputs.isfinite().all()
    return 100.0 * wrong.item() / len(x) if finite else math.nan

"""How all tasks of plain classification train: batches from tensors on the device, cross-entropy, error in percent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from flatter.study.data import Classification
from flatter.study.tasks.optimization import build_optimizer, find_device
from flatter.study.tasks.regularization import disturb_labels
from flatter.study.tasks.running import initialized, now, percent_wrong
from flatter.study.tasks.schedules import attach
from flatter.study.tasks.task import ClassificationSettings

if TYPE_CHECKING:
    from flatter.study.trial import Trial

BuildModel = Callable[[torch.Generator], nn.Module]


def train_classifier(
    trial: Trial,
    settings: ClassificationSettings,
    data: Classification,
    build: BuildModel,
    *,
    evaluation_batch: int | None = None,
) -> None:
    """Train a model with cross-entropy and report every epoch to the trial.

    The trial's seed decides the initial weights, the order of the data, which labels are wrong and the dropout masks,
    and nothing else does: generators of this function's own draw them, so the global random state is as it was. All but
    the masks are drawn on the CPU, so they are the same on every device. Every epoch visits each training example once;
    the last, smaller batch is kept, so an epoch has ``ceil(n / batch_size)`` steps.

    Reported per epoch: ``train_loss``, the mean over the examples of the loss at the step that used them, on the labels
    that it used; ``val_error`` and, where the data have a test split, ``test_error`` after the epoch, in percent, NaN
    when an output of the model is not finite; ``seconds``, the time for training alone, evaluation excluded. The
    flatness, where it is asked for, is that of the cross-entropy without weight decay and dropout, on the first
    training examples and their true labels.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train.
        data: what to train on, on any device.
        build: makes the model, whose layers may initialize themselves from torch's global generator; its argument is
            the generator of the dropout masks, on the device that the settings name.
        evaluation_batch: examples that are evaluated at once; default: all.

    Raises:
        SettingsError: the settings ask for a device that is not there.
    """
    device = find_device(settings)
    data = data.to(device)
    # Several seeds from one: the same numbers must not decide both the weights and the order.
    seeds = np.random.SeedSequence(trial.seed).generate_state(4, np.uint64)
    init_seed, order_seed, label_seed, dropout_seed = (int(seed) for seed in seeds)
    masks = torch.Generator(device).manual_seed(dropout_seed)
    model = initialized(lambda: build(masks), init_seed).to(device)
    order = torch.Generator().manual_seed(order_seed)
    label_noise = torch.Generator().manual_seed(label_seed)

    examples = len(data.train_x)
    steps = math.ceil(examples / settings.batch_size)
    optimizer = build_optimizer(settings, model.parameters())
    pace = attach(trial, optimizer, settings, steps)

    for _ in range(settings.epochs):
        model.train()
        start = now(device)
        total_loss = torch.zeros((), dtype=torch.float64, device=device)  # stays there: no wait for it at each step
        labels = disturb_labels(data.train_y, settings.label_noise, data.classes, label_noise)
        for batch in torch.split(torch.randperm(examples, generator=order).to(device), settings.batch_size):
            loss = F.cross_entropy(model(data.train_x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach() * len(batch)
            pace.step_ended()
        pace.epoch_ended()
        seconds = now(device) - start

        model.eval()
        trial.report(seconds=seconds, train_loss=total_loss.item() / examples, **_errors(model, data, evaluation_batch))
    trial.measure_flatness(model, F.cross_entropy, flatness_batches(data))


def _errors(model: nn.Module, data: Classification, batch_size: int | None) -> dict[str, float]:
    """Error on the validation split, and on the test split where the data have one."""
    errors = {"val_error": error_percent(model, data.val_x, data.val_y, batch_size)}
    if data.test_x is not None and data.test_y is not None:
        errors["test_error"] = error_percent(model, data.test_x, data.test_y, batch_size)
    return errors


def flatness_batches(data: Classification) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The training examples in the data set's order, 500 at a time: the same for every arm and seed; nothing copied."""
    return list(zip(torch.split(data.train_x, 500), torch.split(data.train_y, 500), strict=True))


@torch.no_grad()
def error_percent(model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch_size: int | None = None) -> float:
    """Return the share of wrongly classified examples in percent; NaN if any output of the model is not finite.

    Args:
        model: gives one output per class, shape ``(n, classes)``.
        x, y: inputs and classes.
        batch_size: examples that are evaluated at once; default: all.
    """
    return percent_wrong(torch.cat([model(batch) for batch in torch.split(x, batch_size or len(x))]), y)

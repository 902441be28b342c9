"""Multilayer perceptrons: the model, and the training function that all MLP tasks share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from flatter.study.data import Classification
from flatter.study.tasks.optimization import build_optimizer, find_device
from flatter.study.tasks.regularization import Dropout, disturb_labels
from flatter.study.tasks.schedules import find_schedule
from flatter.study.tasks.task import ClassificationSettings

if TYPE_CHECKING:
    from flatter.study.trial import Trial


class MlpSettings(ClassificationSettings):
    """Settings of the MLP tasks.

    Attributes:
        dropout: in [0, 1): the probability that a hidden unit is dropped in training; default 0. LRD's paper gives the
            opposite: its 0.9 retained is 0.1 here.
    """

    dropout: float = Field(default=0.0, ge=0, lt=1)


def build_mlp(widths: Sequence[int], dropout: float = 0.0, generator: torch.Generator | None = None) -> nn.Sequential:
    """Return linear layers of the given widths with ReLU between them and torch's default initialization.

    Args:
        widths: inputs, hidden layers, outputs: ``(784, 100, 10)`` has two linear layers.
        dropout: probability that a hidden unit is dropped in training; default 0, without dropout layers.
        generator: of the masks, on the model's device; needed with dropout.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        if dropout:
            assert generator is not None
            layers.append(Dropout(dropout, generator))
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


def train_mlp(trial: Trial, settings: MlpSettings, data: Classification, *, widths: Sequence[int]) -> None:
    """Train an MLP with cross-entropy and report every epoch to the trial.

    The trial's seed decides the initial weights, the order of the data, which labels are wrong and the dropout masks,
    and nothing else does: generators of this function's own draw them, so the global random state is as it was. All but
    the masks are drawn on the CPU, so they are the same on every device. Every epoch visits each training example once;
    the last, smaller batch is kept, so an epoch has ``ceil(n / batch_size)`` steps.

    Reported per epoch: ``train_loss``, the mean over the examples of the loss at the step that used them, on the labels
    that it used; ``val_error``
    and, where the data have a test split, ``test_error`` after the epoch, in percent, NaN when an output of the model
    is not finite; ``seconds``, the time for training alone, evaluation excluded. The flatness, where it is asked for,
    is that of the cross-entropy without weight decay and dropout, on the first training examples and their true labels.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train.
        data: what to train on, on any device.
        widths: see :func:`build_mlp`; first the number of features, last the number of classes.

    Raises:
        RuntimeError: the settings ask for a device that is not there.
    """
    device = find_device(settings)
    data = data.to(device)
    # Several seeds from one: the same numbers must not decide both the weights and the order.
    seeds = np.random.SeedSequence(trial.seed).generate_state(4, np.uint64)
    init_seed, order_seed, label_seed, dropout_seed = (int(seed) for seed in seeds)
    masks = torch.Generator(device).manual_seed(dropout_seed)
    model = _initialized(lambda: build_mlp(widths, settings.dropout, masks), init_seed).to(device)
    order = torch.Generator().manual_seed(order_seed)
    label_noise = torch.Generator().manual_seed(label_seed)

    examples = len(data.train_x)
    steps = math.ceil(examples / settings.batch_size)
    optimizer = build_optimizer(settings, model.parameters())
    schedule = find_schedule(settings, steps)
    scheduler = trial.attach(
        optimizer,
        steps_per_epoch=steps,
        epochs=settings.epochs,
        scheduler=schedule.factory,
        interval=schedule.interval,
    )

    for _ in range(settings.epochs):
        model.train()
        start = _now(device)
        total_loss = torch.zeros((), dtype=torch.float64, device=device)  # stays there: no wait for it at each step
        labels = disturb_labels(data.train_y, settings.label_noise, data.classes, label_noise)
        for batch in torch.split(torch.randperm(examples, generator=order).to(device), settings.batch_size):
            loss = F.cross_entropy(model(data.train_x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total_loss += loss.detach() * len(batch)
            if schedule.interval == "step":
                scheduler.step()
        if schedule.interval == "epoch":
            scheduler.step()
        seconds = _now(device) - start

        model.eval()
        trial.report(seconds=seconds, train_loss=total_loss.item() / examples, **_errors(model, data))
    trial.measure_flatness(model, F.cross_entropy, flatness_batches(data))


def _errors(model: nn.Module, data: Classification) -> dict[str, float]:
    """Error on the validation split, and on the test split where the data have one."""
    errors = {"val_error": error_percent(model, data.val_x, data.val_y)}
    if data.test_x is not None and data.test_y is not None:
        errors["test_error"] = error_percent(model, data.test_x, data.test_y)
    return errors


def flatness_batches(data: Classification) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The training examples in the data set's order, 500 at a time: the same for every arm and seed; nothing copied."""
    return list(zip(torch.split(data.train_x, 500), torch.split(data.train_y, 500), strict=True))


@torch.no_grad()
def error_percent(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the share of wrongly classified examples in percent; NaN if any output of the model is not finite.

    The largest of NaNs has an index too: without that rule a broken model would get a number, about 90 % on digits.
    """
    outputs = model(x)
    if not outputs.isfinite().all():
        return math.nan
    return 100.0 * float((outputs.argmax(dim=1) != y).double().mean())


def _initialized(build: Callable[[], nn.Sequential], seed: int) -> nn.Sequential:
    # Layers initialize themselves from the global generator of the CPU: seed it, and put its state back afterwards.
    # torch.manual_seed would also move the generators of every GPU, which are left alone here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def _now(device: torch.device) -> float:
    """Seconds on a clock, read after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

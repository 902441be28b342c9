"""From settings to torch's optimizer, scheduler and device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from flatter.study.tasks.task import Settings


def build_optimizer(settings: Settings, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """Return the optimizer that the settings name, with torch's defaults for all else."""
    rate, momentum, decay = settings.learning_rate, settings.momentum, settings.weight_decay
    if settings.optimizer == "sgd":
        return SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    if settings.optimizer == "adam":
        return Adam(parameters, lr=rate, betas=(momentum, 0.999), weight_decay=decay)
    return AdamW(parameters, lr=rate, betas=(momentum, 0.999), weight_decay=decay)


def scheduler_factory(settings: Settings) -> Callable[[Optimizer], LRScheduler] | None:
    """Return what builds the schedule, to be stepped once per epoch; ``None`` for a constant rate."""
    if settings.schedule == "constant":
        return None
    epochs = settings.epochs
    if settings.schedule == "cosine":
        return lambda optimizer: CosineAnnealingLR(optimizer, T_max=epochs)
    # Rounded up, so that a short run does not begin with a tenth of the rate.
    milestones = [math.ceil(epochs / 2), math.ceil(3 * epochs / 4)]
    return lambda optimizer: MultiStepLR(optimizer, milestones=milestones, gamma=0.1)


def find_device(settings: Settings) -> torch.device:
    """Return the device that the settings name.

    Raises:
        SettingsError: it is ``"cuda"`` and torch sees none.
    """
    settings.check_device()
    return torch.device(settings.device)

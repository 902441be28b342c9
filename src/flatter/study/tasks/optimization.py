"""From settings to torch's optimizer and device. The schedules are in ``schedules.py``."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RAdam, RMSprop

from flatter.study.tasks.regularization import centralize_gradients
from flatter.study.tasks.task import USUAL_MOMENTUM, Settings


def build_optimizer(settings: Settings, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    """Return the optimizer that the settings name, with torch's defaults for all else.

    With ``gradient_centralization`` it centralizes the gradients before each of its steps.
    """
    optimizer = _build(settings, parameters)
    if settings.gradient_centralization:
        optimizer.register_step_pre_hook(centralize_gradients)
    return optimizer


def _build(settings: Settings, parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
    name, rate, decay = settings.optimizer, settings.learning_rate, settings.weight_decay
    if name == "adagrad":
        return Adagrad(parameters, lr=rate, weight_decay=decay)
    momentum = settings.momentum
    if momentum is None:
        momentum = USUAL_MOMENTUM[name]
        assert momentum is not None  # only Adagrad has none
    if name in ("sgd", "nesterov"):
        return SGD(parameters, lr=rate, momentum=momentum, weight_decay=decay, nesterov=name == "nesterov")
    if name == "rmsprop":
        return RMSprop(parameters, lr=rate, momentum=momentum, weight_decay=decay)
    betas = (momentum, 0.999)
    if name == "radam":
        return RAdam(parameters, lr=rate, betas=betas, weight_decay=decay)
    if name == "adamw":
        return AdamW(parameters, lr=rate, betas=betas, weight_decay=decay)
    return Adam(parameters, lr=rate, betas=betas, weight_decay=decay, amsgrad=name == "amsgrad")


def find_device(settings: Settings) -> torch.device:
    """Return the device that the settings name.

    Raises:
        SettingsError: it is ``"cuda"`` and torch sees none.
    """
    settings.check_device()
    return torch.device(settings.device)

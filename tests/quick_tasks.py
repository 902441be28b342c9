"""Tasks that train in a millisecond: what a study does to them is what is tested."""

import os
import time
from dataclasses import dataclass, replace

import torch

from flatwise.study.task import Settings, Task


@dataclass(frozen=True)
class Numbers:
    """Targets of the splits."""

    val: float = 1.0
    test: float | None = 1.1

    def without_test(self):
        return replace(self, test=None)


def load(data_dir):
    return Numbers()


def train(trial, settings, data):
    """Steps of a weight towards 1 with noise of the seed; the error is the distance to each split's target."""
    noise = torch.Generator().manual_seed(trial.seed)
    weight = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=settings.learning_rate, momentum=settings.momentum or 0.0)
    scheduler = trial.attach(optimizer, steps_per_epoch=2, epochs=settings.epochs)
    for _ in range(settings.epochs):
        for _ in range(2):
            weight.grad = weight.detach() - 1 + 0.1 * torch.randn(4, generator=noise)
            optimizer.step()
        scheduler.step()
        distance = {"val_error": (weight - data.val).abs().mean().item()}
        if data.test is not None:
            distance["test_error"] = (weight - data.test).abs().mean().item()
        trial.report(**distance)


def train_slowly(trial, settings, data):
    time.sleep(0.02)
    train(trial, settings, data)


def train_or_fail(trial, settings, data):
    """Fails in the ways in which trainings fail, by the learning rate."""
    if settings.learning_rate == 0.3:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if settings.learning_rate == 0.4:
        data = replace(data, val=float("nan"))
    if settings.learning_rate == 0.5:
        raise MemoryError("cannot allocate")
    if settings.learning_rate == 0.6:
        os.kill(os.getpid(), 9)
    train(trial, settings, data)


SETTINGS = Settings(epochs=3, batch_size=1, learning_rate=0.1)
QUICK = Task("quick", "a quadratic", SETTINGS, load, train)
SLOW = Task("slow", "a quadratic, slowly", SETTINGS, load, train_slowly)
FAILING = Task("failing", "a quadratic that fails at some rates", SETTINGS, load, train_or_fail)

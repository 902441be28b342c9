"""What a trial does to a training function, for tests that look at the training alone."""

import torch
from torch.optim.lr_scheduler import LambdaLR


class FakeTrial:
    """What a trial does to a training function, without a perturbation; keeps what it sees."""

    def __init__(self, seed=0):
        self.seed = seed
        self.epochs = []
        self.rates = []
        self.steps = 0

    def attach(self, optimizer, *, steps_per_epoch, epochs, scheduler=None, interval="epoch"):
        self.optimizer, self.steps_per_epoch, self.planned_epochs, self.interval = (
            optimizer,
            steps_per_epoch,
            epochs,
            interval,
        )
        self.initial = self.parameters()
        optimizer.register_step_post_hook(self._after_step)
        self.scheduler = scheduler(optimizer) if scheduler else LambdaLR(optimizer, lambda epoch: 1.0)
        return self.scheduler

    def _after_step(self, optimizer, args, kwargs):
        self.steps += 1

    def report(self, *, seconds, **metrics):
        self.epochs.append({"seconds": seconds, **metrics})
        self.rates.append(self.scheduler.get_last_lr()[0])
        self.last = self.parameters()

    def measure_flatness(self, model, loss, data):
        self.measured = [(tuple(x.shape), len(y)) for x, y in data]

    def parameters(self):
        return [p.detach().clone() for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def metrics(self):
        return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in self.epochs]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

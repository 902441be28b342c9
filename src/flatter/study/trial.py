"""One trial: what a training function is handed, and what it reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiplicativeLR, ReduceLROnPlateau

from flatter.attach import Handle, perturb
from flatter.attach.supported import check_supported
from flatter.distributions import Constant
from flatter.flatness.objective import Loss
from flatter.lr_scheduler import GaussianPeakLR, LaplacianPeakLR
from flatter.perturbation import Perturbation
from flatter.study.arms import Arm, Peak
from flatter.study.flatness import FlatnessSettings, Told, measure_flatness
from flatter.study.records import FlatnessRecord

Interval = Literal["step", "epoch"]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class TrialError(RuntimeError):
    """The training function does not use its trial as it must. The message is one line."""


class Trial:
    """One training run of a comparison, handed to the training function.

    The function asks it for its seed, hands it the optimizer, and reports every epoch::

        def train(trial):
            torch.manual_seed(trial.seed)
            model = ...
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            scheduler = trial.attach(optimizer, steps_per_epoch=len(loader), epochs=30)
            for epoch in range(30):
                ...
                scheduler.step()
                trial.report(test_error=...)

    Attributes:
        arm: the arm; a training function should not look at it.
        seed: seed of the initial weights, the batches and the augmentation. The arms of one pair have the same seed.
        epochs: what was reported, one mapping per epoch.
        flatness: how flat the final model is; ``None`` where the comparison does not ask for it.
    """

    def __init__(
        self,
        arm: Arm,
        seed: int,
        on_report: Callable[[Mapping[str, float]], None] = lambda epoch: None,
        *,
        flatness: FlatnessSettings | None = None,
        on_measure: Told = lambda what, done, of: None,
    ) -> None:
        self.arm = arm
        self.seed = seed
        self.epochs: list[dict[str, float]] = []
        self.flatness: FlatnessRecord | None = None
        self._on_report = on_report
        self._flatness_settings = flatness
        self._on_measure = on_measure
        self._measured = False
        self._rates: list[float | torch.Tensor] | None = None
        self._handle: Handle | None = None
        self._clock = time.perf_counter()

    def attach(
        self,
        optimizer: Optimizer,
        *,
        steps_per_epoch: int,
        epochs: int,
        scheduler: SchedulerFactory | None = None,
        interval: Interval = "epoch",
    ) -> LRScheduler:
        """Does to an optimizer what the arm says, and returns the scheduler that the training must step.

        Args:
            optimizer: the optimizer, before its first step.
            steps_per_epoch: optimizer steps in an epoch.
            epochs: epochs of the training.
            scheduler: makes the training's own scheduler, as in ``lambda optimizer: StepLR(optimizer, 30)``; default:
                a constant rate. A peak arm puts its own schedule in its place.
            interval: how often the training calls the returned scheduler's ``step``: once an ``"epoch"`` (the
                default) or after every optimizer ``"step"``.

        Raises:
            ValueError: an optimizer that cannot be perturbed, or numbers that make no sense.
            TrialError: the peak arms' control cannot know the mean rate of a scheduler that waits for a metric.
        """
        total = epochs if interval == "epoch" else epochs * steps_per_epoch
        own: SchedulerFactory = scheduler or _constant
        check_supported(optimizer, per_element=False)  # in the vanilla arm too: better known before the first trial
        if self.arm.peak is not None and total < 2:
            raise TrialError("a peak schedule needs at least two scheduler steps: train for more epochs")
        perturbations = list(self.arm.perturbations)
        peak = self.arm.peak
        made: LRScheduler
        if peak is None:
            made = own(optimizer)
        elif peak.mean_only:
            scale = _mean_rate(optimizer, lambda o: _peak(o, peak, total), total) / _mean_rate(optimizer, own, total)
            perturbations.append(Perturbation(Constant(scale), "all", "once"))
            made = own(optimizer)
        else:
            made = _peak(optimizer, peak, total)
        # The scheduler may be stepped before the report: the rate of an epoch's last step is noted as it steps.
        optimizer.register_step_pre_hook(self._note_rates)
        if perturbations:
            self._handle = perturb(
                optimizer, perturbations, seed=self.seed, steps_per_epoch=steps_per_epoch, epochs=epochs
            )
        self._clock = time.perf_counter()
        return made

    def report(self, *, seconds: float | None = None, **metrics: float) -> None:
        """Records one epoch.

        Args:
            seconds: training time of the epoch; default: the wall time since the last report.
            **metrics: the epoch's metrics, such as ``test_error=3.2``.

        Raises:
            TrialError: no optimizer was attached, no metric is given, or the flatness was measured before.
        """
        now = time.perf_counter()
        if self._measured:
            raise TrialError("trial.measure_flatness measures the final model: call it after the last trial.report")
        if self._rates is None:
            raise TrialError("the training function must call trial.attach(optimizer, ...) and step before it reports")
        if not metrics:
            raise TrialError("trial.report needs the epoch's metrics, such as trial.report(test_error=3.2)")
        epoch = {name: float(value) for name, value in metrics.items()}
        epoch["scheduled_lr"], epoch["effective_lr"] = self._last_rates()
        epoch["seconds"] = now - self._clock if seconds is None else seconds
        self.epochs.append(epoch)
        self._on_report(epoch)
        self._clock = time.perf_counter()

    def measure_flatness(self, model: nn.Module, loss: Loss, data: Any) -> None:
        """Measures how flat the loss is around the final model, if the comparison asks for it; else does nothing.

        Call it once, after the last report. The model comes back as it was, and no random state is moved, so whatever
        the training does afterwards is the same with and without. A measurement that fails is recorded with its reason.

        Args:
            model: the trained model; it is measured in evaluation mode.
            loss: ``loss(output, target)``, the mean over a batch, or a :class:`flatter.flatness.BatchLoss`.
            data: training data as batches, without augmentation: a list or a loader that can be iterated again. The
                first ``max_batches`` are used; let them be the same for all arms of a seed.

        Raises:
            TrialError: called before the first report, or twice.
        """
        if not self.epochs or self._measured:
            when = "twice" if self._measured else "before the first trial.report"
            raise TrialError(f"trial.measure_flatness was called {when}: call it once, after the last trial.report")
        self._measured = True
        if self._flatness_settings is not None:
            self.flatness = measure_flatness(
                model, loss, data, self._flatness_settings, seed=self.seed, told=self._on_measure
            )

    def _note_rates(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        # A tensor is filled in place by its scheduler: what it holds now must be kept.
        rates = (group["lr"] for group in optimizer.param_groups)
        self._rates = [rate.clone() if isinstance(rate, torch.Tensor) else rate for rate in rates]

    def _last_rates(self) -> tuple[float, float]:
        """The scheduled and the effective rate of the first parameter group at the last step."""
        assert self._rates is not None
        scheduled = [float(rate) for rate in self._rates]
        if self._handle is None:
            return scheduled[0], scheduled[0]
        return scheduled[0], self._handle.effective_lr(max(self._handle.step - 1, 0), scheduled)[0]


def _constant(optimizer: Optimizer) -> LRScheduler:
    return MultiplicativeLR(optimizer, lambda _: 1.0)


def _peak(optimizer: Optimizer, peak: Peak, total: int) -> LRScheduler:
    shape = GaussianPeakLR if peak.shape == "gaussian" else LaplacianPeakLR
    start = [float(group["lr"]) for group in optimizer.param_groups]
    highest = [rate * peak.height for rate in start]
    return shape(optimizer, total, start_lr=start, max_lr=highest, min_lr=[rate * peak.depth for rate in highest])


def _mean_rate(optimizer: Optimizer, factory: SchedulerFactory, total: int) -> float:
    """Mean rate of the first group over a whole schedule, played through on an optimizer that holds no model."""
    groups = [{"params": [torch.zeros(1)], "lr": float(group["lr"])} for group in optimizer.param_groups]
    stand_in = torch.optim.SGD(groups)
    scheduler = factory(stand_in)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TrialError(
            "the control of a peak arm needs the mean rate of the training's own schedule, and ReduceLROnPlateau "
            "has none before it is run: leave the peak arms out or run with controls=False"
        )
    rates = []
    for _ in range(total):
        rates.append(float(stand_in.param_groups[0]["lr"]))
        stand_in.step()
        scheduler.step()
    return math.fsum(rates) / total

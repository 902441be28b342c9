"""One trial: what a training function is handed, and what it reports."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LRScheduler, MultiplicativeLR, ReduceLROnPlateau

from flatwise._attach import Handle, SharedNoiseWarning, perturb
from flatwise._attach.support import check_supported
from flatwise.distributions import Constant
from flatwise.exceptions import FlatwiseError
from flatwise.flatness.objective import Loss
from flatwise.lr_scheduler import GaussianPeakLR, LaplacianPeakLR
from flatwise.perturbation import Perturbation
from flatwise.study.arms import Arm, Peak
from flatwise.study.flatness import FlatnessSettings, OnMeasure, measure_flatness
from flatwise.study.hints import did_you_mean
from flatwise.study.store import OWN_COLUMNS, FlatnessRecord

Interval = Literal["step", "epoch"]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class TrialError(FlatwiseError, RuntimeError):
    """The training function uses its trial wrongly. The message is one line."""


class ShortTrialError(TrialError):
    """The training ran fewer steps or epochs than announced, for example because it diverged."""


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

    What the function does is checked against what it told :meth:`attach`: the optimizer's steps, the epochs, and the
    scheduler's steps. Schedules and the methods' windows depend on them, so a training that stops early or gave wrong
    numbers would not do what its arm says. After a metric that is not finite it may return early.

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
        metric: str | None = None,
        flatness: FlatnessSettings | None = None,
        on_measure: OnMeasure = lambda what, done, of: None,
    ) -> None:
        self.arm = arm
        self.seed = seed
        self.epochs: list[dict[str, float]] = []
        self.flatness: FlatnessRecord | None = None
        self._on_report = on_report
        self._metric = metric
        self._calendar: _Calendar | None = None
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
        """Apply the arm to an optimizer, and return the scheduler that the training must step.

        Args:
            optimizer: the optimizer, before its first step.
            steps_per_epoch: optimizer steps in an epoch.
            epochs: epochs of the training.
            scheduler: makes the training's own scheduler, as in ``lambda optimizer: StepLR(optimizer, 30)``; default:
                a constant rate. A peak arm puts its own schedule in its place. It must make a new scheduler for the
                optimizer it is given, which for a peak arm's control is a stand-in with the same learning rates.
            interval: how often the training calls the returned scheduler's ``step``: once an ``"epoch"`` (the
                default) or after every optimizer ``"step"``.

        Raises:
            ValueError: the optimizer cannot be perturbed, or ``steps_per_epoch`` or ``epochs`` is below 1.
            TrialError: it was called before in this trial; ``scheduler`` returned a scheduler of another optimizer; a
                peak schedule would have fewer than two steps; or a peak arm's control needs the mean rate of
                ``ReduceLROnPlateau``, which is not known in advance.
        """
        if self._calendar is not None:
            raise TrialError("trial.attach was called twice: attach the one optimizer whose learning rate is compared")
        for name, value in (("steps_per_epoch", steps_per_epoch), ("epochs", epochs)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        total = epochs if interval == "epoch" else epochs * steps_per_epoch
        own: SchedulerFactory = scheduler or _constant
        check_supported(optimizer, per_element=False)  # in the vanilla arm too: better known before the first trial
        if self.arm.peak is not None and total < 2:
            raise TrialError(f"a peak schedule needs at least two scheduler steps, got {total}: train for more epochs")
        perturbations = list(self.arm.perturbations)
        peak = self.arm.peak
        made: LRScheduler
        if peak is None:
            made = _made_for(optimizer, own)
        elif peak.mean_only:
            scale = _mean_rate(optimizer, lambda o: _peak(o, peak, total), total) / _mean_rate(optimizer, own, total)
            perturbations.append(Perturbation(Constant(scale), "all", "once"))
            made = _made_for(optimizer, own)
        else:
            made = _peak(optimizer, peak, total)
        # The scheduler may be stepped before the report: the rate of an epoch's last step is noted as it steps.
        optimizer.register_step_pre_hook(self._note_rates)
        must_step = scheduler is not None or (peak is not None and not peak.mean_only)
        self._calendar = _Calendar(optimizer, made, steps_per_epoch, epochs, interval, must_step)
        if perturbations:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SharedNoiseWarning)  # the arms of a seed share it on purpose
                self._handle = perturb(
                    optimizer, perturbations, seed=self.seed, steps_per_epoch=steps_per_epoch, epochs=epochs
                )
        self._clock = time.perf_counter()
        return made

    def report(self, *, seconds: float | None = None, **metrics: float) -> None:
        """Record one epoch.

        Args:
            seconds: training time of the epoch; default: the wall time since the last report.
            **metrics: the epoch's metrics, such as ``test_error=3.2``. The judged one must be among those of the first
                and of the last epoch; NaN in the first says that it is not measured there.

        Raises:
            TrialError: no optimizer was attached or stepped; no metric is given; the judged one is missing; a metric
                has a name that is reserved or cannot be stored; the epochs or steps are not those that ``attach`` was
                told; or ``measure_flatness`` was called before.
        """
        now = time.perf_counter()
        if self._measured:
            raise TrialError("trial.measure_flatness measures the final model: call it after the last trial.report")
        if self._rates is None:
            raise TrialError("the training function must call trial.attach(optimizer, ...) and step before it reports")
        if not metrics:
            raise TrialError("trial.report needs the epoch's metrics, such as trial.report(test_error=3.2)")
        _check_names(metrics)
        assert self._calendar is not None
        self._calendar.check_epoch(len(self.epochs) + 1)
        if not self.epochs or len(self.epochs) + 1 == self._calendar.epochs:
            self._check_metric(metrics)
        epoch = {name: float(value) for name, value in metrics.items()}
        epoch["scheduled_lr"], epoch["effective_lr"] = self._last_rates()
        epoch["seconds"] = now - self._clock if seconds is None else float(seconds)
        self.epochs.append(epoch)
        self._on_report(epoch)
        self._clock = time.perf_counter()

    def check_use(self) -> None:
        """Check, after the training function returned, that it did what it told :meth:`attach`.

        Raises:
            ShortTrialError: fewer epochs were reported than announced.
            TrialError: nothing was reported, or the scheduler was stepped too often or too rarely.
        """
        if not self.epochs or self._calendar is None:
            raise TrialError(
                "the training function returned without a single trial.report(...): call it once per epoch"
            )
        if self._metric is not None and not math.isfinite(self.epochs[-1].get(self._metric, math.nan)):
            return  # a failed trial, and it need not go on
        self._calendar.check_end(len(self.epochs))

    def _check_metric(self, metrics: Mapping[str, float]) -> None:
        if self._metric is None or self._metric in metrics:
            return
        reported = [name for name in metrics if name not in OWN_COLUMNS]
        raise TrialError(
            f"the training function reports {', '.join(reported)} in epoch {len(self.epochs) + 1}, but the comparison "
            f"judges {self._metric!r}: {did_you_mean(self._metric, reported)}Pass metric=..., or report {self._metric} "
            "in the first and the last epoch (NaN in the first if it is not measured there)"
        )

    def measure_flatness(self, model: nn.Module, loss: Loss, data: Any) -> None:
        """Measure how flat the loss is around the final model, if the comparison asks for it; else do nothing.

        Call it once, after the last report. The model comes back as it was, and no random state is moved, so whatever
        the training does afterwards is the same with and without. A measurement that fails is recorded with its reason.

        Args:
            model: the trained model; it is measured in evaluation mode.
            loss: ``loss(output, target)``, the mean over a batch, or a :class:`flatwise.flatness.BatchLoss`.
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
                model, loss, data, self._flatness_settings, seed=self.seed, on_measure=self._on_measure
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


def _check_names(metrics: Iterable[str]) -> None:
    """Raise for metrics that could not be kept under their names."""
    for name in metrics:
        if name in OWN_COLUMNS:
            raise TrialError(f"flatwise records {name} itself: report the metric {name!r} under another name")
        try:
            name.encode()
        except UnicodeEncodeError:  # a lone surrogate
            raise TrialError(
                f"the name of the metric {name!r} cannot be stored, as it is no valid Unicode text: report it under "
                "another name"
            ) from None


class _Calendar:
    """Count a training's epochs and steps, and compare them with what it told ``attach``.

    A gradient scaler skips steps, so some optimizer steps may be missing: ten plus 2 % of all, but at most an eighth.
    Additional steps are never allowed: the schedule and the methods' windows would end before the training does.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        scheduler: LRScheduler,
        steps_per_epoch: int,
        epochs: int,
        interval: Interval,
        must_step: bool,
    ) -> None:
        self.epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._interval = interval
        self._must_step = must_step
        self._scheduler = scheduler
        self._scheduler_start = _scheduler_steps(scheduler)
        self._steps = 0
        self._in_step = False
        self._may_lack = min(10 + 0.02 * epochs * steps_per_epoch, epochs * steps_per_epoch / 8)
        optimizer.register_step_pre_hook(self._step_begins)
        optimizer.register_step_post_hook(self._step_ends)

    def _step_begins(self, *_: object) -> None:
        self._in_step = True

    def _step_ends(self, *_: object) -> None:
        # The hooks of a step that calls its parent's run twice: begin, begin, end, end.
        self._steps += self._in_step
        self._in_step = False

    def check_epoch(self, epoch: int) -> None:
        """Raise as soon as the numbers are known to be wrong, at the report of an epoch (from 1)."""
        if epoch > self.epochs:
            raise TrialError(
                f"trial.attach was told epochs={self.epochs}, but this is report {epoch}: call trial.report once per "
                "epoch, and pass the number of epochs that the training runs"
            )
        told = epoch * self._steps_per_epoch
        if not told - self._may_lack <= self._steps <= told:
            kind = TrialError if self._steps > told else ShortTrialError
            raise kind(
                f"trial.attach was told steps_per_epoch={self._steps_per_epoch}, so {told} steps in "
                f"{_epochs(epoch)}, but optimizer.step was called {self._steps} times: pass the number of optimizer "
                "steps in an epoch (with gradient accumulation, fewer than batches)"
            )
        self._check_scheduler(epoch)

    def check_end(self, reported: int) -> None:
        """Raise if the training ended before its last epoch."""
        if reported < self.epochs:
            raise ShortTrialError(
                f"trial.attach was told epochs={self.epochs}, but {_epochs(reported)} "
                f"{'was' if reported == 1 else 'were'} reported: pass the number of epochs that the training runs, and "
                "report each. A training that stops early cannot be compared: schedules and the methods' windows "
                "depend on the number of epochs"
            )
        self._check_scheduler(reported, ended=True)

    def _check_scheduler(self, epoch: int, ended: bool = False) -> None:
        now = _scheduler_steps(self._scheduler)
        if now is None or self._scheduler_start is None or not (ended or epoch > 1):
            return
        counted = now - self._scheduler_start
        per_epoch = self._steps_per_epoch if self._interval == "step" else 1
        told = per_epoch * epoch
        # It may be called after the report, not after the last epoch, and not after a skipped optimizer step.
        least = told - (self._may_lack if self._interval == "step" else 0) - per_epoch
        fractional = isinstance(self._scheduler, CosineAnnealingWarmRestarts)  # may be told the epoch as a fraction
        if counted > told or (self._must_step and counted < (1 if fractional else least)):
            raise TrialError(
                f"trial.attach was told interval={self._interval!r}, so {told} scheduler steps in {_epochs(epoch)}, "
                f"but the scheduler that it returned was stepped {counted} times: call its step() once per "
                f"{self._interval}, or pass interval='step' or 'epoch' as you call it"
            )


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _scheduler_steps(scheduler: object) -> int | None:
    """How often a scheduler was stepped; ``None`` if it has no counter."""
    parts = getattr(scheduler, "_schedulers", None)  # a ChainedScheduler has no counter of its own
    counter = getattr(scheduler, "last_epoch", None)
    if counter is None and parts:
        return _scheduler_steps(parts[0])
    return int(counter) if isinstance(counter, (int, float)) else None


def _constant(optimizer: Optimizer) -> LRScheduler:
    return MultiplicativeLR(optimizer, lambda _: 1.0)


def _peak(optimizer: Optimizer, peak: Peak, total: int) -> LRScheduler:
    shape = GaussianPeakLR if peak.shape == "gaussian" else LaplacianPeakLR
    start = [float(group["lr"]) for group in optimizer.param_groups]
    highest = [rate * peak.height for rate in start]
    return shape(optimizer, total, start_lr=start, max_lr=highest, min_lr=[rate * peak.depth for rate in highest])


def _made_for(optimizer: Optimizer, factory: SchedulerFactory) -> LRScheduler:
    """The factory's scheduler, which must be one for this optimizer."""
    scheduler = factory(optimizer)
    of = _optimizer_of(scheduler)
    # A wrapped optimizer, such as Accelerate's, has the parameter groups of the one inside.
    if of is not None and of is not optimizer and getattr(of, "param_groups", None) is not optimizer.param_groups:
        raise TrialError(
            "trial.attach(scheduler=...) got a function that returned a scheduler of another optimizer than the one it "
            "was given: it must make a new scheduler for the optimizer it is given, as in "
            "scheduler=lambda optimizer: StepLR(optimizer, 30)"
        )
    return scheduler


def _optimizer_of(scheduler: object) -> object | None:
    """The optimizer whose learning rate a scheduler sets; ``None`` where it does not say."""
    of: object | None = getattr(scheduler, "optimizer", None)
    if of is not None:
        return of
    parts = getattr(scheduler, "_schedulers", None) or [getattr(scheduler, "scheduler", None)]  # or a wrapper's
    return None if parts[0] is None or parts[0] is scheduler else _optimizer_of(parts[0])


def _mean_rate(optimizer: Optimizer, factory: SchedulerFactory, total: int) -> float:
    """Mean rate of the first group over a whole schedule, played through on an optimizer that holds no model."""
    groups = [{"params": [torch.zeros(1)], "lr": float(group["lr"])} for group in optimizer.param_groups]
    stand_in = torch.optim.SGD(groups)
    scheduler = _made_for(stand_in, factory)
    if isinstance(scheduler, ReduceLROnPlateau):
        raise TrialError(
            "the control of a peak arm needs the mean rate of the training's own schedule, and ReduceLROnPlateau "
            "has none before it is run: omit the peak arms, or pass controls=False"
        )
    rates = []
    for _ in range(total):
        rates.append(float(stand_in.param_groups[0]["lr"]))
        stand_in.step()
        scheduler.step()
    return math.fsum(rates) / total

"""Peak schedules: the learning rate rises to a peak in the middle of training, then falls to almost nothing.

With ``t`` the progress of training in [0, 1], both shapes of "Towards Flatter Loss Surface via Nonmonotonic Learning
Rate Scheduling" (section 5) are one formula, ``γ(t) = γ_max · exp(−|t − 0.5|^q / w)``: Gaussian with ``q = 2`` and
``w = σ²``, Laplacian with ``q = 1`` and ``w = λ``. The run starts at ``t_offset``, where the curve passes through
``γ_start``, and not at 0, because the tiny rates before it only cost training time.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler

from flatwise.distributions import as_integer

__all__ = ["GaussianPeakLR", "LaplacianPeakLR"]


class _PeakLR(LRScheduler):
    """What the two shapes share. ``_exponent`` is the formula's ``q``; ``_width_name`` is what the user calls ``w``."""

    _shape: ClassVar[str]
    _exponent: ClassVar[int]
    _width_name: ClassVar[str]
    # What decides the rates: a state dict without these is not that of a peak schedule.
    _settings = ("total_steps", "steps_per_update", "max_lrs", "start_lrs", "min_lrs", "t_offsets", "widths")

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        max_lr: float | Sequence[float] | None,
        start_lr: float | Sequence[float] | None,
        min_lr: float | Sequence[float] | None,
        t_offset: float | Sequence[float] | None,
        width: float | Sequence[float] | None,
        steps_per_update: int,
        last_epoch: int,
    ) -> None:
        # Everything is checked before torch's constructor, which writes a rate into the optimizer.
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer; got {type(optimizer).__name__}")
        if start_lr is not None and t_offset is not None:
            raise ValueError(
                f"start_lr and t_offset both say where the curve begins; got start_lr={start_lr} and "
                f"t_offset={t_offset}: give one of them"
            )
        if min_lr is not None and width is not None:
            raise ValueError(
                f"min_lr and {self._width_name} both set the width of the curve; got min_lr={min_lr} and "
                f"{self._width_name}={width}: give one of them"
            )
        self.total_steps = _positive_int("total_steps", total_steps)
        self.steps_per_update = _positive_int("steps_per_update", steps_per_update)
        if self._updates < 2:
            raise ValueError(
                "a peak schedule needs at least two values, its start and its end; "
                f"total_steps={total_steps} with steps_per_update={steps_per_update} leaves one: train for more steps "
                "or update more often"
            )

        # `initial_lr` is torch's name for the rate before any scheduler; on resume `lr` is a value of the schedule.
        own = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        n = len(own)
        usual = own if start_lr is None else _per_group("start_lr", start_lr, n)
        if start_lr is None and (max_lr is None or t_offset is None):
            _per_group("the optimizer's learning rate, from which start_lr and max_lr are taken,", own, n)
        self.max_lrs = [3 * lr for lr in usual] if max_lr is None else _per_group("max_lr", max_lr, n)

        if width is None:
            self.min_lrs = [lr / 10_000 for lr in self.max_lrs] if min_lr is None else _per_group("min_lr", min_lr, n)
            self.widths = []
            for low, high in zip(self.min_lrs, self.max_lrs, strict=True):
                if low >= high:
                    raise ValueError(f"min_lr must be below max_lr; got min_lr={low} and max_lr={high}")
                self.widths.append(0.5**self._exponent / math.log(high / low))
        else:
            self.widths = _per_group(self._width_name, width, n)
            self.min_lrs = [self._curve(1.0, group) for group in range(n)]
            if 0.0 in self.min_lrs:
                raise ValueError(
                    f"{self._width_name}={width} is so small that the final rate γ(1) rounds to 0: give a larger one"
                )

        if t_offset is None:
            self.start_lrs = usual
            self.t_offsets = [self._offset(group) for group in range(n)]
        else:
            self.t_offsets = _per_group("t_offset", t_offset, n, zero=True)
            if max(self.t_offsets) > 0.5:
                raise ValueError(f"t_offset must lie in [0, 0.5], before the peak; got {t_offset}")
            self.start_lrs = [self._curve(offset, group) for group, offset in enumerate(self.t_offsets)]
        self._warned: set[str] = set()
        super().__init__(optimizer, last_epoch)

    # torch's attribute, a property here: ChainedScheduler asks for it when it is made, and a peak schedule that notices
    # only in its first step would end a run after an epoch of training.
    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose rates are scheduled.

        Raises:
            ValueError: a ``ChainedScheduler`` is being made of this schedule.
        """
        if sys._getframe(1).f_code is ChainedScheduler.__init__.__code__:
            raise self._cannot_be_chained()
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer

    def step(self, epoch: int | None = None) -> None:
        """Set the next rates.

        Args:
            epoch: as torch's, which deprecates it.

        Warns:
            UserWarning: once, if more steps are taken than ``total_steps``; once, if a learning rate is not the one
                that this schedule had set, so that another scheduler or a caller's own change is overwritten.

        Raises:
            ValueError: a ``ChainedScheduler`` steps this schedule, through a ``SequentialLR``.
        """
        caller = sys._getframe(1)
        while caller is not None and caller.f_globals["__name__"] == LRScheduler.__module__:
            if caller.f_code is ChainedScheduler.step.__code__:
                raise self._cannot_be_chained()
            caller = caller.f_back  # type: ignore[assignment]
        if not self._is_initial and epoch is None:
            self._warn_if_overwriting()
        super().step() if epoch is None else super().step(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's settings and where it is, as plain numbers: all but the optimizer."""
        state = {key: value for key, value in super().state_dict().items() if key not in ("_optimizer", "_warned")}
        return {**state, "shape": self._shape}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the run whose schedule was saved, with the settings of that schedule, as torch's schedulers do.

        Raises:
            ValueError: the state is not that of this class, or has another number of parameter groups. Nothing is
                changed then.

        Warns:
            UserWarning: the saved settings differ from those that this schedule was made with.
        """
        name = type(self).__name__
        if missing := [key for key in (*self._settings, "last_epoch") if key not in state_dict]:
            raise ValueError(
                f"this is not the state of a {name}: it lacks {', '.join(missing)}; got "
                f"{', '.join(sorted(state_dict)) or 'an empty dict'}: load what {name}.state_dict() returned"
            )
        shape = state_dict.get("shape", self._shape)  # older versions did not save it
        if shape != self._shape:
            raise ValueError(f"a {name} cannot load the state of a {shape} peak schedule: load it into {shape}PeakLR")
        if (groups := len(state_dict["max_lrs"])) != len(self.max_lrs):
            raise ValueError(
                f"this state has {groups} parameter groups, but the optimizer of this {name} has {len(self.max_lrs)}: "
                "make the optimizer with the groups of the saved run"
            )
        differing = [
            f"{key} is {getattr(self, key)} and was saved as {state_dict[key]}"
            for key in self._settings
            if getattr(self, key) != state_dict[key]
        ]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "shape"})
        if differing:
            warnings.warn(
                f"the loaded state is that of another {name}, whose settings replace this one's, as with every torch "
                f"scheduler: {'; '.join(differing)}. To train on with this one's, do not load the state and give "
                "last_epoch=",
                stacklevel=2,
            )

    @property
    def peak_steps(self) -> list[int]:
        """The peak step of each parameter group: see ``peak_step``."""
        last = self._updates - 1
        # The nearest whole update to t = 0.5; of two equally near ones, the earlier.
        updates = [math.ceil((0.5 - offset) / (1 - offset) * last - 0.5) for offset in self.t_offsets]
        return [update * self.steps_per_update for update in updates]

    @property
    def peak_step(self) -> int:
        """The scheduler step (a value of ``last_epoch``) whose ``t`` is nearest 0.5: where the rate is highest.

        With ``steps_per_update`` above 1 it is the first of the steps that hold the highest rate. For ``w_peak`` of the
        flatness evaluation (section 6), copy the weights after the ``optimizer.step()`` for which
        ``scheduler.last_epoch == scheduler.peak_step``, before ``scheduler.step()``.

        Raises:
            ValueError: the parameter groups peak at different steps, so that no single step is the peak.
        """
        steps = self.peak_steps
        if len(set(steps)) > 1:
            raise ValueError(
                f"the parameter groups peak at different steps: {steps}; choose one of `peak_steps`, or give the "
                "groups the same ratios of start_lr, max_lr and min_lr"
            )
        return steps[0]

    def get_lr(self) -> list[float | Tensor]:
        """Return each group's rate at ``last_epoch``, a float; torch fills it into a learning rate that is a tensor.

        It is a closed form of ``last_epoch``, so that no rounding error builds up and resume is exact.
        """
        if self.last_epoch > self.total_steps:  # one more is usual: after the last optimizer step
            self._warn_once(
                "overrun",
                f"{type(self).__name__} was made for total_steps={self.total_steps} and is beyond its end: the "
                "learning rate stays at min_lr. Give as total_steps the number of scheduler.step() calls in the whole "
                "training",
            )
        last = self._updates - 1
        update = min(self.last_epoch // self.steps_per_update, last)
        # The ends are stored numbers, because the formula returns them only up to rounding.
        if update == 0:
            return [*self.start_lrs]
        if update == last:
            return [*self.min_lrs]
        times = [offset + (1 - offset) * update / last for offset in self.t_offsets]
        return [self._curve(t, group) for group, t in enumerate(times)]

    @property
    def _updates(self) -> int:
        """How many values the schedule takes: the steps divided by ``steps_per_update``, rounded up."""
        return -(-self.total_steps // self.steps_per_update)

    def _cannot_be_chained(self) -> ValueError:
        return ValueError(
            f"{type(self).__name__} cannot be part of a ChainedScheduler: it sets the learning rate, as OneCycleLR "
            "does, and would overwrite the other schedulers' factors; to run schedules one after the other use "
            "SequentialLR"
        )

    def _warn_if_overwriting(self) -> None:
        for group, own in zip(self.optimizer.param_groups, self._last_lr, strict=False):
            found = group["lr"]
            if isinstance(found, Tensor) and found.device.type != "cpu":
                continue  # to read it would wait for the device at every step
            if float(found) != float(own):
                self._warn_once(
                    "overwriting",
                    f"the learning rate is {float(found):g}, and {type(self).__name__} had set it to {float(own):g}: "
                    "another scheduler or your code changed it, and this schedule overwrites the change. To run "
                    "schedules one after the other use SequentialLR",
                )

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            # Where the user calls step: this file and torch's are passed over.
            level, frame = 1, sys._getframe(0)
            while frame.f_back is not None and frame.f_globals["__name__"] in (__name__, LRScheduler.__module__):
                level, frame = level + 1, frame.f_back
            warnings.warn(message, stacklevel=level)

    def _curve(self, t: float, group: int) -> float:
        return self.max_lrs[group] * math.exp(-math.pow(abs(t - 0.5), self._exponent) / self.widths[group])

    def _offset(self, group: int) -> float:
        """The ``t`` up to 0.5 at which the curve is the group's ``start_lr``."""
        start, low, high = self.start_lrs[group], self.min_lrs[group], self.max_lrs[group]
        if start > high:
            raise ValueError(
                f"start_lr must be at most max_lr; got start_lr={start} and max_lr={high}: raise max_lr or lower "
                "start_lr (by default the optimizer's learning rate)"
            )
        # The curve is symmetric: γ(0) = γ(1) = min_lr is the lowest start there is. The tolerance is for a caller who
        # computed γ(0) in another order of operations.
        if start < low * (1 - 1e-9):
            raise ValueError(
                f"start_lr must be at least γ(0) = γ(1) = {low}, where the whole curve begins; got start_lr={start}: "
                f"raise start_lr, lower {self._width_name} or min_lr, or give t_offset=0 instead of start_lr"
            )
        distance = math.pow(self.widths[group] * math.log(high / start), 1 / self._exponent)
        return max(0.0, 0.5 - distance)


class GaussianPeakLR(_PeakLR):
    """The Gaussian peak schedule: ``γ(t) = γ_max · exp(−(t − 0.5)²/σ²)``, ``σ² = −0.25 / ln(γ_min/γ_max)``.

    Section 5 of "Towards Flatter Loss Surface via Nonmonotonic Learning Rate Scheduling". Training starts at
    ``t_offset = 0.5 − √(−σ² ln(γ_start/γ_max))``, so that the first optimizer step uses exactly ``start_lr``. Progress
    is linear in the scheduler step ``s = 0, 1, …``:

        ``t(s) = t_offset + (1 − t_offset) · s / (total_steps − 1)``

    The last optimizer step, ``s = total_steps − 1``, uses exactly ``min_lr``, as torch's ``OneCycleLR`` does; every
    later one uses it too, with a warning (``OneCycleLR`` raises, which would end a long run in its last minute). The
    rate comes near ``max_lr``, and equals it only if some step has ``t = 0.5`` exactly.

    Call ``scheduler.step()`` after every ``optimizer.step()``. The paper calls this "continuous". Its "discrete"
    version holds a rate for an epoch: set ``steps_per_update`` to the steps per epoch; or leave it at 1, give the
    number of epochs as ``total_steps``, and call ``scheduler.step()`` once per epoch: the rates are the same.

    The defaults are the paper's: ``start_lr`` the usual maximum rate, ``max_lr`` three times that, ``min_lr`` a
    ten-thousandth of ``max_lr``. For MNIST and CIFAR, and for ImageNet in its "naive" version, which runs the whole
    curve, the paper sets the width instead: ``variance=0.0128`` (2 · 0.08²), ``t_offset=0``.

    To resume, make the scheduler first and load the optimizer's state after, as with every torch scheduler: making one
    writes its first rate into the optimizer. A state dict of another class is refused; one of other settings replaces
    them, with a warning.

    The schedule sets the rate; it does not multiply what it finds. It can follow or precede others in
    ``SequentialLR``. ``ChainedScheduler`` refuses it, and a rate that something else has changed is overwritten with a
    warning.

    Args:
        optimizer: the optimizer whose rates are scheduled. A rate that is a tensor is filled in place.
        total_steps: number of scheduler steps in the whole training; with ``steps_per_update`` at least two updates.
        max_lr: ``γ_max``, the rate at the peak. Default: 3 × ``start_lr``; if ``t_offset`` is given, 3 × the group's
            own learning rate. Like the next four, one number for all parameter groups or a list with one per group.
        start_lr: ``γ_start``, the first rate. Default: the group's own learning rate (``initial_lr`` where that is set,
            as on resume).
        min_lr: ``γ_min``, the last rate. Default: ``max_lr`` / 10000.
        t_offset: progress at which to begin, in [0, 0.5], instead of ``start_lr``: the first rate is then
            ``γ(t_offset)``. 0 runs the whole curve.
        variance: ``σ²`` in units of the squared progress, instead of ``min_lr``: the last rate is then ``γ(1)``.
        steps_per_update: number of steps for which each rate is held. Default: 1.
        last_epoch: -1 for a new run (default). To resume one without the scheduler's state dict, the last step that was
            taken: the next one is ``last_epoch + 1``.

    Attributes:
        max_lrs, start_lrs, min_lrs, t_offsets: the settings in force, one number per parameter group.
        widths: ``σ²`` per parameter group.
        peak_step: the step with the highest rate.
        peak_steps: the same per parameter group.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer.
        ValueError: a rate or width is not positive and finite; ``start_lr`` is above ``max_lr`` or below ``γ(0)``;
            ``min_lr`` is not below ``max_lr``; ``start_lr`` is given with ``t_offset`` or ``min_lr`` with ``variance``;
            a list's length is not the number of parameter groups; fewer than two updates.
    """

    _shape = "Gaussian"
    _exponent = 2
    _width_name = "variance"

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        max_lr: float | Sequence[float] | None = None,
        start_lr: float | Sequence[float] | None = None,
        min_lr: float | Sequence[float] | None = None,
        t_offset: float | Sequence[float] | None = None,
        variance: float | Sequence[float] | None = None,
        steps_per_update: int = 1,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer, total_steps, max_lr, start_lr, min_lr, t_offset, variance, steps_per_update, last_epoch
        )


class LaplacianPeakLR(_PeakLR):
    """The Laplacian peak schedule: ``γ(t) = γ_max · exp(−|t − 0.5|/λ)``, ``λ = −0.5 / ln(γ_min/γ_max)``.

    As ``GaussianPeakLR`` in everything but the shape, which has a sharp peak. Training starts at
    ``t_offset = 0.5 + λ ln(γ_start/γ_max)``. The paper found it to work slightly worse than the Gaussian.

    Args:
        optimizer: see ``GaussianPeakLR``, as for all that follow but ``scale``.
        total_steps: number of scheduler steps in the whole training.
        max_lr: ``γ_max``, the rate at the peak. Default: 3 × ``start_lr``.
        start_lr: ``γ_start``, the first rate. Default: the group's own learning rate.
        min_lr: ``γ_min``, the last rate. Default: ``max_lr`` / 10000.
        t_offset: progress at which to begin, in [0, 0.5], instead of ``start_lr``.
        scale: ``λ`` in units of progress, instead of ``min_lr``: the last rate is then ``γ(1)``.
        steps_per_update: number of steps for which each rate is held. Default: 1.
        last_epoch: -1 for a new run (default). To resume one without the scheduler's state dict, the last step that was
            taken: the next one is ``last_epoch + 1``.

    Attributes:
        max_lrs, start_lrs, min_lrs, t_offsets: the settings in force, one number per parameter group.
        widths: ``λ`` per parameter group.
        peak_step: the step with the highest rate.
        peak_steps: the same per parameter group.

    Raises:
        TypeError: ``optimizer`` is not a torch optimizer.
        ValueError: as for ``GaussianPeakLR``, with ``scale`` for ``variance``.
    """

    _shape = "Laplacian"
    _exponent = 1
    _width_name = "scale"

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        *,
        max_lr: float | Sequence[float] | None = None,
        start_lr: float | Sequence[float] | None = None,
        min_lr: float | Sequence[float] | None = None,
        t_offset: float | Sequence[float] | None = None,
        scale: float | Sequence[float] | None = None,
        steps_per_update: int = 1,
        last_epoch: int = -1,
    ) -> None:
        super().__init__(
            optimizer, total_steps, max_lr, start_lr, min_lr, t_offset, scale, steps_per_update, last_epoch
        )


def _positive_int(name: str, value: int) -> int:
    number = as_integer(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive integer; got {value!r}")
    return number


def _per_group(name: str, value: float | Sequence[float], groups: int, *, zero: bool = False) -> list[float]:
    """One checked float per parameter group: ``value`` repeated, or its items. ``zero`` admits 0."""
    values = [float(item) for item in value] if isinstance(value, Sequence) else [float(value)] * groups
    if len(values) != groups:
        raise ValueError(
            f"{name} has {len(values)} values for {groups} parameter groups: give one number, or one per group"
        )
    for number in values:
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise ValueError(f"{name} must be {'at least 0' if zero else 'positive'} and finite; got {number}")
    return values

"""``perturb`` and the handle it returns."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from flatter.attach import state
from flatter.attach.draw import Calendar
from flatter.attach.factors import Factors
from flatter.attach.install import HANDLE, Remover, install
from flatter.attach.noisy_step import NoisyStep
from flatter.attach.rate import shared_tensor_rates
from flatter.attach.supported import check_supported, unwrapped
from flatter.noise.keys import SEED_LIMIT, STREAM_LIMIT, TICK_LIMIT
from flatter.perturbation import Perturbation, fingerprint


def perturb(
    optimizer: Optimizer,
    perturbation: Perturbation | Sequence[Perturbation],
    *,
    seed: int | None = None,
    steps_per_epoch: int | None = None,
    epochs: int | None = None,
    step: int | None = None,
) -> Handle:
    """Makes an optimizer's learning rate random: ``h = η(t) · f``, from its next step on.

    The optimizer, its schedulers and its checkpoints go on as they are: the noise is there only while ``step`` runs.
    Scopes ``"all"`` and ``"group"`` multiply the groups' rate for the step. The finer ones let the optimizer step and
    scale its update afterwards, ``p ← old + f · (new − old)``, which needs a copy of the parameters (one more
    parameter-sized buffer). With 16-bit parameters an update that is lost in rounding stays lost: no later factor
    brings it back.

    The state (seed and step) lives in ``param_groups`` and travels with ``state_dict``. A perturbed optimizer that is
    copied or unpickled is perturbed again. A state that was loaded before attaching is continued.

    Args:
        optimizer: any ``torch.optim.Optimizer``, torch's own or not, whose update is linear in its rate. Parameters
            are identified by name if it was made from ``named_parameters()``, else by position.
        perturbation: one, or several whose factors multiply.
        seed: seed of the noise, 0 ≤ seed < 2**64. Default: the loaded state's, else 0. Same seed, same noise: under
            any sharding, on every rank, after any resume; torch's own generators are neither read nor moved.
        steps_per_epoch: optimizer steps in an epoch; needed by perturbations that act by the epoch.
        epochs: epochs of the whole training; needed by perturbations with a window.
        step: optimizer steps already taken, if training did not start perturbed. Default: the loaded state's, else 0.

    Returns:
        The handle: ``factor``, ``effective_lr``, ``remove``.

    Raises:
        TypeError: not an optimizer, or not perturbations.
        ValueError: an optimizer that cannot be perturbed, that is perturbed already, or lacks what the perturbation
            needs; a number out of range.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"perturb needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    optimizer = unwrapped(optimizer)
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"{type(optimizer).__name__} wraps another optimizer and has no hooks of its own: perturb the inner one"
        )
    if HANDLE in vars(optimizer):
        raise ValueError(
            "this optimizer is perturbed already: give all perturbations in one list, or remove() the first handle"
        )
    perturbations = tuple(perturbation) if isinstance(perturbation, Sequence) else (perturbation,)
    _check_perturbations(optimizer, perturbations, steps_per_epoch, epochs)
    check_supported(optimizer, per_element=any(not (p.is_identity or p.acts_on_rate) for p in perturbations))
    start = _starting_state(optimizer, seed, step, fingerprint(perturbations))
    return Handle(optimizer, perturbations, Calendar(steps_per_epoch, epochs), start, seed)


class Handle:
    """A perturbation at work on an optimizer. Made by :func:`perturb`; a context manager that removes it at its end.

    Attributes:
        optimizer: the optimizer.
        perturbations: the perturbations; their factors multiply.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        perturbations: tuple[Perturbation, ...],
        calendar: Calendar,
        start: state.State,
        asked_seed: int | None,
    ) -> None:
        self.optimizer = optimizer
        self.perturbations = perturbations
        self._asked_seed = asked_seed
        self._factors = Factors(optimizer, perturbations, calendar)
        self._step = _noisy_step(optimizer, self._factors)
        self._set_state(start)
        self._removers: list[Remover] = install(optimizer, self)

    @property
    def step(self) -> int:
        """Optimizer steps taken; the next step is perturbed by ``factor(step)``. Can be set."""
        return self._state.step

    @step.setter
    def step(self, value: int) -> None:
        _check_range("step", value, TICK_LIMIT)
        if not self._removers:
            raise ValueError("this handle was removed: its optimizer has no noise whose step could be set")
        self._set_state(replace(self._state, step=value))

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        return self._state.seed

    def factor(self, step: int | None = None, parameter: Tensor | None = None) -> float | Tensor:
        """The factor of any step, past or future, before any bounds on the rate: it is a pure function of the step.

        Args:
            step: 0-based optimizer step; default: the next one.
            parameter: one of the optimizer's parameters. Not needed where all perturbations have scope ``"all"``.

        Returns:
            A float where no parameter is given, else a float32 tensor that broadcasts over the parameter (over the
            shard that this process holds): one number where one serves, ``(C, 1, …)`` for channels, the full shape
            for elements.

        Raises:
            ValueError: a parameter is needed and not given, is not the optimizer's, or the step is out of range.
        """
        step = self.step if step is None else step
        _check_range("step", step, TICK_LIMIT)
        if parameter is not None:
            return self._factors.of_parameter(self.seed, step, parameter)
        if any(p.scope != "all" for _, p in self._factors.acting(step)):
            raise ValueError(
                "these perturbations have a factor for each group, tensor, channel or element: give parameter="
            )
        return self._factors.rates(self.seed, step, group=0)

    def effective_lr(self, step: int | None = None, rates: Sequence[float] | None = None) -> list[float]:
        """The learning rate of each parameter group with the noise in it.

        Args:
            step: 0-based optimizer step whose factor is used; default: the next one.
            rates: the scheduled rate of each group at that step; default: the groups' present ones.

        Returns:
            One float per group: exact for scopes ``"all"`` and ``"group"``; for finer ones the mean over elements.

        Raises:
            ValueError: the step is out of range, or not one rate per group.
        """
        step = self.step if step is None else step
        _check_range("step", step, TICK_LIMIT)
        groups = self.optimizer.param_groups
        scheduled = [float(group["lr"]) for group in groups] if rates is None else list(rates)
        if len(scheduled) != len(groups):
            raise ValueError(f"rates must have one number per parameter group, {len(groups)}; got {len(scheduled)}")
        return self._factors.effective_lr(self.seed, step, scheduled)

    def remove(self) -> None:
        """Ends the perturbation and leaves no trace: hooks, state and buffers go. A second call does nothing."""
        if not self._removers:
            return
        for remover in reversed(self._removers):
            remover()
        self._removers = []
        state.erase(self.optimizer)
        self._step = _noisy_step(self.optimizer, self._factors)  # lets go of the buffers

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Handle({', '.join(map(repr, self.perturbations))}, seed={self.seed}, step={self.step})"

    # The events that ``install`` subscribes to.

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Puts the noise in; called by the optimizer."""
        if not state.holds(optimizer, self._state):  # an optimizer that loads in its own way told nobody
            self.on_load(optimizer)
        if not _is_priming(optimizer, kwargs):
            self._step.begin(self.seed, self.step, args, kwargs)

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes the noise out and counts the step; called by the optimizer."""
        if self._step.running:
            self._step.finish(self.seed, self.step)
            now = self._state
            self._set_state(state.State(now.step + 1, now.seed, now.fingerprint))

    def on_exception(self) -> None:
        """Takes the noise out of a step that failed, which does not count; called by the optimizer."""
        self._step.abandon()

    def on_load(self, optimizer: Optimizer) -> None:
        """Continues a loaded state; a plain checkpoint has none, and ours goes back in. Called by the optimizer."""
        loaded = state.read(optimizer)
        mark = self._state.fingerprint
        if loaded is not None:
            _warn_if_other(loaded, self._asked_seed, mark)
        self._set_state(replace(loaded or self._state, fingerprint=mark))

    def reattach(self) -> Callable[[Optimizer], object]:
        """How a copy of the optimizer is perturbed as this one is."""
        calendar = self._factors.calendar
        return functools.partial(
            perturb,
            perturbation=self.perturbations,
            steps_per_epoch=calendar.steps_per_epoch,
            epochs=calendar.epochs,
        )

    def _set_state(self, new: state.State) -> None:
        # Kept here too: loading a plain checkpoint replaces the groups, and a group may be added without it.
        self._state = new
        state.write(self.optimizer, new)


def _noisy_step(optimizer: Optimizer, factors: Factors) -> NoisyStep:
    """How the noise gets into a step: an optimizer that knows better (``flatter.optim``) says so itself."""
    make: Callable[[Factors], NoisyStep] | None = getattr(optimizer, "noisy_step", None)
    return NoisyStep(optimizer, factors) if make is None else make(factors)


def _is_priming(optimizer: Optimizer, kwargs: dict[str, Any]) -> bool:
    """Whether torch.distributed.checkpoint makes an empty step, only so that the optimizer allocates its state.

    It says ``step(closure=None)`` with every rate 0. That is no step of the training: it must not count.
    """
    says_none = "closure" in kwargs and kwargs["closure"] is None
    return says_none and all(float(group.get("lr", 1.0)) == 0.0 for group in optimizer.param_groups)


def _check_perturbations(
    optimizer: Optimizer, perturbations: tuple[Perturbation, ...], steps_per_epoch: int | None, epochs: int | None
) -> None:
    if not 0 < len(perturbations) <= STREAM_LIMIT:
        raise ValueError(
            f"perturb composes 1 to {STREAM_LIMIT} perturbations, such as [flatter.leap(0.05), flatter.ralr()]; "
            f"got {len(perturbations)}"
        )
    for name, given in (("steps_per_epoch", steps_per_epoch), ("epochs", epochs)):
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ValueError(f"{name} must be a positive integer, got {given!r}")
    for p in perturbations:
        if not isinstance(p, Perturbation):
            raise TypeError(f"perturb needs perturbations, such as flatter.leap(0.05); got {p!r}")
        if p.needs_steps_per_epoch and steps_per_epoch is None:
            raise ValueError(f"{p} acts by the epoch: give steps_per_epoch=, the number of optimizer steps in one")
        if p.needs_epochs and epochs is None:
            raise ValueError(f"{p} has a window: give epochs=, the number of epochs of the whole training")
        if p.acts_on_rate and any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                f"a parameter group of {type(optimizer).__name__} has no 'lr': there is no rate to perturb"
            )
        if p.scope == "group" and shared_tensor_rates(optimizer):
            raise ValueError("groups that share one tensor as 'lr' cannot have a rate each: give every group its own")


def _starting_state(optimizer: Optimizer, seed: int | None, step: int | None, mark: int) -> state.State:
    for name, value, limit in (("seed", seed, SEED_LIMIT), ("step", step, TICK_LIMIT)):
        if value is not None:
            _check_range(name, value, limit)
    loaded = state.read(optimizer)
    if loaded is None:
        return state.State(step or 0, seed or 0, mark)
    _warn_if_other(loaded, seed, mark)
    return state.State(loaded.step if step is None else step, loaded.seed, mark)


def _warn_if_other(loaded: state.State, asked_seed: int | None, mark: int) -> None:
    """Warns where a loaded state is not of the seed that was asked for, or not of the perturbations attached."""
    if asked_seed not in (None, loaded.seed):
        warnings.warn(
            f"the optimizer carries noise of seed {loaded.seed} from a checkpoint; it is continued, and "
            f"seed={asked_seed} is not used. Leave seed out, or take the flatter_* entries out of the checkpoint's "
            "param_groups",
            stacklevel=4,
        )
    if loaded.fingerprint != mark:
        warnings.warn(
            "the loaded state was saved under another perturbation; training goes on with the one attached here",
            stacklevel=4,
        )


def _check_range(name: str, value: object, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
        raise ValueError(f"{name} must be an integer in [0, 2**{limit.bit_length() - 1}), got {value!r}")

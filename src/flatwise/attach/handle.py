"""``perturb`` and the handle it returns."""

from __future__ import annotations

import functools
import gc
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from flatwise._noise.keys import COUNTER_LIMIT, SEED_LIMIT, STREAM_LIMIT, stream_seed
from flatwise.attach import state
from flatwise.attach.draw import Calendar
from flatwise.attach.factors import Factors
from flatwise.attach.identity import knows_names, parameters_of
from flatwise.attach.install import HANDLE, Call, Remover, install, is_nested
from flatwise.attach.noisy_step import NoisyStep
from flatwise.attach.rate import shared_tensor_rates
from flatwise.attach.shards import check_memory
from flatwise.attach.supported import KNOWN, check_supported, keep_step, unwrapped
from flatwise.distributions import as_integer
from flatwise.perturbation import Perturbation, fingerprint


class SharedNoiseWarning(UserWarning):
    """Two optimizers of this process draw the same factors for their parameters."""


def perturb(
    optimizer: Optimizer,
    perturbation: Perturbation | Sequence[Perturbation],
    *,
    seed: int | None = None,
    stream: int | None = None,
    steps_per_epoch: int | None = None,
    epochs: int | None = None,
    step: int | None = None,
) -> Handle:
    """Make an optimizer's learning rate random: ``h = η(t) · f``, from its next step on.

    The optimizer, its schedulers and its checkpoints stay as they are: the learning rate is noisy only while ``step``
    runs. Scopes ``"all"`` and ``"group"`` multiply the groups' learning rates for the step. Finer scopes let the
    optimizer step and then scale its update, ``p ← old + f · (new − old)``, which needs a copy of the parameters (one
    parameter-sized buffer). With 16-bit parameters, no later factor brings back an update that was lost in rounding.

    The state (seed, stream, step) lives in ``param_groups`` and is saved with ``state_dict``. A copied or unpickled
    optimizer is perturbed like the original. A state that was loaded before attaching is continued.

    Args:
        optimizer: any ``torch.optim.Optimizer`` whose update is linear in the learning rate. Parameters
            are identified by name if it was made from ``named_parameters()``, else by position. Accelerate's
            wrapper is unwrapped: the handle's ``optimizer`` is the inner one.
        perturbation: one perturbation or a sequence (factors multiply).
        seed: seed of the noise, 0 ≤ seed < 2**64. Default: the loaded state's, else 0. The same seed gives the same
            noise under any sharding, on every rank and after every resume; torch's generators are neither read nor
            moved. Runs that differ only in torch's seed therefore share their noise: give each run its own seed.
        stream: tells apart optimizers that share a seed, 0 ≤ stream < 2**64, such as a GAN's two. Default: the loaded
            state's, else 0.
        steps_per_epoch: optimizer steps in an epoch; required by perturbations that draw once per epoch or have a
            window. Default: ``None``.
        epochs: epochs of the whole training; required by perturbations with a window. Default: ``None``.
        step: optimizer steps already taken, if training did not start perturbed. Default: the loaded state's, else 0.

    Returns:
        The handle: ``factor``, ``effective_lr``, ``remove``.

    Raises:
        TypeError: ``optimizer`` is not an optimizer, or ``perturbation`` not a perturbation.
        ValueError: the optimizer cannot be perturbed, is perturbed already, or lacks what the perturbation needs; a
            number is out of range.

    Warns:
        SharedNoiseWarning: another optimizer of this process draws the same factors for its parameters: it has the
            same seed and stream, and parameters of the same names (or positions, if they have no names).
        UserWarning: the loaded state has another seed, stream or perturbation; or it could not be checked whether the
            learning rate has an effect.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"perturb needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    given, optimizer = optimizer, unwrapped(optimizer)
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(f"{type(optimizer).__name__} wraps another optimizer and has no hooks: perturb the inner one")
    if HANDLE in vars(optimizer):
        raise ValueError(
            "this optimizer is perturbed already: give all perturbations in one list, or remove() the first handle"
        )
    perturbations = tuple(perturbation) if isinstance(perturbation, Sequence) else (perturbation,)
    calendar = Calendar(_count("steps_per_epoch", steps_per_epoch), _count("epochs", epochs))
    seed, stream = _integer("seed", seed, SEED_LIMIT), _integer("stream", stream, SEED_LIMIT)
    step = _integer("step", step, COUNTER_LIMIT)
    _check_perturbations(optimizer, perturbations, calendar)
    is_fine = any(not (p.is_identity or p.acts_on_rate) for p in perturbations)
    loaded, named = state.read(optimizer), int(knows_names(optimizer))
    support = check_supported(optimizer, per_element=is_fine, known=None if loaded is None else loaded.support)
    mark = fingerprint(perturbations, calendar.steps_per_epoch, calendar.epochs)
    if loaded is not None:
        _warn_if_other(loaded, seed, stream, mark)
        if is_fine:
            _warn_if_named_otherwise(loaded, optimizer)
        start = loaded._replace(
            step=loaded.step if step is None else step, fingerprint=mark, support=support, named=named
        )
    else:
        start = state.State(step or 0, seed or 0, stream or 0, mark, support, named)
    factors = Factors(optimizer, perturbations, calendar)
    if is_fine:
        factors.refresh()  # raises if the parameters cannot be told apart
        check_memory(parameters_of(optimizer))
        _warn_if_shared(optimizer, factors, start)
    handle = Handle(optimizer, factors, start, seed, stream)
    keep_step(given)
    return handle


def handle_of(optimizer: Optimizer) -> Handle | None:
    """The handle of a perturbed optimizer, such as a copy of one; ``None`` if the optimizer is not perturbed."""
    handle: Handle | None = vars(optimizer).get(HANDLE)
    return handle


class Handle:
    """An optimizer's perturbation, made by :func:`perturb`. As a context manager it removes the perturbation at exit.

    Copying a handle (``copy.deepcopy``, ``pickle``) copies its optimizer too.
    """

    # No other attributes: handle.perturbation = ... must not be accepted and do nothing.
    __slots__ = (
        "__weakref__",
        "_asked_seed",
        "_asked_stream",
        "_calls",
        "_factors",
        "_nested",
        "_optimizer",
        "_removers",
        "_state",
        "_step",
    )
    _state: state.State

    def __init__(
        self, optimizer: Optimizer, factors: Factors, start: state.State, seed: int | None, stream: int | None
    ) -> None:
        self._optimizer = optimizer
        self._asked_seed, self._asked_stream = seed, stream
        self._factors = factors
        self._step = _noisy_step(optimizer, factors, start.support)
        self._calls = 0  # of optimizer.step that have not returned
        self._nested = 0  # hooks called again inside the step
        self._removers: list[Remover] = []
        self._set_state(start)
        self._removers = install(optimizer, self)
        _LIVE.add(self)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer."""
        return self._optimizer

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        """The perturbations; their factors multiply. To change them, :meth:`remove` the handle and perturb again."""
        return self._factors.perturbations

    @property
    def step(self) -> int:
        """Optimizer steps taken; the next step is perturbed by ``factor(step)``. Can be set.

        Raises:
            ValueError: on setting, if the number is out of range or the handle was removed.
        """
        return self._state.step

    @step.setter
    def step(self, value: int) -> None:
        number = _in_range("step", value, COUNTER_LIMIT)
        if not self._removers:
            raise ValueError(
                "cannot set step: this handle was removed. Call flatwise.perturb(optimizer, ..., step=...)"
            )
        self._set_state(self._state._replace(step=number))

    @property
    def seed(self) -> int:
        """Seed of the noise."""
        return self._state.seed

    @property
    def stream(self) -> int:
        """The number that tells optimizers of the same seed apart."""
        return self._state.stream

    @property
    def in_step(self) -> bool:
        """Whether the optimizer is in the middle of a step."""
        return self._step.running

    def factor(self, step: int | None = None, parameter: Tensor | None = None) -> float | Tensor:
        """The factor of any step, past or future, before bounds on the learning rate; a pure function of the step.

        Args:
            step: 0-based optimizer step. Default: the next one.
            parameter: one of the optimizer's parameters. May be omitted if all perturbations have scope ``"all"``.

        Returns:
            Without a parameter a float, else a float32 tensor that broadcasts over the parameter (or the shard that
            this process holds): ``()`` for scopes ``"all"`` and ``"group"``, one element for ``"tensor"``,
            ``(C, 1, …)`` for ``"channel"``, the full shape for ``"element"``.

        Raises:
            ValueError: the parameter is missing or not the optimizer's, or the step is out of range.
        """
        step = self.step if step is None else _in_range("step", step, COUNTER_LIMIT)
        if parameter is not None:
            return self._factors.of_parameter(self._noise_seed, step, parameter)
        if any(p.scope != "all" for _, p in self._factors.acting(step)):
            raise ValueError(
                "there is no one factor: these perturbations draw one for each group, tensor, channel or element: give "
                "parameter="
            )
        return self._factors.rates(self._noise_seed, step, group=0)

    def effective_lr(self, step: int | None = None, rates: Sequence[float] | None = None) -> list[float]:
        """The noisy learning rate of each parameter group.

        Args:
            step: 0-based optimizer step whose factor is used. Default: the next one.
            rates: the scheduled learning rate of each group at that step. Default: the groups' present rates.

        Returns:
            One float per group: exact for scopes ``"all"`` and ``"group"``, the expected value for finer ones.

        Raises:
            ValueError: the step is out of range, or ``rates`` does not have one number per group.
        """
        step = self.step if step is None else _in_range("step", step, COUNTER_LIMIT)
        groups = self.optimizer.param_groups
        scheduled = [float(group["lr"]) for group in groups] if rates is None else list(rates)
        if len(scheduled) != len(groups):
            raise ValueError(f"rates must have one number per parameter group, {len(groups)}; got {len(scheduled)}")
        return self._factors.effective_lr(self._noise_seed, step, scheduled)

    def remove(self) -> None:
        """Remove the perturbation completely: hooks, state and buffers. A second call does nothing."""
        if not self._removers:
            return
        self._step.abandon()
        for remover in reversed(self._removers):
            remover()
        self._removers = []
        _LIVE.discard(self)
        state.erase(self.optimizer)
        self._step = _noisy_step(self.optimizer, self._factors, self._state.support)  # releases the buffers

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        stream = f", stream={self.stream}" if self.stream else ""
        return f"Handle({', '.join(map(repr, self.perturbations))}, seed={self.seed}{stream}, step={self.step})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._removers:
            return _handle_of_copy, (self.optimizer,)
        return _removed, (self.optimizer, self.perturbations, self._factors.calendar, self._state)

    # The events that ``install`` subscribes to.

    def enter_step(self) -> None:
        """Abandon a last step that never reported its end; called when ``optimizer.step`` is."""
        if self._calls == 0 and self._step.running:
            self._step.abandon()
        self._calls += 1

    def before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Puts the noise in; called by the optimizer."""
        if self._step.running:
            if self._calls or is_nested(optimizer):  # super().step(): the outer step is the one that counts
                self._nested += 1
                return None
            self._step.abandon()
        self._nested = 0
        if not state.holds(optimizer, self._state):  # the optimizer loaded a state without calling the load hooks
            self.on_load(optimizer)
        if _is_priming(optimizer, kwargs):
            return None
        return self._step.begin(self._noise_seed, self.step, args, kwargs)

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Takes the noise out and counts the step; called by the optimizer."""
        if self._nested and (self._calls or is_nested(optimizer)):
            self._nested -= 1
        elif self._step.running:
            self._finish()

    def leave_step(self, *, failed: bool) -> None:
        """Ends a step whose last hook was not called; called when ``optimizer.step`` returns or raises."""
        self._calls = max(0, self._calls - 1)
        if self._calls == 0 and self._step.running:
            if failed:
                self._step.abandon()  # it does not count
            else:
                self._finish()

    def _finish(self) -> None:
        self._step.finish()
        step, *rest = self._state
        self._state = state.State(step + 1, *rest)
        state.write_step(self.optimizer, self._state)

    def on_load(self, optimizer: Optimizer) -> None:
        """Continue a loaded state; write ours back after a plain checkpoint. Called by the optimizer."""
        loaded = state.read(optimizer)
        mark = self._state.fingerprint
        if loaded is not None:
            _warn_if_other(loaded, self._asked_seed, self._asked_stream, mark)
            if self._factors.has_fine:
                _warn_if_named_otherwise(loaded, optimizer)
        named = int(knows_names(optimizer))
        self._set_state((loaded or self._state)._replace(fingerprint=mark, support=self._state.support, named=named))

    def reattach(self) -> Callable[[Optimizer], object]:
        """A picklable function that perturbs a copy of the optimizer in the same way."""
        return functools.partial(
            _attach_to_copy, perturbations=self.perturbations, calendar=self._factors.calendar, saved=self._state
        )

    @property
    def _noise_seed(self) -> int:
        return stream_seed(self._state.seed, self._state.stream)

    def _set_state(self, new: state.State) -> None:
        # Kept here too: loading a plain checkpoint replaces the groups, and a group may be added without it.
        self._state = new
        state.write(self.optimizer, new)


# Attached handles, to find those that share their noise.
_LIVE: weakref.WeakSet[Handle] = weakref.WeakSet()


def _handle_of_copy(optimizer: Optimizer) -> Handle:
    handle = handle_of(optimizer)
    assert handle is not None  # a copy of a perturbed optimizer is perturbed
    return handle


def _attach_to_copy(
    optimizer: Optimizer, perturbations: tuple[Perturbation, ...], calendar: Calendar, saved: state.State
) -> None:
    """Perturb a copy like the original, without repeating the original's checks."""
    start = state.read(optimizer) or saved
    Handle(optimizer, Factors(optimizer, perturbations, calendar), start, None, None)


def _removed(
    optimizer: Optimizer, perturbations: tuple[Perturbation, ...], calendar: Calendar, last: state.State
) -> Handle:
    """A copy of a removed handle: it still computes factors, but perturbs nothing."""
    handle = Handle.__new__(Handle)
    handle._optimizer = optimizer
    handle._asked_seed = handle._asked_stream = None
    handle._factors = Factors(optimizer, perturbations, calendar)
    handle._step = NoisyStep(optimizer, handle._factors)
    handle._calls = handle._nested = 0
    handle._removers = []
    handle._state = last
    return handle


def _noisy_step(optimizer: Optimizer, factors: Factors, support: int) -> NoisyStep:
    """The optimizer's own way of adding noise (``flatwise.optim``), or the general one."""
    make: Callable[[Factors], NoisyStep] | None = getattr(optimizer, "noisy_step", None)
    return NoisyStep(optimizer, factors, moves_all=support != KNOWN) if make is None else make(factors)


def _warn_if_shared(optimizer: Optimizer, factors: Factors, start: state.State) -> None:
    """Warn if another perturbed optimizer draws the same factors for its parameters."""
    if not _is_ignored(SharedNoiseWarning) and _shares_noise(optimizer, factors, start):
        gc.collect()  # an optimizer that is no longer referenced may survive in a reference cycle
        if _shares_noise(optimizer, factors, start):
            warnings.warn(
                f"another optimizer of this process draws the same factors for its parameters: it has seed={start.seed}"
                f", stream={start.stream}, and parameters of the same names or positions. If they train together, give "
                f"one of them another stream, such as stream={start.stream + 1}; if they are two runs, give each its "
                "own seed. To silence this, filter flatwise.SharedNoiseWarning",
                SharedNoiseWarning,
                stacklevel=4,
            )


def _is_ignored(category: type[Warning]) -> bool:
    """Whether a filter ignores all warnings of a category: then the check, which may take long, can be skipped."""
    for action, message, of, module, _ in warnings.filters:
        if issubclass(category, of) and message is None and module is None:
            return action == "ignore"
    return False


def _shares_noise(optimizer: Optimizer, factors: Factors, start: state.State) -> bool:
    return any(
        (other.seed, other.stream) == (start.seed, start.stream)
        and other.optimizer is not optimizer
        and factors.shares_draws(other._factors)
        for other in list(_LIVE)
    )


def _is_priming(optimizer: Optimizer, kwargs: dict[str, Any]) -> bool:
    """Whether torch.distributed.checkpoint makes an empty step, only to let the optimizer allocate its state.

    It calls ``step(closure=None)`` with every learning rate 0. This is not a step of the training and must not count.
    """
    closure_is_none = "closure" in kwargs and kwargs["closure"] is None
    return closure_is_none and all(float(group.get("lr", 1.0)) == 0.0 for group in optimizer.param_groups)


def _check_perturbations(optimizer: Optimizer, perturbations: tuple[Perturbation, ...], calendar: Calendar) -> None:
    if not 0 < len(perturbations) <= STREAM_LIMIT:
        raise ValueError(
            f"perturb composes 1 to {STREAM_LIMIT} perturbations, such as [flatwise.leap(0.05), flatwise.ralr()]; "
            f"got {len(perturbations)}"
        )
    for p in perturbations:
        if not isinstance(p, Perturbation):
            raise TypeError(f"perturb needs perturbations, such as flatwise.leap(0.05); got {p!r}")
        if p.needs_steps_per_epoch and calendar.steps_per_epoch is None:
            raise ValueError(f"{p} depends on the epoch: give steps_per_epoch=, the number of optimizer steps in one")
        if p.needs_epochs and calendar.epochs is None:
            raise ValueError(f"{p} has a window: give epochs=, the number of epochs of the whole training")
        if p.acts_on_rate and any(group.get("lr") is None for group in optimizer.param_groups):
            raise ValueError(
                f"a parameter group of {type(optimizer).__name__} has no 'lr', so there is no rate to perturb: give "
                "every group an 'lr'"
            )
        if p.scope == "group" and shared_tensor_rates(optimizer):
            raise ValueError(
                "scope 'group' needs a learning rate for each group, but groups that share one tensor as 'lr' have one "
                "rate: give every group its own tensor"
            )


def _warn_if_other(loaded: state.State, seed: int | None, stream: int | None, mark: int) -> None:
    """Warn if a loaded state has another seed or stream than requested, or belongs to other perturbations."""
    for name, asked, carried in (("seed", seed, loaded.seed), ("stream", stream, loaded.stream)):
        if asked not in (None, carried):
            warnings.warn(
                f"the optimizer carries noise of {name} {carried} from a checkpoint and continues it; "
                f"{name}={asked} is not used. Omit {name}, or delete the flatwise_* entries from the checkpoint's "
                "param_groups",
                stacklevel=4,
            )
    if loaded.fingerprint != mark:
        warnings.warn(
            "the loaded state was saved under another perturbation, or with another steps_per_epoch or epochs; "
            "training goes on with those given here",
            stacklevel=4,
        )


def _warn_if_named_otherwise(loaded: state.State, optimizer: Optimizer) -> None:
    """Warn if the parameters of a loaded state were identified by name and now are not, or the other way round."""
    if loaded.named != knows_names(optimizer):
        then, now = ("name", "position") if loaded.named else ("position", "name")
        warnings.warn(
            f"the loaded state was saved with parameters identified by {then}, and this optimizer identifies them by "
            f"{now}: the noise goes on as another. Make the optimizer from the same parameters as before, "
            f"{'model.named_parameters()' if loaded.named else 'model.parameters()'}",
            stacklevel=4,
        )


def _count(name: str, value: object) -> int | None:
    """A positive integer or ``None``, checked."""
    number = None if value is None else as_integer(value)
    if value is not None and (number is None or number < 1):
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return number


def _integer(name: str, value: object, limit: int) -> int | None:
    return None if value is None else _in_range(name, value, limit)


def _in_range(name: str, value: object, limit: int) -> int:
    """An integer in [0, limit), checked; numpy's integers become Python's, which any checkpoint can hold."""
    number = as_integer(value)
    if number is None or not 0 <= number < limit:
        raise ValueError(f"{name} must be an integer in [0, 2**{limit.bit_length() - 1}), got {value!r}")
    return number

"""The handle of a perturbed optimizer, and the hooks that make every step noisy."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatwise._attach.factors import Calendar, Factors
from flatwise._attach.parameters import knows_names
from flatwise._attach.state import State, warn_if_other
from flatwise._attach.step import NoisyStep
from flatwise._attach.support import KNOWN
from flatwise._noise.keys import COUNTER_LIMIT, stream_seed
from flatwise.distributions import as_integer
from flatwise.perturbation import Perturbation

HANDLE = "_flatwise_handle"

Remover = Callable[[], object]


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
        "_asked",
        "_calls",
        "_factors",
        "_nested",
        "_noise_seed",
        "_optimizer",
        "_removers",
        "_state",
        "_step",
    )

    def __init__(self, optimizer: Optimizer, factors: Factors, state: State, step: NoisyStep) -> None:
        self._optimizer = optimizer
        self._factors = factors
        self._step = step
        self._state = state
        self._noise_seed = stream_seed(state.seed, state.stream)
        self._asked: tuple[int | None, int | None] = None, None  # seed and stream, as the user gave them
        self._calls = 0  # of optimizer.step that have not returned
        self._nested = 0  # hooks called again inside the step
        self._removers: list[Remover] = []

    @classmethod
    def _attached(
        cls,
        optimizer: Optimizer,
        factors: Factors,
        state: State,
        *,
        asked: tuple[int | None, int | None] = (None, None),
    ) -> Handle:
        """Perturb an optimizer from now on, in its own way if it has one, as those of ``flatwise.optim`` do."""
        make: Callable[[Factors], NoisyStep] | None = getattr(optimizer, "noisy_step", None)
        is_known = state.support == KNOWN
        step = NoisyStep(optimizer, factors, moves_all=not is_known) if make is None else make(factors)
        handle = cls(optimizer, factors, state, step)
        handle._asked = asked
        handle._set_state(state)
        handle._removers = _install(optimizer, handle)
        LIVE.add(handle)
        return handle

    @classmethod
    def _removed(
        cls, optimizer: Optimizer, perturbations: tuple[Perturbation, ...], calendar: Calendar, state: State
    ) -> Handle:
        """A copy of a removed handle: it still computes factors, but perturbs nothing."""
        factors = Factors(optimizer, perturbations, calendar)
        return cls(optimizer, factors, state, NoisyStep(optimizer, factors))

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
        number = in_range("step", value, COUNTER_LIMIT)
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
        return self._step.noise is not None

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
        step = self.step if step is None else in_range("step", step, COUNTER_LIMIT)
        if parameter is not None:
            return self._factors.of_parameter(self._noise_seed, step, parameter)
        noise = self._factors.at(self._noise_seed, step)
        if any(acting.perturbation.scope != "all" for acting in (*noise.coarse, *noise.fine)):
            raise ValueError(
                "there is no one factor: these perturbations draw one for each group, tensor, channel or element: give "
                "parameter="
            )
        return noise.rate_factor(group=0)

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
        step = self.step if step is None else in_range("step", step, COUNTER_LIMIT)
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
        self._step.release()
        for remover in reversed(self._removers):
            remover()
        self._removers = []
        LIVE.discard(self)
        State.erase(self.optimizer)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        stream = f", stream={self.stream}" if self.stream else ""
        return f"Handle({', '.join(map(repr, self.perturbations))}, seed={self.seed}{stream}, step={self.step})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._removers:
            return handle_of, (self.optimizer,)  # a copy of a perturbed optimizer is perturbed
        return Handle._removed, (self.optimizer, self.perturbations, self._factors.calendar, self._state)

    # What the hooks call, in this order.

    def _enter_step(self, hooks: tuple[int, int]) -> None:
        """``optimizer.step`` is called: abandon a last step that never reported its end."""
        if not self._removers:  # a scheduler may have wrapped our wrapper, which then stays when the handle is removed
            return
        # Our hooks (their ids) stand next to the step, because the user's hooks must see the clean rates.
        before, after = hooks
        pre_hooks: Any = self._optimizer._optimizer_step_pre_hooks  # OrderedDicts, whatever torch's annotation says
        post_hooks: Any = self._optimizer._optimizer_step_post_hooks
        if next(reversed(pre_hooks)) != before:
            pre_hooks.move_to_end(before)
        if next(iter(post_hooks)) != after:
            post_hooks.move_to_end(after, last=False)
        if self._calls == 0 and self._step.noise is not None:
            self._step.abandon()
        self._calls += 1

    def before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put the noise in. Returns new arguments of the optimizer's own step, or ``None`` to keep them."""
        if self._step.noise is not None:
            if self._calls or _is_nested(optimizer):  # super().step(): the outer step is the one that counts
                self._nested += 1
                return None
            self._step.abandon()
        self._nested = 0
        if not self._state.is_in(optimizer):  # the optimizer loaded a state without calling the load hooks
            self._on_load(optimizer)
        if kwargs and _is_priming(optimizer, kwargs):
            return None
        return self._step.begin(self._noise_seed, self._state.step, args, kwargs)

    def after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the noise out and count the step."""
        if self._nested and (self._calls or _is_nested(optimizer)):
            self._nested -= 1
        elif self._step.noise is not None:
            self._finish()

    def _leave_step(self, *, failed: bool = False) -> None:
        """``optimizer.step`` returns or raises: end a step whose last hook was not called."""
        self._calls = max(0, self._calls - 1)
        if self._calls == 0 and self._step.noise is not None:
            if failed:
                self._step.abandon()  # it does not count
            else:
                self._finish()

    def _finish(self) -> None:
        self._step.finish()
        step, *rest = self._state
        self._state = State(step + 1, *rest)
        self._state.write_step(self._optimizer)

    def _on_load(self, optimizer: Optimizer) -> None:
        """A state was loaded: continue it; after a plain checkpoint write ours back."""
        loaded = State.read(optimizer)
        mark = self._state.fingerprint
        if loaded is not None:
            warn_if_other(loaded, optimizer, *self._asked, mark, per_parameter=self._factors.is_fine)
        named = int(knows_names(optimizer))
        self._set_state((loaded or self._state)._replace(fingerprint=mark, support=self._state.support, named=named))

    def _set_state(self, new: State) -> None:
        # Kept here too: loading a plain checkpoint replaces the groups, and a group may be added without it.
        self._state = new
        self._noise_seed = stream_seed(new.seed, new.stream)
        new.write(self.optimizer)


# Attached handles, to find those that share their noise.
LIVE: weakref.WeakSet[Handle] = weakref.WeakSet()


def _install(optimizer: Optimizer, handle: Handle) -> list[Remover]:
    """Install hooks that also cover exceptions, copies and loaded checkpoints.

    Returns:
        Functions that remove everything, if called in reverse order.
    """
    before = optimizer.register_step_pre_hook(_untraced(handle.before_step))
    after = optimizer.register_step_post_hook(_untraced(handle.after_step))
    loaded = optimizer.register_load_state_dict_post_hook(handle._on_load)
    vars(optimizer)[HANDLE] = handle
    return [
        before.remove,
        after.remove,
        loaded.remove,
        lambda: vars(optimizer).pop(HANDLE, None),
        _guard_step(optimizer, handle, (before.id, after.id)),
        _keep_on_copy(optimizer, handle),
    ]


def _untraced(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that ``torch.compile(optimizer.step)`` does not trace: its keys are numpy's, and new in every step."""

    def untraced(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Only when tracing, because the wrapper imports the compiler and takes longer than the hook itself.
        if torch.compiler.is_compiling():
            hook_as_it_is = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
            return hook_as_it_is(optimizer, args, kwargs)
        return hook(optimizer, args, kwargs)

    return untraced


def _guard_step(optimizer: Optimizer, handle: Handle, hooks: tuple[int, int]) -> Remover:
    """Wrap ``optimizer.step``, as torch's schedulers do, because hooks alone do not see exceptions."""
    own = vars(optimizer).get("step")
    inner = optimizer.step

    @functools.wraps(inner)  # takes over the marks that schedulers leave on it
    def step(_: Optimizer, *args: Any, **kwargs: Any) -> Any:
        enter, leave = handle._enter_step, handle._leave_step
        if torch.compiler.is_compiling():
            enter, leave = map(torch.compiler.disable, (enter, leave))
        enter(hooks)
        try:
            result = inner(*args, **kwargs)
        except BaseException:
            handle._leave_step(failed=True)
            raise
        leave()
        return result

    guard = types.MethodType(step, optimizer)
    vars(optimizer)["step"] = guard

    def remove() -> None:
        # A scheduler may have wrapped ours since; then ours stays inside and does nothing.
        if vars(optimizer).get("step") is guard:
            del vars(optimizer)["step"]
            if own is not None:
                vars(optimizer)["step"] = own

    return remove


def _keep_on_copy(optimizer: Optimizer, handle: Handle) -> Remover:
    """Perturb copies like the original, because copying or pickling an optimizer drops its hooks."""

    def reduce(protocol: int) -> tuple[Any, ...]:
        reduced = type(optimizer).__reduce_ex__(optimizer, protocol)
        assert isinstance(reduced, tuple)
        rebuild, args, inner, *_ = reduced
        return _rebuild, (rebuild, args, inner, handle.perturbations, handle._factors.calendar, handle._state)

    vars(optimizer)["__reduce_ex__"] = reduce
    return lambda: vars(optimizer).pop("__reduce_ex__", None)


def _rebuild(
    rebuild: Callable[..., Optimizer],
    args: tuple[Any, ...],
    inner: dict[str, Any],
    perturbations: tuple[Perturbation, ...],
    calendar: Calendar,
    saved: State,
) -> Optimizer:
    """A copy of a perturbed optimizer, perturbed without repeating the original's checks."""
    optimizer = rebuild(*args)
    optimizer.__setstate__(inner)
    Handle._attached(optimizer, Factors(optimizer, perturbations, calendar), State.read(optimizer) or saved)
    return optimizer


def _is_nested(optimizer: Optimizer) -> bool:
    """Whether a step of this optimizer is running further up the stack than the one whose hooks are being called.

    Torch wraps hooks around the ``step`` of each class, so a subclass that calls ``super().step()`` calls them twice.
    """
    frame: types.FrameType | None = sys._getframe(1)
    steps = 0
    while frame is not None and steps < 2:
        if frame.f_code is _HOOKED_STEP and frame.f_locals.get("self") is optimizer:
            steps += 1
        frame = frame.f_back
    return steps == 2


_HOOKED_STEP = Optimizer.profile_hook_step(lambda: None).__code__


def _is_priming(optimizer: Optimizer, kwargs: dict[str, Any]) -> bool:
    """Whether torch.distributed.checkpoint makes an empty step, only to let the optimizer allocate its state.

    It calls ``step(closure=None)`` with every learning rate 0. This is not a step of the training and must not count.
    """
    closure_is_none = "closure" in kwargs and kwargs["closure"] is None
    return closure_is_none and all(float(group.get("lr", 1.0)) == 0.0 for group in optimizer.param_groups)


def in_range(name: str, value: object, limit: int) -> int:
    """An integer in [0, limit), checked; numpy's integers become Python's, which any checkpoint can hold.

    Raises:
        ValueError: it is not such an integer.
    """
    number = as_integer(value)
    if number is None or not 0 <= number < limit:
        raise ValueError(f"{name} must be an integer in [0, 2**{limit.bit_length() - 1}), got {value!r}")
    return number

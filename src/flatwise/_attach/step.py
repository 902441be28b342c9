"""One noisy optimizer step: what happens before and after the optimizer's own step."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatwise._attach.factors import Bounds, Factors, Noise, blend_, bounded
from flatwise._attach.parameters import Block, check_memory, local_part, parameters_of
from flatwise._kernels.backend import Blender, can_blend, compile_ahead
from flatwise._kernels.forms import Piece

UNBOUNDED: Bounds = (-math.inf, math.inf)
_form = attrgetter("dtype", "device", "shape")


def unhooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """A torch optimizer's ``step`` without the hooks that torch wraps around it when one is first made."""
    return step.__wrapped__ if getattr(step, "hooked", False) else step  # type: ignore[attr-defined]


class NoisyStep:
    """Add the noise before a step and remove it after; between steps the optimizer has no trace of it.

    Args:
        optimizer: the optimizer.
        factors: what its perturbations draw.
        moves_all: whether the optimizer may move parameters that have no gradient. Torch's own never do.

    Attributes:
        noise: what acts at the present step; ``None`` between steps.
    """

    def __init__(self, optimizer: Optimizer, factors: Factors, *, moves_all: bool = False) -> None:
        self._optimizer = optimizer
        self._factors = factors
        self._moves_all = moves_all
        self._rates = RateLoan()
        self._copied: Copied | None = None  # in this step
        self._closure_is_first = False
        self._prepared_for = factors.changes
        self.noise: Noise | None = None
        self.release()

    def release(self) -> None:
        """Release the buffers, and all that was prepared for the optimizer's parameters."""
        self._slots: dict[Tensor, Slot] = {}
        self._moving = Moving([], [], [], [])
        self._blenders: dict[int, Blender] = {}

    def begin(
        self, seed: int, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before the optimizer's own step: make the rates noisy, and copy the parameters whose updates are scaled.

        Args:
            seed, step: the factors are a function of these.
            args, kwargs: the arguments of the step, the optimizer first.

        Returns:
            The arguments for the optimizer's own step, with closures that see the clean rates; ``None`` if unchanged.

        Raises:
            RuntimeError: a CUDA graph is being captured.
            ValueError: the parameters cannot be told apart, or this process cannot tell which elements it holds.
        """
        if _is_capturing():
            raise RuntimeError(
                "a perturbed optimizer step cannot be captured in a CUDA graph, which would replay one draw forever: "
                "capture the forward and backward passes only, and step outside the graph"
            )
        noise = self.noise = self._factors.at(seed, step)
        self._copied = None
        has_closure = any(map(_is_closure, (*args[1:], *kwargs.values())))
        try:
            # Torch's own optimizers call a closure before all else; it makes the gradients, and parameters are copied
            # when it returns. Others may move parameters first.
            if noise.fine and (self._moves_all or not has_closure):
                self._refresh_and_copy(noise)
            if noise.coarse:
                self._lend_rates(noise)
        except BaseException:
            self.abandon()
            raise
        if not (has_closure and (noise.coarse or noise.fine)):
            return None
        self._closure_is_first = True
        args = (args[0], *(self._shielded(a) if _is_closure(a) else a for a in args[1:]))
        return args, {key: self._shielded(a) if _is_closure(a) else a for key, a in kwargs.items()}

    def finish(self) -> None:
        """After the optimizer's own step: restore the rates and scale the updates."""
        self._rates.restore()
        if self._copied is not None and self.noise is not None:
            with torch.no_grad():
                self._blend(self.noise, self._copied)
        self.noise = self._copied = None

    def abandon(self) -> None:
        """After an exception inside the step: restore the rates and scale nothing."""
        self._rates.restore()
        self.noise = self._copied = None

    def _lend_rates(self, noise: Noise) -> None:
        for index, group in enumerate(self._optimizer.param_groups):
            self._rates.lend(group, noise.rate_factors(index))

    def _shielded(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """A closure that runs as between two steps: it is no part of the update that is perturbed.

        It finds the scheduled rates, and what it writes into them stays written. What the first one writes into
        parameters, such as an average or a projection, is not scaled.
        """

        @functools.wraps(closure, updated=())
        def shielded(*args: Any, **kwargs: Any) -> Any:
            noise = self.noise
            self._rates.restore()
            copies = self._closure_is_first and noise is not None and bool(noise.fine) and self._is_unmoved()
            self._closure_is_first = False
            try:
                result = closure(*args, **kwargs)
                if copies and self.noise is not None:
                    self._refresh_and_copy(self.noise)
                return result
            finally:
                if self.noise is not None and self.noise.coarse:
                    self._lend_rates(self.noise)

        return shielded

    def _is_unmoved(self) -> bool:
        """Whether the optimizer has not moved anything yet in this step."""
        return self._copied is None or all(torch.equal(slot.old, slot.local) for slot in self._moving.slots)

    def _refresh_and_copy(self, noise: Noise) -> None:
        """Copy what may move, as it is now."""
        changes = self._factors.refresh()
        if changes != self._prepared_for:
            self.release()
            self._prepared_for = changes
            check_memory(parameters_of(self._optimizer))
        self._copy(noise, every=self._moves_all)

    def _copy(self, noise: Noise, *, every: bool) -> None:
        """Copy the parameters that may move (those with a gradient, or every one) into their buffers."""
        groups = self._optimizer.param_groups
        moving = [p for group in groups for p in group["params"] if every or p.grad is not None]
        if list(map(id, moving)) != self._moving.ids or not _fit(self._moving.slots):
            self._moving = self._prepared(moving)
        copied = self._copied = self._divided(noise)
        if copied.blender is not None:
            copied.blender.copy(copied.pieces)
        if copied.rest:
            with torch.no_grad():
                torch._foreach_copy_([slot.old for slot in copied.rest], [slot.local for slot in copied.rest])

    def _prepared(self, parameters: list[Tensor]) -> Moving:
        """The slots of some parameters; made, with kernels compiled, before the optimizer changes anything."""
        for parameter in parameters:
            slot = self._slots.get(parameter)
            if slot is None or not _fit([slot]):
                slot = self._slots[parameter] = Slot.of(parameter)
                for form in filter(None, self._factors.forms.values() if slot.is_fast else ()):
                    compile_ahead(form, slot.local)
        slots = [self._slots[parameter] for parameter in parameters]
        fast = [slot for slot in slots if slot.is_fast]
        ids = self._factors.ids([slot.parameter for slot in fast])
        pieces = [Piece(slot.local, slot.old, slot.block.start or 0, i) for slot, i in zip(fast, ids, strict=True)]
        return Moving(list(map(id, parameters)), slots, pieces, [slot for slot in slots if not slot.is_fast])

    def _divided(self, noise: Noise) -> Copied:
        """The moving parameters, divided into those that the kernels can scale at this step and the rest."""
        acting, moving = noise.by_kernel, self._moving
        if acting is None or acting.form is None:
            return Copied(None, [], moving.slots)
        if not moving.pieces:
            return Copied(None, [], moving.rest)
        blender = self._blenders.get(acting.position)
        if blender is None:
            blender = self._blenders[acting.position] = Blender(acting.form, acting.position)
        return Copied(blender, moving.pieces, moving.rest)

    def _blend(self, noise: Noise, copied: Copied) -> None:
        """Scale the updates: with the kernels where they can, else with the reference."""
        if copied.blender is not None and noise.by_kernel is not None:
            copied.blender.blend(copied.pieces, noise.by_kernel.seed, noise.by_kernel.counter)
        if copied.rest:
            drawn = noise.draws(self._factors.ids([slot.parameter for slot in copied.rest]))
            for slot, of_parameter in zip(copied.rest, drawn, strict=True):
                blend_(slot.local, slot.old, of_parameter, slot.block)


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """A parameter whose update is scaled after the step.

    Attributes:
        parameter: the parameter.
        local: what this process holds of it, sharing memory.
        block: where that lies in the whole tensor.
        old: its values before the step.
        form: dtype, device and shape of ``local`` when the slot was made.
        stride: its strides then.
        is_fast: whether the kernels know it.
    """

    parameter: Tensor
    local: Tensor
    block: Block
    old: Tensor
    form: tuple[object, ...]
    stride: tuple[int, ...]
    is_fast: bool

    @staticmethod
    def of(parameter: Tensor) -> Slot:
        """A slot with a new buffer.

        Raises:
            ValueError: see :func:`flatwise._attach.parameters.local_part`.
        """
        local, block = local_part(parameter)
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside of it
            old = torch.empty_like(local)
        is_fast = block.start is not None and can_blend(local, old)
        return Slot(parameter, local, block, old, _form(local), local.stride(), is_fast)


class Moving(NamedTuple):
    """The parameters that may move in a step, prepared; mostly the same as in the last step.

    Attributes:
        ids: their ids in this process.
        slots: their slots.
        pieces: those that the kernels know.
        rest: the slots that they do not know.
    """

    ids: list[int]
    slots: list[Slot]
    pieces: list[Piece]
    rest: list[Slot]


class Copied(NamedTuple):
    """The parameters that a step has copied, and who scales their updates.

    Attributes:
        blender: scales the pieces; ``None`` if there are none.
        pieces: those that the kernels scale.
        rest: the slots that the reference scales.
    """

    blender: Blender | None
    pieces: list[Piece]
    rest: list[Slot]


def _fit(slots: list[Slot]) -> bool:
    """Whether buffers still fit: a parameter that was moved or resized needs another one."""
    for slot in slots:
        now = slot.local
        if now is not slot.parameter:  # a shard: its storage may have been exchanged under the DTensor
            now = local_part(slot.parameter)[0]
            if now.data_ptr() != slot.local.data_ptr():
                return False
        if _form(now) != slot.form or now.stride() != slot.stride:
            return False
    return True


class RateLoan:
    """The present noisy rates and their clean values. A tensor is filled in place, never replaced."""

    def __init__(self) -> None:
        self._loans: list[_Loan] = []

    def lend(self, group: dict[str, Any], factors: Sequence[tuple[float, Bounds]]) -> None:
        """Multiply a group's rate by each factor and clamp it to that factor's bounds, until :meth:`restore`.

        Factors of 1 within the bounds leave the rate's bits unchanged. A tensor that groups share is filled once.
        """
        rate: float | Tensor = group["lr"]
        if isinstance(rate, Tensor):
            self._lend_tensor(group, rate, factors)
            return
        noisy = rate
        for factor, bounds in factors:
            noisy = bounded(noisy * factor, bounds)
        if noisy != rate:
            self._loans.append(_Loan(group, rate, rate, noisy, 0))
            group["lr"] = noisy

    def _lend_tensor(self, group: dict[str, Any], rate: Tensor, factors: Sequence[tuple[float, Bounds]]) -> None:
        if all(factor == 1.0 and _within(rate, bounds) for factor, bounds in factors):
            return
        if any(loan.holder is rate for loan in self._loans):
            return
        clean = rate.clone()
        with torch.no_grad():
            for factor, bounds in factors:
                rate.mul_(factor)
                if bounds != UNBOUNDED:
                    rate.clamp_(*bounds)
        noisy = rate.clone() if rate.device.type == "cpu" else rate
        self._loans.append(_Loan(group, rate, clean, noisy, _version(rate)))

    def restore(self) -> None:
        """Restore the clean rates, except where a new one was written."""
        while self._loans:
            self._loans.pop().restore()


class _Loan(NamedTuple):
    """A group whose rate is noisy now.

    Attributes:
        group: the group.
        holder: what it held as its rate: a number, or the tensor that is filled in place.
        clean: the clean rate.
        noisy: the noisy rate.
        version: the tensor's version with the noisy rate in it; 0 for a number.
    """

    group: dict[str, Any]
    holder: float | Tensor
    clean: float | Tensor
    noisy: float | Tensor
    version: int

    def restore(self) -> None:
        """Restore the clean rate, unless a new one was written meanwhile: that one stays."""
        now = self.group["lr"]
        if isinstance(self.holder, Tensor):
            assert isinstance(self.clean, Tensor)
            if not self._was_filled(self.holder):
                with torch.no_grad():
                    self.holder.copy_(self.clean)
        elif not isinstance(now, Tensor) and now == self.noisy:
            self.group["lr"] = self.clean

    def _was_filled(self, rate: Tensor) -> bool:
        """Whether other code wrote into the tensor. On a GPU it is not read, which would wait for the GPU."""
        if rate.device.type == "cpu":
            assert isinstance(self.noisy, Tensor)
            return not torch.equal(rate, self.noisy)
        return _version(rate) != self.version


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _within(rate: Tensor, bounds: Bounds) -> bool:
    # Without bounds a rate on a GPU need not be read.
    return bounds == UNBOUNDED or bounds[0] <= float(rate) <= bounds[1]


def _is_closure(argument: object) -> bool:
    """Whether an argument of ``step`` is a closure; a callable model is not."""
    return callable(argument) and not isinstance(argument, torch.nn.Module) and not inspect.isclass(argument)


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured; impossible before CUDA is initialized, which is quicker to check."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]

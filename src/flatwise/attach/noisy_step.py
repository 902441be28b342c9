"""One noisy optimizer step: what happens before and after the optimizer's own step."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatwise._kernels.backend import Blender, can_blend, compile_ahead
from flatwise._kernels.forms import Piece
from flatwise.attach.blend import blend_
from flatwise.attach.factors import Factors
from flatwise.attach.identity import parameters_of
from flatwise.attach.rate import RateLoan
from flatwise.attach.shards import Block, check_memory, local_part

_form = attrgetter("dtype", "device", "shape")


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
            ValueError: see :func:`flatwise.attach.shards.local_part`.
        """
        local, block = local_part(parameter)
        with torch.inference_mode(False):  # a buffer made in inference mode could not be written outside of it
            old = torch.empty_like(local)
        is_fast = block.start is not None and can_blend(local, old)
        return Slot(parameter, local, block, old, _form(local), local.stride(), is_fast)

    def fits(self) -> bool:
        """Whether the buffer still fits: a parameter that was moved or resized needs another one."""
        now = self.local
        if now is not self.parameter:  # a shard: its storage may have been exchanged under the DTensor
            now = local_part(self.parameter)[0]
            if now.data_ptr() != self.local.data_ptr():
                return False
        return _form(now) == self.form and now.stride() == self.stride


class NoisyStep:
    """Add the noise before a step and remove it after; between steps the optimizer has no trace of it.

    Args:
        optimizer: the optimizer.
        factors: what its perturbations draw.
        moves_all: whether the optimizer may move parameters that have no gradient. Torch's own never do.

    Attributes:
        running: whether a step has begun but not ended.
    """

    def __init__(self, optimizer: Optimizer, factors: Factors, *, moves_all: bool = False) -> None:
        self._optimizer = optimizer
        self._factors = factors
        self._moves_all = moves_all
        self._rates = RateLoan()
        self._blenders: dict[int, Blender] = {}
        self._slots: dict[Tensor, Slot] = {}
        self._moving: list[Slot] = []
        self._divided: tuple[list[Slot], list[Piece], list[Slot]] = [], [], []
        self._now = (0, 0)
        self._closure_is_first = False
        self.running = False

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
        self._now = seed, step
        self.running = True
        has_closure = any(map(_is_closure, (*args[1:], *kwargs.values())))
        is_fine = bool(self._factors.fine(step))
        try:
            # Torch's own optimizers call a closure before all else; it makes the gradients, and parameters are copied
            # when it returns. Others may move parameters first.
            if is_fine and (self._moves_all or not has_closure):
                self._copy_again(step)
            self._lend_rates()
        except BaseException:
            self.abandon()
            raise
        if not (has_closure and self._factors.acting(step)):
            return None
        self._closure_is_first = True
        args = (args[0], *(self._shielded(a) if _is_closure(a) else a for a in args[1:]))
        return args, {key: self._shielded(a) if _is_closure(a) else a for key, a in kwargs.items()}

    def finish(self) -> None:
        """After the optimizer's own step: restore the rates and scale the updates."""
        self._rates.restore()
        if self._moving:
            with torch.no_grad():
                self._blend(*self._now)
        self._moving = []
        self.running = False

    def abandon(self) -> None:
        """After an exception inside the step: restore the rates and scale nothing."""
        self._rates.restore()
        self._moving = []
        self.running = False

    def _lend_rates(self) -> None:
        seed, step = self._now
        if self._factors.coarse(step):
            for index, group in enumerate(self._optimizer.param_groups):
                self._rates.lend(group, self._factors.bounded_rates(seed, step, index))

    def _shielded(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """A closure that runs as between two steps: it is no part of the update that is perturbed.

        It finds the scheduled rates, and what it writes into them stays written. What the first one writes into
        parameters, such as an average or a projection, is not scaled.
        """

        @functools.wraps(closure, updated=())
        def shielded(*args: Any, **kwargs: Any) -> Any:
            self._rates.restore()
            copies = self._closure_is_first and bool(self._factors.fine(self._now[1])) and self._is_unmoved()
            self._closure_is_first = False
            try:
                result = closure(*args, **kwargs)
                if copies and self.running:
                    self._copy_again(self._now[1])
                return result
            finally:
                if self.running:
                    self._lend_rates()

        return shielded

    def _is_unmoved(self) -> bool:
        """Whether the optimizer has not moved anything yet in this step."""
        return all(torch.equal(slot.old, slot.local) for slot in self._moving)

    def _copy_again(self, step: int) -> None:
        """Copies what may move, as it is now."""
        if self._factors.refresh():
            self._forget()
        self._moving = []
        self._copy(step, every=self._moves_all)

    def _forget(self) -> None:
        """Release what was prepared for parameters that the optimizer no longer has."""
        parameters = parameters_of(self._optimizer)
        check_memory(parameters)
        own = set(parameters)
        self._slots = {parameter: slot for parameter, slot in self._slots.items() if parameter in own}
        self._divided = [], [], []
        self._blenders = {}

    def _copy(self, step: int, *, every: bool) -> None:
        """Copies the parameters that may move (those with a gradient, or every one) into their buffers."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if every or parameter.grad is not None:
                    slot = self._slots.get(parameter)
                    if slot is None or not slot.fits():
                        slot = self._slots[parameter] = Slot.of(parameter)
                        self._prepare(slot)
                    self._moving.append(slot)
        if self._moving:
            blender, pieces, rest = self._divide(step)
            if blender is not None:
                blender.copy(pieces)
            if rest:
                with torch.no_grad():
                    torch._foreach_copy_([slot.old for slot in rest], [slot.local for slot in rest])

    def _prepare(self, slot: Slot) -> None:
        """Compile the slot's kernels before the optimizer changes anything, so that a failure loses nothing."""
        for perturbation in self._factors.perturbations:
            form = perturbation.distribution.kernel_form
            if slot.is_fast and form is not None and perturbation.scope == "element":
                compile_ahead(form, slot.local)

    def _blend(self, seed: int, step: int) -> None:
        """Scale the updates: with the kernels where they can, else with the reference."""
        blender, pieces, rest = self._divide(step)
        if blender is not None:
            _, perturbation = self._factors.fine(step)[0]
            blender.blend(pieces, seed, self._factors.calendar.tick(perturbation, step))
        if rest:
            drawn = self._factors.draws(seed, step, [slot.parameter for slot in rest])
            for slot, of_parameter in zip(rest, drawn, strict=True):
                blend_(slot.local, slot.old, of_parameter, slot.block)

    def _divide(self, step: int) -> tuple[Blender | None, list[Piece], list[Slot]]:
        """The moving slots, divided into the kernels' (with their blender) and the reference's."""
        fine = self._factors.fine(step)
        stream, perturbation = fine[0]
        form = perturbation.distribution.kernel_form
        if len(fine) > 1 or perturbation.scope != "element" or form is None:
            return None, [], self._moving
        if self._moving != self._divided[0]:  # rarely: mostly the same parameters move as in the last step
            fast = [slot for slot in self._moving if slot.is_fast]
            units = self._factors.units([slot.parameter for slot in fast])
            pieces = [Piece(s.local, s.old, s.block.start or 0, unit) for s, unit in zip(fast, units, strict=True)]
            self._divided = self._moving, pieces, [slot for slot in self._moving if not slot.is_fast]
        _, pieces, rest = self._divided
        if not pieces:
            return None, [], rest
        blender = self._blenders.get(stream)
        if blender is None:
            blender = self._blenders[stream] = Blender(form, stream)
        return blender, pieces, rest


def _is_closure(argument: object) -> bool:
    """Whether an argument of ``step`` is a closure; a callable model is not."""
    return callable(argument) and not isinstance(argument, torch.nn.Module) and not inspect.isclass(argument)


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured; impossible before CUDA is initialized, which is quicker to check."""
    return bool(torch.cuda.is_initialized()) and torch.cuda.is_current_stream_capturing()  # type: ignore[no-untyped-call]

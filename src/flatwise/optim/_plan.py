"""What one step of a parameter group does to which tensors, and whether kernels can do it."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from flatwise._attach.parameters import local_part, share_memory
from flatwise._kernels import backend
from flatwise._kernels.backend import PreparedStep
from flatwise._kernels.forms import PLAIN, KernelForm, Update, addresses

_NO_STATE: dict[str, Any] = {}
_form = attrgetter("dtype", "layout", "shape")

# An optimizer's settings: the kernel's compile-time options and its numbers.
Settings = tuple[tuple[bool, ...], tuple[Any, ...]]


def local(tensors: list[Any]) -> list[Any]:
    """What this process holds of some tensors; the list itself where that is all of them."""
    if PLAIN.issuperset(map(type, tensors)):
        return tensors
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def _layout(tensor: Any) -> tuple[object, object]:
    """How a DTensor is spread over processes; of any other tensor nothing."""
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)


def _held_here(update: Update) -> Update:
    """The update of what this process holds."""
    states = tuple(map(local, update.states))
    return update._replace(params=local(update.params), grads=local(update.grads), states=states)


def objection(update: Update, kernel: str, form: KernelForm) -> str | None:
    """Why no kernels can do an update, in words, or ``None`` if some can.

    Args:
        update: the update.
        kernel: which: ``"sgd"``, ``"adam"`` or ``"rmsprop"``.
        form: distribution of the factor.
    """
    if list(map(_layout, update.params)) != list(map(_layout, update.grads)):
        return "a gradient is not spread over the processes as its parameter is"
    held = _held_here(update)
    reason = backend.objection(held, kernel, form)
    if reason is not None:
        return reason
    misfit = any(param.shape != grad.shape for param, grad in zip(held.params, held.grads, strict=True))
    if misfit or any(local_part(param)[1].start is None for param in update.params):
        return "a parameter is sharded along a dimension that is not its first"
    if share_memory(held.params):  # threads would update it at the same time
        return "two parameters share memory"
    return None


class _Nothing:
    """The update of a group in which no parameter has a gradient."""

    def run(self, grads: list[Tensor], numbers: tuple[Any, ...], seed: int, counter: int) -> None:
        pass


def make_plan(
    update: Update, fresh: list[bool], ids: list[int], kernel: str, form: KernelForm, stream: int
) -> PreparedStep:
    """The kernel calls of an update without objection, all its states there.

    Args:
        update: the update.
        fresh: for each parameter, whether its first state holds −0 and becomes the gradient itself at this step.
        ids: the id of each parameter.
        kernel: as in :func:`objection`.
        form: distribution of the factor.
        stream: stream of the perturbation.
    """
    if not update.params:
        return _Nothing()
    starts = [local_part(param)[1].start or 0 for param in update.params]
    return backend.prepare(_held_here(update)._replace(fresh=fresh, ids=ids, starts=starts), kernel, form, stream)


class Footprint:
    """What a parameter group was when its plan was made: whether it still is that is asked at every step, so quickly.

    Args:
        optimizer: the optimizer.
        group: its group.
        update: the group's update.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, group: dict[str, Any], update: Update) -> None:
        self._optimizer = optimizer
        self._params = update.params
        self._used = [tensor for column in update.states for tensor in column] + update.steps
        self._types = [type(param.grad) for param in group["params"]]
        self._is_plain = PLAIN.issuperset(map(type, [*update.params, *update.grads]))
        self._states = self._find_states()  # kept, so that nothing else can come to have the id of one of them
        self._state_ids = list(map(id, self._states))
        self._forms = list(map(_form, local(update.grads)))
        self._layouts = list(map(_layout, update.grads))
        self._memory = _memory(local(update.params), local(self._used))
        self._options = update.options
        self._kinds = list(map(type, update.numbers))

    def gradients(self, group: dict[str, Any], settings: Settings) -> list[Tensor] | None:
        """What this process holds of the gradients, if they are all that has changed; else ``None``."""
        options, numbers = settings
        params = group["params"]
        if options != self._options or list(map(type, numbers)) != self._kinds:
            return None
        grads = [param.grad for param in params]
        if list(map(type, grads)) != self._types:
            return None
        if len(params) != len(self._params):
            grads = [grad for grad in grads if grad is not None]
        if list(map(id, self._find_states())) != self._state_ids:
            return None
        moving, used = self._params, self._used
        if not self._is_plain:
            if list(map(_layout, grads)) != self._layouts:
                return None
            grads, moving, used = local(grads), local(moving), local(used)
            if not PLAIN.issuperset(map(type, grads)):
                return None
        return grads if list(map(_form, grads)) == self._forms and _memory(moving, used) == self._memory else None

    def _find_states(self) -> list[Any]:
        state = self._optimizer.state
        return [value for param in self._params for value in state.get(param, _NO_STATE).values()]


def _memory(params: list[Tensor], states: list[Tensor]) -> tuple[list[int], list[Any], list[Any]]:
    """Where parameters and states are, and how the parameters lie there: the states lie alike, and stay so."""
    return addresses(params + states), list(map(Tensor.size, params)), list(map(Tensor.stride, params))

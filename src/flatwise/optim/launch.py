"""What a fused update is, and the CPU's tables for it: prepared once, then only the gradients' addresses change."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatwise._attach.parameters import local_part
from flatwise.noise.blender import PLAIN, KernelForm
from flatwise.noise.dispatch import runs
from flatwise.noise.keys import as_int64
from flatwise.noise.threads import Shares, c_function

_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_NO_STATE: dict[str, Any] = {}
_form = attrgetter("dtype", "layout", "shape")


# An optimizer's settings: the kernel's compile-time options and its numbers.
Settings = tuple[tuple[bool, ...], tuple[Any, ...]]


class Update(NamedTuple):
    """What one step does to one parameter group, in terms of torch's own lists. All lists run over the same parameters.

    Attributes:
        params: the parameters that have a gradient.
        grads: their gradients.
        states: up to three lists of states shaped like the parameters, in the order that the kernel knows. ``None``
            stands for a momentum that does not exist yet; see ``first_state``.
        counters: their step counters, 0-d; empty where the optimizer has none.
        first_state: name in ``optimizer.state`` of the first list.
        options: the kernel's compile-time options.
        numbers: the kernel's numbers.
    """

    params: list[Tensor]
    grads: list[Tensor]
    states: tuple[list[Any], ...]
    counters: list[Tensor]
    first_state: str
    options: tuple[bool, ...]
    numbers: tuple[Any, ...]


@cache
def kernels() -> ModuleType | None:
    """The compiled kernels, or ``None`` where numba is not installed."""
    try:
        from flatwise.optim import cpu
    except ImportError:
        return None
    return cpu


def objection(update: Update) -> str | None:
    """Why the kernels for the CPU cannot do an update of plain tensors, in words, or ``None`` if they can."""
    if kernels() is None:
        return "numba is not installed (pip install 'flatwise[fast]')"
    if any(isinstance(number, Tensor) for number in update.numbers):
        return "the learning rate or another setting is a tensor"
    params = local(update.params)
    for param in params:
        if param.dtype not in _DTYPES:
            return f"a parameter is {param.dtype}; the kernels for the CPU know {_DTYPES}"
    for states in filter(None, update.states):
        for param, state in zip(params, local(states), strict=True):
            if state is not None and not _is_like(state, param):
                return "a state is not shaped, stored or laid out as its parameter"
    if any(c.dtype != torch.float32 or c.device.type != "cpu" for c in update.counters):
        return "a step counter is not a float32 tensor on the CPU"
    return None


def _is_like(state: Tensor, param: Tensor) -> bool:
    alike = state.dtype == param.dtype and state.device == param.device and state.shape == param.shape
    return alike and state.is_contiguous()


def local(tensors: list[Any]) -> list[Any]:
    """What this process holds of some tensors; the list itself where that is all of them."""
    if PLAIN.issuperset(map(type, tensors)):
        return tensors
    return [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]


def layout(tensor: Any) -> tuple[object, object]:
    """How a DTensor is spread over processes; of any other tensor nothing."""
    return getattr(tensor, "device_mesh", None), getattr(tensor, "placements", None)


def readable(grads: list[Tensor]) -> list[Tensor]:
    """The gradients as kernels can read them: element after element, with no change of sign still to be made."""
    if all(map(Tensor.is_contiguous, grads)) and not any(map(Tensor.is_neg, grads)):
        return grads
    return [grad.resolve_neg().contiguous() for grad in grads]


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
        self._used = [tensor for column in update.states for tensor in column] + update.counters
        self._types = [type(param.grad) for param in group["params"]]
        self._is_plain = PLAIN.issuperset(map(type, [*update.params, *update.grads]))
        self._states = self._find_states()  # kept, so that nothing else can come to have the id of one of them
        self._state_ids = list(map(id, self._states))
        self._forms = list(map(_form, local(update.grads)))
        self._layouts = list(map(layout, update.grads))
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
            if list(map(layout, grads)) != self._layouts:
                return None
            grads, moving, used = local(grads), local(moving), local(used)
            if not PLAIN.issuperset(map(type, grads)):
                return None
        return grads if list(map(_form, grads)) == self._forms and _memory(moving, used) == self._memory else None

    def _find_states(self) -> list[Any]:
        state = self._optimizer.state
        return [value for param in self._params for value in state.get(param, _NO_STATE).values()]


class Plan:
    """The kernel calls that do the updates of one group, step after step.

    Args:
        update: an update without objection, all states there.
        fresh: for each parameter, whether its first state holds −0 and becomes the gradient itself at this step.
        units: the identity of each parameter.
        kernel: name of the kernel in ``optim.cpu``, without ``_kernel``.
        form: distribution of the factor.
        stream: stream of the perturbation.
    """

    def __init__(
        self, update: Update, fresh: list[bool], units: list[int], kernel: str, form: KernelForm, stream: int
    ) -> None:
        cpu = kernels()
        assert cpu is not None
        self._cpu = cpu
        self._fresh = any(fresh)
        params = local(update.params)
        columns = [params, *(local(states) for states in update.states)]
        # Alive as long as their addresses are in the table, and marked as written to after each step.
        self._written = [tensor for column in columns for tensor in column] + update.counters
        self._rows = np.zeros((len(params), cpu.ROW_COLUMNS), dtype=np.int64)
        self._rows[:, cpu.PARAMETER] = _addresses(params)
        for column in range(3):  # kernels do not touch a state that they do not have, but must not see address 0
            states = columns[1 + column] if column < len(update.states) and columns[1 + column] else params
            self._rows[:, cpu.STATE + column] = _addresses(states)
        if update.counters:
            self._rows[:, cpu.COUNTER] = _addresses(update.counters)
        starts = [local_part(param)[1].start or 0 for param in update.params]
        self._rows[:, cpu.FIRST] = starts
        self._rows[:, cpu.UNIT] = np.array(units, dtype=np.uint64).view(np.int64)
        self._rows[:, cpu.FRESH] = fresh
        self._gradients = self._rows[:, cpu.GRADIENT]
        self._calls: list[_Call] = []
        for dtype in {param.dtype: None for param in params}:
            alike = [(row, param.numel(), starts[row]) for row, param in enumerate(params) if param.dtype == dtype]
            cuts = [(row, *run) for row, size, start in alike for run in runs(start, size, cpu.CHUNK)]
            chunks = np.array(cuts, dtype=np.int64).reshape(-1, cpu.CHUNK_COLUMNS)
            job = np.zeros(cpu.JOB_WORDS, dtype=np.int64)
            job[[cpu.CHUNKS, cpu.CHUNK_TABLE, cpu.ROWS, cpu.ROW_TABLE, cpu.STREAM]] = (
                len(chunks), chunks.ctypes.data, len(self._rows), self._rows.ctypes.data, stream,
            )  # fmt: skip
            job.view(np.float64)[cpu.FACTOR : cpu.FACTOR + len(form.numbers)] = form.numbers
            kind = cpu.KINDS["positive" if _is_positive(form) else form.kind]
            kind_of_number = {
                torch.float32: cpu.FLOAT32, torch.float64: cpu.FLOAT64, torch.bfloat16: cpu.BFLOAT16
            }[dtype]  # fmt: skip
            address = getattr(cpu, f"{kernel}_kernel")(kind, kind_of_number, *update.options)
            shares = Shares(job, chunks[:, cpu.LENGTH].tolist())
            numbers = job.view(np.float64)[cpu.NUMBERS : cpu.NUMBERS + len(update.numbers)]
            self._calls.append(_Call(address, job, numbers, chunks, shares))
        self._count = c_function(cpu.count_kernel()) if update.counters else None

    def run(self, grads: list[Tensor], numbers: tuple[float, ...], seed: int, tick: int) -> None:
        """Does an update with gradients and settings of this step, and with the factors of (seed, tick)."""
        cpu = self._cpu
        grads = readable(grads)
        self._gradients[:] = _addresses(grads)
        signed_seed = as_int64(seed)
        for call in self._calls:
            call.job[cpu.SEED] = signed_seed
            call.job[cpu.TICK] = tick
            call.numbers[:] = numbers
        if self._count is not None and self._calls:
            self._count(self._calls[0].job.ctypes.data)
        for call in self._calls:
            call.shares.run(call.kernel)
        torch.autograd.graph.increment_version(self._written)
        if self._fresh:
            self._rows[:, cpu.FRESH] = 0
            self._fresh = False


class _Call(NamedTuple):
    """One kernel over the parameters of one dtype: its address, its job, the job's numbers, chunks, whose they are."""

    kernel: int
    job: NDArray[np.int64]
    numbers: NDArray[np.float64]
    chunks: NDArray[np.int64]
    shares: Shares


def _is_positive(form: KernelForm) -> bool:
    """Whether a Normal factor can be neither 0 nor cut off."""
    return form.kind == "normal" and form.lowest > max(0.0, form.numbers[2])


def _memory(params: list[Tensor], states: list[Tensor]) -> tuple[list[int], list[Any], list[Any]]:
    """Where parameters and states are, and how the parameters lie there: the states lie alike, and stay so."""
    return _addresses(params + states), list(map(Tensor.size, params)), list(map(Tensor.stride, params))


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))

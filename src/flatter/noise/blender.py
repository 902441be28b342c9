"""Scaling the updates of many tensors in one call of a CPU kernel: the fast twin of ``attach.blend.blend_``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatter.noise import threads
from flatter.noise.keys import SEGMENT

# Small enough that the threads end together, large enough that taking a chunk costs nothing.
_CHUNK = 1 << 14


class KernelForm(NamedTuple):
    """A distribution as kernels know it: its kind and up to three numbers.

    Attributes:
        kind: ``"normal"`` (mean, standard deviation, minimum), ``"bernoulli"`` (threshold of the words that are 1) or
            ``"uniform"`` (low, high − low).
        numbers: the parameters.
    """

    kind: Literal["normal", "bernoulli", "uniform"]
    numbers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """A contiguous part of one parameter.

    Attributes:
        new: its values after the plain step; scaled in place.
        old: its values before the step; same shape and dtype, contiguous.
        start: logical index in the whole tensor of its first element.
        unit: identity of the parameter.
    """

    new: Tensor
    old: Tensor
    start: int
    unit: int


@cache
def _kernels() -> ModuleType | None:
    """The compiled kernels, or ``None`` where numba is not installed."""
    try:
        from flatter.noise import cpu
    except ImportError:
        return None
    return cpu


def can_blend(new: Tensor, old: Tensor) -> bool:
    """Whether the kernels know such a parameter."""
    known = new.dtype in (torch.float32, torch.float64, torch.bfloat16) and new.device.type == "cpu"
    return known and new.is_contiguous() and old.is_contiguous() and _kernels() is not None


@dataclass(frozen=True)
class _Launch:
    """A kernel call over pieces of one dtype, all but the tick prepared.

    Attributes:
        memory: addresses and sizes that it was prepared for.
        table: the kernel's table of chunks; the job holds its address.
        job: the kernel's job.
        kernel: the kernel's address.
        elements: elements in all.
    """

    memory: list[int]
    table: NDArray[np.int64]
    job: NDArray[np.int64]
    kernel: int
    elements: int


def compile_kernel(form: KernelForm, dtype: torch.dtype) -> int:
    """Address of the kernel for a factor and a parameter dtype. Slow at the first call, so call it before a step."""
    cpu = _kernels()
    assert cpu is not None
    kernel: int = cpu.blend_kernel(
        {"normal": cpu.NORMAL, "bernoulli": cpu.BERNOULLI, "uniform": cpu.UNIFORM}[form.kind],
        {torch.float32: cpu.FLOAT32, torch.float64: cpu.FLOAT64, torch.bfloat16: cpu.BFLOAT16}[dtype],
    )
    return kernel


class Blender:
    """Blends the same tensors step after step with one distribution; what does not change is prepared once.

    Args:
        form: the factor's distribution.
        stream: the perturbation's stream.
    """

    def __init__(self, form: KernelForm, stream: int) -> None:
        self._form = form
        self._stream = stream
        self._launches: dict[torch.dtype, _Launch] = {}

    def blend(self, pieces: Sequence[Piece], seed: int, tick: int) -> None:
        """``new ← old + f · (new − old)`` for every piece, f drawn for each element; see ``attach.blend.blend``.

        Args:
            pieces: parts that :func:`can_blend` admits.
            seed, tick: what the words are a function of, besides stream, unit and element.
        """
        cpu = _kernels()
        assert cpu is not None
        by_dtype: dict[torch.dtype, list[Piece]] = {}
        for piece in pieces:
            by_dtype.setdefault(piece.new.dtype, []).append(piece)
        for dtype, alike in by_dtype.items():
            memory = [word for p in alike for word in (p.new.data_ptr(), p.old.data_ptr(), p.new.numel())]
            launch = self._launches.get(dtype)
            if launch is None or launch.memory != memory:
                launch = self._launches[dtype] = self._prepare(cpu, dtype, alike, memory)
            launch.job[cpu.TAKEN] = 0
            launch.job[cpu.SEED] = seed if seed < 1 << 63 else seed - (1 << 64)
            launch.job[cpu.TICK] = tick
            threads.run(launch.kernel, launch.job.ctypes.data, launch.elements)

    def _prepare(self, cpu: ModuleType, dtype: torch.dtype, pieces: list[Piece], memory: list[int]) -> _Launch:
        rows = [row for piece in pieces for row in _chunks(piece)]
        table = np.array(rows, dtype=np.uint64).reshape(len(rows), cpu.COLUMNS).view(np.int64)
        job = np.zeros(cpu.JOB_WORDS, dtype=np.int64)
        job[cpu.CHUNKS], job[cpu.TABLE], job[cpu.STREAM] = len(rows), table.ctypes.data, self._stream
        numbers = self._form.numbers
        job[cpu.PARAMETERS : cpu.PARAMETERS + len(numbers)].view(np.float64)[:] = numbers
        kernel = compile_kernel(self._form, dtype)
        return _Launch(memory, table, job, kernel, sum(piece.new.numel() for piece in pieces))


def _chunks(piece: Piece) -> list[tuple[int, int, int, int, int]]:
    """Rows of the kernel's table; none crosses a segment."""
    rows = []
    offset, size, width = 0, piece.new.numel(), piece.new.element_size()
    while offset < size:
        first = piece.start + offset
        length = min(_CHUNK, size - offset, SEGMENT - first % SEGMENT)
        at = offset * width
        rows.append((piece.new.data_ptr() + at, piece.old.data_ptr() + at, length, first, piece.unit))
        offset += length
    return rows

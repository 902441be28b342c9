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


class Blender:
    """Blends the same tensors step after step; what does not change between steps is prepared once."""

    def __init__(self) -> None:
        self._tables: dict[torch.dtype, tuple[tuple[int, ...], NDArray[np.int64]]] = {}

    def blend(self, pieces: Sequence[Piece], form: KernelForm, seed: int, tick: int, stream: int) -> None:
        """``new ← old + f · (new − old)`` for every piece, f drawn for each element; see ``attach.blend.blend``.

        Args:
            pieces: parts that :func:`can_blend` admits.
            form: the factor's distribution.
            seed, tick, stream: what the words are a function of, besides unit and element.
        """
        by_dtype: dict[torch.dtype, list[Piece]] = {}
        for piece in pieces:
            by_dtype.setdefault(piece.new.dtype, []).append(piece)
        for dtype, alike in by_dtype.items():
            self._blend_alike(dtype, alike, form, seed, tick, stream)

    def _blend_alike(
        self, dtype: torch.dtype, pieces: list[Piece], form: KernelForm, seed: int, tick: int, stream: int
    ) -> None:
        cpu = _kernels()
        assert cpu is not None
        table = self._table(dtype, pieces)
        job = np.zeros(cpu.JOB_WORDS, dtype=np.int64)
        job[cpu.CHUNKS], job[cpu.TABLE] = len(table), table.ctypes.data
        job[cpu.SEED], job[cpu.TICK], job[cpu.STREAM] = np.uint64(seed).astype(np.int64), tick, stream
        job[cpu.PARAMETERS : cpu.PARAMETERS + len(form.numbers)].view(np.float64)[:] = form.numbers
        kernel = cpu.blend_kernel(
            {"normal": cpu.NORMAL, "bernoulli": cpu.BERNOULLI, "uniform": cpu.UNIFORM}[form.kind],
            {torch.float32: cpu.FLOAT32, torch.float64: cpu.FLOAT64, torch.bfloat16: cpu.BFLOAT16}[dtype],
        )
        threads.run(kernel, job.ctypes.data, sum(piece.new.numel() for piece in pieces))

    def _table(self, dtype: torch.dtype, pieces: list[Piece]) -> NDArray[np.int64]:
        """The chunks of all pieces; made anew only when a tensor moved."""
        signature = tuple(
            word for p in pieces for word in (p.new.data_ptr(), p.old.data_ptr(), p.new.numel(), p.start, p.unit)
        )
        known = self._tables.get(dtype)
        if known is not None and known[0] == signature:
            return known[1]
        rows = [row for piece in pieces for row in _chunks(piece)]
        table = np.array(rows, dtype=np.uint64).reshape(len(rows), 5).view(np.int64)
        self._tables[dtype] = signature, table
        return table


def _chunks(piece: Piece) -> list[tuple[int, int, int, int, int]]:
    """Rows of the kernel's table: none crosses a segment."""
    rows = []
    offset, size, width = 0, piece.new.numel(), piece.new.element_size()
    while offset < size:
        first = piece.start + offset
        length = min(_CHUNK, size - offset, SEGMENT - first % SEGMENT)
        at = offset * width
        rows.append((piece.new.data_ptr() + at, piece.old.data_ptr() + at, length, first, piece.unit))
        offset += length
    return rows

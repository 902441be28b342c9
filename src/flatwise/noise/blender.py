"""Scaling the updates of many tensors in one call of a kernel: the fast twin of ``attach.blend.blend_``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatwise.noise.dispatch import runs
from flatwise.noise.keys import as_int64
from flatwise.noise.threads import Shares

# Small enough that the threads end together, large enough that taking a chunk costs nothing.
_CHUNK = 1 << 13


class KernelForm(NamedTuple):
    """A distribution as kernels know it: its kind and up to three numbers.

    Attributes:
        kind: ``"normal"`` (mean, standard deviation, minimum), ``"bernoulli"`` (threshold of the words that are 1) or
            ``"uniform"`` (low, high − low).
        numbers: the parameters.
    """

    kind: Literal["normal", "bernoulli", "uniform"]
    numbers: tuple[float, ...]

    @property
    def lowest(self) -> float:
        """A bound below all factors of a Normal before its minimum cuts them: the words give no |z| above 6.24."""
        loc, scale, _ = self.numbers
        return loc - 6.24 * scale


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


# What computes on which type of device. With TRITON_INTERPRET=1, a test may have Triton serve CPU tensors too.
BACKENDS = {"cpu": "numba", "cuda": "triton"}

# Tensors with memory of their own; others may be wrappers, such as fake or distributed tensors.
PLAIN = frozenset((Tensor, torch.nn.Parameter))

_DTYPES = {
    "numba": (torch.float32, torch.float64, torch.bfloat16),
    "triton": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}


@cache
def _kernels() -> ModuleType | None:
    """The kernels compiled by numba, or ``None`` where it is not installed."""
    try:
        from flatwise.noise import cpu
    except ImportError:
        return None
    return cpu


@cache
def _triton() -> ModuleType | None:
    """The Triton kernels, or ``None`` where Triton is not installed."""
    try:
        from flatwise.noise import gpu
    except ImportError:
        return None
    return gpu


def can_blend(new: Tensor, old: Tensor) -> bool:
    """Whether the kernels know such a parameter: a plain tensor, since others need not have memory of their own."""
    backend = BACKENDS.get(new.device.type)
    if (
        type(new) not in PLAIN
        or backend is None
        or new.dtype not in _DTYPES[backend]
        or not (new.is_contiguous() and old.is_contiguous())
    ):
        return False
    if backend == "numba":
        return _kernels() is not None
    kernels = _triton()
    return kernels is not None and kernels.works(new.device)


class _Launch(Protocol):
    """A kernel call over some pieces, all but seed and tick prepared."""

    def copy(self) -> None:
        """Copies the new values to the old."""

    def run(self, seed: int, tick: int) -> None:
        """Blends with the factors of a seed and a tick."""


@dataclass(frozen=True)
class _CpuLaunch:
    """A call of a CPU kernel over pieces of one dtype.

    Attributes:
        table: the kernel's table of chunks; the job holds its address.
        job: the kernel's job.
        seed, tick: where in the job these are.
        kernel, copier: addresses of the kernel that blends and of that which copies.
        shares: which chunk is whose.
    """

    table: NDArray[np.int64]
    job: NDArray[np.int64]
    seed: int
    tick: int
    kernel: int
    copier: int
    shares: Shares

    def copy(self) -> None:
        self.shares.run(self.copier)

    def run(self, seed: int, tick: int) -> None:
        self.job[self.seed] = as_int64(seed)
        self.job[self.tick] = tick
        self.shares.run(self.kernel)


def compile_ahead(form: KernelForm, parameter: Tensor) -> None:
    """Compiles the CPU kernel that a parameter will need: slow at the first call, so better before a step.

    Triton compiles at the first launch; that it can is known from ``can_blend``.
    """
    if BACKENDS[parameter.device.type] == "numba":
        _compiled(form, parameter.dtype)


def _compiled(form: KernelForm, dtype: torch.dtype) -> tuple[int, int]:
    """Addresses of the CPU kernels that blend and copy, for a factor and a parameter dtype."""
    cpu = _kernels()
    assert cpu is not None
    number = {torch.float32: cpu.FLOAT32, torch.float64: cpu.FLOAT64, torch.bfloat16: cpu.BFLOAT16}[dtype]
    kind = {"normal": cpu.NORMAL, "bernoulli": cpu.BERNOULLI, "uniform": cpu.UNIFORM}[form.kind]
    if form.kind == "normal" and form.lowest > max(0.5, form.numbers[2]):
        kind = cpu.NEAR_ONE
    return cpu.blend_kernel(kind, number), cpu.copy_kernel(number)


class Blender:
    """Blends the same tensors step after step with one distribution; what does not change is prepared once.

    Args:
        form: the factor's distribution.
        stream: the perturbation's stream.
    """

    def __init__(self, form: KernelForm, stream: int) -> None:
        self._form = form
        self._stream = stream
        self._memory: list[int] = []  # addresses and sizes that the launches were prepared for
        self._launches: list[_Launch] = []

    def copy(self, pieces: Sequence[Piece]) -> None:
        """``old ← new`` for every piece, before the step that makes them differ.

        Args:
            pieces: as in :meth:`blend`.
        """
        for launch in self._launches_for(pieces):
            launch.copy()

    def blend(self, pieces: Sequence[Piece], seed: int, tick: int) -> None:
        """``new ← old + f · (new − old)`` for every piece, f drawn for each element; see ``attach.blend.blend``.

        Args:
            pieces: parts that :func:`can_blend` admits.
            seed, tick: what the words are a function of, besides stream, unit and element.
        """
        for launch in self._launches_for(pieces):
            launch.run(seed, tick)

    def _launches_for(self, pieces: Sequence[Piece]) -> list[_Launch]:
        """Launches for the pieces where they are now; prepared again only if that is somewhere else."""
        memory = [word for p in pieces for word in (p.new.data_ptr(), p.old.data_ptr(), p.new.numel())]
        if memory != self._memory:
            alike: dict[tuple[torch.device, torch.dtype], list[Piece]] = {}
            for piece in pieces:
                alike.setdefault((piece.new.device, piece.new.dtype), []).append(piece)
            self._launches = [launch for some in alike.values() for launch in self._prepare(some)]
            self._memory = memory
        return self._launches

    def _prepare(self, pieces: list[Piece]) -> list[_Launch]:
        """Launches for pieces of one dtype on one device."""
        if BACKENDS[pieces[0].new.device.type] == "numba":
            return [self._prepare_cpu(pieces)]
        kernels = _triton()
        assert kernels is not None
        launches: list[_Launch] = kernels.launches(pieces, self._form, self._stream)
        return launches

    def _prepare_cpu(self, pieces: list[Piece]) -> _CpuLaunch:
        cpu = _kernels()
        assert cpu is not None
        rows = [row for piece in pieces for row in _chunks(piece)]
        table = np.array(rows, dtype=np.uint64).reshape(len(rows), cpu.COLUMNS).view(np.int64)
        job = np.zeros(cpu.JOB_WORDS, dtype=np.int64)
        job[cpu.CHUNKS], job[cpu.TABLE], job[cpu.STREAM] = len(rows), table.ctypes.data, self._stream
        numbers = self._form.numbers
        job[cpu.PARAMETERS : cpu.PARAMETERS + len(numbers)].view(np.float64)[:] = numbers
        kernel, copier = _compiled(self._form, pieces[0].new.dtype)
        shares = Shares(job, table[:, cpu.LENGTH].tolist())
        return _CpuLaunch(table, job, cpu.SEED, cpu.TICK, kernel, copier, shares)


def _chunks(piece: Piece) -> list[tuple[int, int, int, int, int]]:
    """Rows of the kernel's table; none crosses a segment."""
    new, old, width = piece.new.data_ptr(), piece.old.data_ptr(), piece.new.element_size()
    return [
        (new + offset * width, old + offset * width, length, piece.start + offset, piece.unit)
        for offset, length in runs(piece.start, piece.new.numel(), _CHUNK)
    ]

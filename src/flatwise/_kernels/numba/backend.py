"""The backend for CPUs: tables and jobs for its kernels, prepared once; then only a few numbers change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatwise._kernels import forms
from flatwise._kernels.forms import KINDS, NEAR_ONE, OPTIMIZERS, POSITIVE, KernelForm, Piece, Update, addresses
from flatwise._kernels.numba import blend as blends
from flatwise._kernels.numba import updates
from flatwise._kernels.numba.runtime import Shares, c_function
from flatwise._noise.keys import as_int64

BLENDED = UPDATED = tuple(blends.STORED)
RATE_MAY_BE_TENSOR = STATES_MAY_BE_WIDE = False


def works(device: torch.device) -> bool:
    """Kernels for CPUs work wherever numba does."""
    return True


def compile_ahead(form: KernelForm, dtype: torch.dtype) -> None:
    """Compiles the kernel of a blend."""
    blends.blend_kernel(_blend_kind(form), dtype)


def objection(update: Update, optimizer: str, form: KernelForm) -> str | None:
    """Why the kernels for CPUs cannot do an update that all others could, or ``None`` if they can."""
    if any(step.dtype != torch.float32 or step.device.type != "cpu" for step in update.steps):
        return "a step counter is not a float32 tensor on the CPU"
    return None


class _Job:
    """The job of kernels over the tensors of one dtype.

    Args:
        rows: the table of rows, of all dtypes.
        which: the rows that are meant.
        sizes: number of elements of each row's tensors.
        form, stream: of the factor.
    """

    def __init__(
        self, rows: np.ndarray, which: Sequence[int], sizes: Sequence[int], form: KernelForm, stream: int
    ) -> None:
        self._chunks = forms.chunks_of([sizes[row] for row in which], rows[which, forms.FIRST].tolist())
        self._chunks[:, forms.ROW] = np.array(which)[self._chunks[:, forms.ROW]]
        self._rows = rows
        self.words = np.zeros(blends.JOB_WORDS, dtype=np.int64)
        self.words[[blends.CHUNKS, blends.CHUNK_TABLE, blends.ROWS, blends.ROW_TABLE, blends.STREAM]] = (
            len(self._chunks), self._chunks.ctypes.data, len(rows), rows.ctypes.data, stream,
        )  # fmt: skip
        numbers = self.words.view(np.float64)
        numbers[blends.FACTOR : blends.FACTOR + len(form.numbers)] = form.numbers
        self.numbers = numbers[blends.NUMBERS :]
        self._shares = Shares(self.words, self._chunks[:, forms.LENGTH].tolist())

    def draw(self, seed: int, counter: int) -> None:
        """Sets what the words are a function of."""
        self.words[blends.SEED] = seed
        self.words[blends.COUNTER] = counter

    def run(self, kernel: int) -> None:
        """Calls a kernel."""
        self._shares.run(kernel)


def _jobs(rows: np.ndarray, params: Sequence[Tensor], form: KernelForm, stream: int) -> dict[torch.dtype, _Job]:
    sizes = [param.numel() for param in params]
    which: dict[torch.dtype, list[int]] = {}
    for row, param in enumerate(params):
        which.setdefault(param.dtype, []).append(row)
    return {dtype: _Job(rows, some, sizes, form, stream) for dtype, some in which.items()}


class Blend:
    """Blends pieces, step after step."""

    def __init__(self, pieces: Sequence[Piece], form: KernelForm, stream: int) -> None:
        rows = forms.rows_of([piece.start for piece in pieces], [piece.parameter_id for piece in pieces])
        news = [piece.new for piece in pieces]
        rows[:, forms.PARAMETER] = addresses(news)
        rows[:, forms.GRADIENT] = addresses([piece.old for piece in pieces])
        kind = _blend_kind(form)
        self._calls = [
            (job, blends.blend_kernel(kind, dtype), blends.blend_kernel(None, dtype))
            for dtype, job in _jobs(rows, news, form, stream).items()
        ]

    def copy(self) -> None:
        """``old ← new``."""
        for job, _, copier in self._calls:
            job.run(copier)

    def run(self, seed: int, counter: int) -> None:
        """``new ← old + f · (new − old)``."""
        seed = as_int64(seed)
        for job, kernel, _ in self._calls:
            job.draw(seed, counter)
            job.run(kernel)


class Step:
    """Updates the parameters of a group, step after step."""

    def __init__(self, update: Update, optimizer: str, form: KernelForm, stream: int) -> None:
        params = update.params
        self._rows = rows = forms.rows_of(update.starts, update.ids)
        rows[:, forms.PARAMETER] = addresses(params)
        # Kernels do not touch a state that they do not have, but must not see address 0.
        states = [column or params for column in (*update.states, [], [], [])][:3]
        for position, column in enumerate(states):
            rows[:, forms.STATE + position] = addresses(column)
        if update.steps:
            rows[:, forms.STEP] = addresses(update.steps)
        rows[:, forms.FRESH] = update.fresh
        self._is_fresh = any(update.fresh)
        # Alive as long as their addresses are in the table, and marked as written to after each step.
        self._written = [tensor for column in (params, *update.states, update.steps) for tensor in column]
        self._gradients = rows[:, forms.GRADIENT]
        kind = POSITIVE if form.stays_above(0.0) else KINDS[form.kind]
        self._calls = [
            (job, updates.update_kernel(OPTIMIZERS[optimizer], kind, dtype, update.options))
            for dtype, job in _jobs(rows, params, form, stream).items()
        ]
        self._count = c_function(updates.count_kernel()) if update.steps else None

    def run(self, grads: list[Tensor], numbers: tuple[Any, ...], seed: int, counter: int) -> None:
        """Does an update."""
        grads = forms.readable(grads)
        self._gradients[:] = addresses(grads)
        seed = as_int64(seed)
        for job, _ in self._calls:
            job.draw(seed, counter)
            job.numbers[: len(numbers)] = numbers
        if self._count is not None:
            self._count(self._calls[0][0].words.ctypes.data)
        for job, kernel in self._calls:
            job.run(kernel)
        torch.autograd.graph.increment_version(self._written)
        if self._is_fresh:
            self._rows[:, forms.FRESH] = 0
            self._is_fresh = False


def _blend_kind(form: KernelForm) -> int:
    return NEAR_ONE if form.stays_above(0.5) else KINDS[form.kind]

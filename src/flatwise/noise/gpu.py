"""Launches of the GPU kernels: all that they read is prepared once, and a step is one call for all tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from flatwise.noise import reference
from flatwise.noise import triton as kernels
from flatwise.noise.blender import KernelForm, Piece
from flatwise.noise.keys import as_int64, derive_keys
from flatwise.noise.tables import Tables, is_aligned

DTYPES = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}


class Clock:
    """Seed and tick on a device, where kernels read them: a captured graph may advance the tick by itself.

    Attributes:
        state: int64, shape (2,): the seed's 64 bits, the tick.
    """

    def __init__(self, device: torch.device) -> None:
        self.state = torch.zeros(2, dtype=torch.int64, device=device)
        self._seed, self._tick = self.state[0], self.state[1]
        self._written: tuple[int, int] | None = None

    def set(self, seed: int, tick: int) -> None:
        """Writes both from the host, without waiting for the device."""
        if self._written is None or self._written[0] != seed:
            self._seed.fill_(as_int64(seed))
        if self._written is None or self._written[1] != tick:
            self._tick.fill_(tick)
        self._written = seed, tick

    def advance(self) -> None:
        """Adds 1 to the tick, on the device: what a captured graph does at its end."""
        self._tick.add_(1)
        self._written = None


def on_device(device: torch.device) -> AbstractContextManager[None]:
    """Makes a GPU the current one, on which Triton launches."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def numbers_of(form: KernelForm, device: torch.device) -> Tensor:
    """A form's parameters as kernels read them; float64, shape (3,)."""
    return torch.tensor([*form.numbers, 0.0, 0.0, 0.0][:3], dtype=torch.float64, device=device)


class Launch:
    """A blend of pieces of one dtype and alignment on one device, all but seed and tick prepared.

    Args:
        pieces: at least one.
        form: the factor's distribution.
        stream: the perturbation's stream.
    """

    def __init__(self, pieces: Sequence[Piece], form: KernelForm, stream: int) -> None:
        first = pieces[0]
        self._olds = [piece.old for piece in pieces]
        self._news = [piece.new for piece in pieces]
        self._device = first.new.device
        self.clock = Clock(self._device)
        self._tables = Tables(self._device)
        self._tables.update(
            [[p.new for p in pieces], [p.old for p in pieces]], [p.start for p in pieces], [p.unit for p in pieces]
        )
        self._numbers = numbers_of(form, self._device)
        self._stream = stream
        self._constants = {
            "DTYPE": DTYPES[first.new.dtype],
            "KIND": kernels.KINDS[form.kind],
            "ALIGNED": all(is_aligned(p.start, p.new, p.old) for p in pieces),
            "BLOCK": kernels.BLOCK,
        }

    def copy(self) -> None:
        """Copies the new values to the old; torch does that at the speed of memory."""
        with torch.no_grad():
            torch._foreach_copy_(self._olds, self._news)

    def run(self, seed: int, tick: int) -> None:
        """Blends, with the factors of a seed and a tick."""
        self.clock.set(seed, tick)
        self.enqueue()

    def enqueue(self) -> None:
        """Blends, with the seed and the tick that the clock holds: what a graph captures."""
        if len(self._tables.chunks):
            with on_device(self._device):
                kernels.blend_kernel[(len(self._tables.chunks),)](
                    self._tables.tensors,
                    self._tables.chunks,
                    self._numbers,
                    self.clock.state,
                    self._stream,
                    **self._constants,
                    num_warps=kernels.WARPS,
                    **kernels.EXACT,
                )


def launches(pieces: Sequence[Piece], form: KernelForm, stream: int) -> list[Launch]:
    """The launches that blend pieces of one dtype on one device: one, or two where only some of them are aligned."""
    aligned = [is_aligned(piece.start, piece.new, piece.old) for piece in pieces]
    parts = ([p for p, yes in zip(pieces, aligned, strict=True) if yes == which] for which in (True, False))
    return [Launch(part, form, stream) for part in parts if part]


@cache
def works(device: torch.device) -> bool:
    """Whether kernels run on a device and give the reference's values there; where not, warns why.

    The kernels were written without a GPU at hand, and compilers differ: nothing is taken on trust.
    """
    try:
        _check(device)
    except Exception as error:  # whatever a compiler, an assembler or a driver raises
        warnings.warn(
            f"Triton is installed but its kernels cannot be used on {device}, so flatwise draws its noise there with "
            f"slower torch operations. The cause: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def reference_factor(form: KernelForm, words: Tensor) -> Tensor:
    """The factors that words become, by the reference; float32."""
    first, second, *_ = *form.numbers, 0.0
    if form.kind == "bernoulli":
        return reference.below(words, int(first)).float()
    if form.kind == "uniform":
        return reference.uniform(words).mul_(second).add_(first).float()
    return reference.normal(words).mul_(second).add_(first).clamp_(min=form.numbers[2])


def _check(device: torch.device) -> None:
    """Compares a blend from 0 to 1, which is the factor itself, with the reference."""
    size, seed, tick, unit = 5000, 3, 5, 7
    k0, k1 = derive_keys(seed, tick, 0, [unit])[0].tolist()
    words = reference.words(torch.arange(size, dtype=torch.int32, device=device), (k0, k1))
    forms = (
        KernelForm("bernoulli", (float(1 << 30),)),
        KernelForm("normal", (1.0, 0.5, -math.inf)),
        KernelForm("uniform", (0.0, 2.0)),
    )
    for form in forms:
        new, old = torch.ones(size, device=device), torch.zeros(size, device=device)
        launches([Piece(new, old, 0, unit)], form, 0)[0].run(seed, tick)
        error = float((new - reference_factor(form, words)).abs().max())
        if not error <= 1e-6:
            raise RuntimeError(f"a {form.kind} factor differs from the reference by {error:.1e}")

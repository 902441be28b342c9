"""How kernels are compiled, and how they run on as many threads as torch would use.

A kernel is a C function of one pointer to a *job* (some int64 words). Any number of threads may call it with the same
job: each takes chunk after chunk until none is left, and the result does not depend on who does what. torch's own
threads do it, for a second pool beside them would wait for a core.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import NativeLowering
from numpy.typing import NDArray

from flatwise._kernels import forms
from flatwise._noise import reference

# Threads

c_function = cache(ctypes.CFUNCTYPE(None, ctypes.c_void_p))  # the ``void (job *)`` at an address

# torch's own: below this many elements a second thread costs more than it brings.
GRAIN = 1 << 15

# The first words of every job: address of the table of shares, their number, address of a C function ``int ()`` that
# gives the number of the thread that calls it, or 0.
SHARES, THREADS, WHO, JOB_HEAD = range(4)
# The columns of the table of shares: the next chunk that nobody has yet, and the share's end. A row is a cache line.
NEXT, END, SHARE_COLUMNS = 0, 1, 8


class Shares:
    """Which chunk is whose. Every thread has its own run of chunks, which its core's cache still holds from last time.

    Who comes to the end of its share takes chunks from the others', so that nobody waits for a thread that was held up.

    Args:
        job: a kernel's job, int64. Its first words are set here.
        lengths: elements of each chunk.
    """

    def __init__(self, job: NDArray[np.int64], lengths: Sequence[int]) -> None:
        self._job = job
        self._address: int = job.ctypes.data
        self._ends = np.cumsum([0, *lengths])
        self._most = max(1, -(-int(self._ends[-1]) // GRAIN))
        self._threads = 0

    def run(self, kernel: int) -> None:
        """Calls a kernel, on as many threads as torch would use, and waits for the end.

        Args:
            kernel: address of a C function ``void (job *)`` that threads may call together with one job.
        """
        threads = min(torch.get_num_threads(), self._most)
        if threads != self._threads:
            self._deal(threads)
        self._next[:] = self._starts
        if threads == 1:
            c_function(kernel)(self._address)
        elif (openmp := _torchs_openmp()) is not None:
            openmp.GOMP_parallel(kernel, self._address, threads, 0)
        else:
            # ctypes releases Python's lock during the call, so plain threads work too, only with more delay.
            others = [_pool(threads - 1).submit(c_function(kernel), self._address) for _ in range(threads - 1)]
            c_function(kernel)(self._address)
            for other in others:
                other.result()

    def _deal(self, threads: int) -> None:
        """Cuts the chunks into runs of about as many elements each."""
        chunks = len(self._ends) - 1
        cuts = np.searchsorted(self._ends, self._ends[-1] * np.arange(1, threads) / threads)
        self._table = np.zeros((threads, SHARE_COLUMNS), dtype=np.int64)
        self._table[:, END] = [*cuts, chunks]
        self._starts = np.array([0, *cuts])
        self._next = self._table[:, NEXT]
        openmp = _torchs_openmp()
        who = None if openmp is None else ctypes.cast(openmp.omp_get_thread_num, ctypes.c_void_p).value
        self._job[[SHARES, THREADS, WHO]] = self._table.ctypes.data, threads, who or 0
        self._threads = threads


@cache
def _torchs_openmp() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch loaded, if it has ``GOMP_parallel(function, data, threads, flags)``.

    GNU's runtime and, on Linux, LLVM's and Intel's have this entry point. torch loads its runtime with global symbols.
    """
    try:
        runtime = ctypes.CDLL(None)
        runtime.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        runtime.GOMP_parallel.restype = None
        runtime.omp_get_thread_num  # noqa: B018  # looks it up
    except (OSError, AttributeError, TypeError):
        return None
    return runtime


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="flatwise")


# Compilation. numba's own pipeline leaves three things about loops to LLVM's guess, which cannot know that two
# addresses never overlap, prefers 256-bit vectors where the CPU has 512, and works on one vector after the other. A
# Normal factor is a chain of some forty dependent operations, so that one vector at a time leaves the CPU waiting.

# How many vectors a loop works on at a time.
INTERLEAVED = 4


class _HintingLower(Lower):
    """Translates a function to LLVM's language, with hints for the vectoriser."""

    def post_lower(self):
        """Marks the function and the jumps back to the head of its loops."""
        super().post_lower()
        # llvmlite does not know this attribute's name, but its set of attributes is a set. Were it not: no attribute.
        with contextlib.suppress(TypeError):
            set.add(self.function.attributes, '"prefer-vector-width"="512"')
        seen = set()
        for block in self.function.blocks:
            seen.add(block)
            end = block.terminator
            if end is not None and any(target in seen for target in end.operands):
                end.set_metadata("llvm.loop", self._interleaving())

    def _interleaving(self):
        """The identity of a loop, which is a node that refers to itself, with the wish attached."""
        wish = self.module.add_metadata(["llvm.loop.interleave.count", ir.Constant(ir.IntType(32), INTERLEAVED)])
        loop = self.module.add_metadata([wish])
        loop.operands = (loop, wish)
        return loop


@register_pass(mutates_CFG=True, analysis_only=False)
class _HintingLowering(NativeLowering):
    """Numba's pass that translates, with ours in the place of its translator."""

    _name = "flatwise_hinting_lowering"

    @property
    def lowering_class(self):
        """The translator."""
        return _HintingLower


class _Vectorized(CompilerBase):
    def define_pipelines(self):
        """Numba's own pipeline with that one pass replaced."""
        self.state.flags.noalias = True
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [(_HintingLowering if one is NativeLowering else one, why) for one, why in pipeline.passes]
        pipeline.finalize()
        return [pipeline]


# The decorator of loops over elements. numba's default error model would test every division.
loop = njit(pipeline_class=_Vectorized, forceinline=True, error_model="numpy")


def compiled(kernel):
    """Makes a function of a job's address a C function, from numba's cache or put there.

    A read-only installation with no home folder has no place for a cache: there it is compiled anew in each process.
    """
    signature = types.void(types.voidptr)
    try:
        return cfunc(signature, cache=True, error_model="numpy")(kernel)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        return cfunc(signature, error_model="numpy")(kernel)


def _checksum() -> int:
    """63 bits of a hash of the files that kernels are built from; where a file cannot be read, of its name."""
    digest = blake2b(digest_size=8)
    for file in (*sorted(Path(__file__).parent.glob("*.py")), Path(forms.__file__), Path(reference.__file__)):
        digest.update(file.read_bytes() if file.is_file() else str(file).encode())
    return int.from_bytes(digest.digest(), "little") >> 1


# numba's cache looks at the file of the kernel alone, but a number that the kernel closes over is part of the cache's
# key: with this one, an edit of any file that it is built from compiles it again.
SOURCE = _checksum()

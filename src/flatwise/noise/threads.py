"""Runs a kernel on as many threads as torch would use, without a second pool of threads beside torch's own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

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

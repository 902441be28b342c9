"""Runs a kernel on as many threads as torch would use, without a second pool of threads beside torch's own."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_Kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

# torch's own: below this many elements a second thread costs more than it brings.
GRAIN = 1 << 15


def run(kernel: int, job: int, elements: int) -> None:
    """Calls a kernel, on one thread or several, and waits for the end.

    Args:
        kernel: address of a C function ``void (job *)`` that threads may call together with one job.
        job: address of the job.
        elements: how much there is to do.
    """
    threads = min(torch.get_num_threads(), -(-elements // GRAIN))
    if threads <= 1:
        _Kernel(kernel)(job)
    elif (parallel := _torchs_openmp()) is not None:
        parallel(kernel, job, threads, 0)
    else:
        # ctypes releases Python's lock during the call, so plain threads work too, only with more delay.
        others = [_pool(threads - 1).submit(_Kernel(kernel), job) for _ in range(threads - 1)]
        _Kernel(kernel)(job)
        for other in others:
            other.result()


@cache
def _torchs_openmp() -> ctypes._NamedFuncPointer | None:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP runtime that torch loaded, if it has it.

    GNU's runtime and, on Linux, LLVM's and Intel's have this entry point. torch loads its runtime with global symbols.
    """
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except (OSError, AttributeError, TypeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="flatter")

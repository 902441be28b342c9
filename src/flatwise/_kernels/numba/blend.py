"""Words, factors and the blend: what the fused updates need too, and the kernels of the generic path, in one pass."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic, overload

from flatwise._kernels import forms
from flatwise._kernels.numba.runtime import (
    END,
    JOB_HEAD,
    NEXT,
    SHARE_COLUMNS,
    SHARES,
    SOURCE,
    THREADS,
    WHO,
    compiled,
    loop,
)
from flatwise._noise import reference

u32, i32, f32, f64, u64 = np.uint32, np.int32, np.float32, np.float64, np.uint64

# A parameter's number as kernels find it in memory: also the dtypes that they know.
STORED = {torch.float32: f32(0), torch.float64: f64(0), torch.bfloat16: np.uint16(0)}

# The words of a job, after those for its threads: two tables and their lengths, what the words are a function of, the
# factor's parameters and an optimizer's numbers. These two are float64.
CHUNKS, CHUNK_TABLE, ROWS, ROW_TABLE, SEED, COUNTER, STREAM, FACTOR, NUMBERS, JOB_WORDS = (
    JOB_HEAD + word for word in (0, 1, 2, 3, 4, 5, 6, 7, 10, 16)
)  # fmt: skip

# What the hash's input grows by from element to element.
STRIDE = u32(0x9E3779B9)

_K = f32(reference.K)
_L1, _L2, _L3, _L4, _L5, _L6 = (f32(c) for c in reference.LOG)
_G0, _G1, _G2, _G3, _G4, _G5, _G6, _G7 = (f32(c) for c in reference.GAUSS)


@intrinsic
def fma(context, a, b, c):
    """``a · b + c``, rounded once."""
    return a(a, a, a), lambda context, builder, signature, args: builder.fma(*args)


@intrinsic
def float_of(context, bits):
    """The float32 of these 32 bits."""
    return types.float32(types.uint32), lambda c, builder, s, args: builder.bitcast(args[0], ir.FloatType())


@intrinsic
def bits_of(context, value):
    """The bits of a float32."""
    return types.uint32(types.float32), lambda c, builder, s, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def double_of(context, bits):
    """The float64 of these 64 bits."""
    return types.float64(types.int64), lambda c, builder, s, args: builder.bitcast(args[0], ir.DoubleType())


@intrinsic
def pointer(context, address, like):
    """The address as a pointer to numbers of ``like``'s type."""

    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), code


@intrinsic
def _fetch_and_add(context, address):
    """Fetches and increments the int64 at an address, atomically."""

    def code(context, builder, signature, args):
        word = ir.IntType(64)
        return builder.atomic_rmw("add", builder.inttoptr(args[0], word.as_pointer()), word(1), "monotonic")

    return types.int64(types.int64), code


@intrinsic
def _call(context, address):
    """The result of the C function ``int ()`` at an address."""

    def code(context, builder, signature, args):
        function = ir.FunctionType(ir.IntType(32), [])
        return builder.call(builder.inttoptr(args[0], function.as_pointer()), [])

    return types.int32(types.int64), code


# A job


@njit(inline="always")
def open_job(address):
    """The job's words as integers and as floating point, its chunks and its rows."""
    job = carray(address, JOB_WORDS, dtype=np.int64)
    numbers = carray(address, JOB_WORDS, dtype=np.float64)
    chunks = carray(pointer(job[CHUNK_TABLE], np.int64(0)), (job[CHUNKS], forms.CHUNK_COLUMNS))
    rows = carray(pointer(job[ROW_TABLE], np.int64(0)), (job[ROWS], forms.ROW_COLUMNS))
    return job, numbers, chunks, rows


@njit(inline="always")
def own_share(job):
    """The share that this thread begins with."""
    own = _call(job[WHO]) if job[WHO] != 0 else 0
    return own if own < job[THREADS] else 0


@njit(inline="always")
def take(job, own):
    """Takes a chunk, of the thread's own share or, when that is used up, of another's; −1 when none is left."""
    share, taken = own, -1
    for _ in range(job[THREADS]):
        row = job[SHARES] + share * (8 * SHARE_COLUMNS)
        next_and_end = carray(pointer(row, np.int64(0)), SHARE_COLUMNS)
        if next_and_end[NEXT] < next_and_end[END]:
            chunk = _fetch_and_add(row)
            if chunk < next_and_end[END]:
                taken = chunk
                break
        share = share + 1 if share + 1 < job[THREADS] else 0
    return taken


def at(row, column, chunk, like):
    """Where a chunk begins in the tensor of a row's column, as a pointer to numbers of ``like``'s type."""


@overload(at, inline="always")
def _(row, column, chunk, like):
    size = like.bitwidth // 8
    return lambda row, column, chunk, like: pointer(row[column] + chunk[forms.OFFSET] * size, like)


# Words and factors


@njit(inline="always")
def start(job, row, chunk):
    """(x0, k1): what the hash of a chunk's first element starts from, and the second key of its segment.

    The keys are those of ``keys.derive_keys``, by Philox4x32-10.
    """
    low = u64(0xFFFFFFFF)
    seed, counter, stream, name = u64(job[SEED]), u64(job[COUNTER]), u64(job[STREAM]), u64(row[forms.ID])
    first = row[forms.FIRST] + chunk[forms.OFFSET]
    c0, c1 = name & low, name >> u64(32)
    c2 = counter & low
    c3 = u64(first >> 28) | stream << u64(16) | (counter >> u64(32)) << u64(24)
    k0, k1 = seed & low, seed >> u64(32)
    for _ in range(10):
        a, b = u64(0xD2511F53) * c0, u64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> u64(32)) ^ c1 ^ k0, b & low, (a >> u64(32)) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + u64(0x9E3779B9)) & low, (k1 + u64(0xBB67AE85)) & low
    return u32(u32(u32(first & 0xFFFFFFF) * STRIDE) + u32(c0)), u32(c1)


@njit(inline="always")
def word(x, k1):
    """``reference.words`` from ``x = index · 9E3779B9 + k0`` on."""
    x = u32(x ^ (x >> u32(17)))
    x = u32(x * u32(0xED5AD4BB))
    x = u32(x ^ (x >> u32(11)))
    x = u32(u32(x * u32(0xAC4C1B51)) + k1)
    x = u32(x ^ (x >> u32(15)))
    x = u32(x * u32(0x31848BAB))
    return u32(x ^ (x >> u32(14)))


@njit(inline="always")
def _normal(w):
    """``reference.normal`` of one word."""
    b = bits_of(f32(i32((w & u32(0x7FFFFFFF)) | u32(1))))
    m = float_of((b & u32(0x7FFFFF)) | u32(0x3F800000))
    q = fma(fma(fma(fma(fma(_L6, m, _L5), m, _L4), m, _L3), m, _L2), m, _L1)
    t = math.sqrt(fma(q, m, f32(_K - f32(i32(b >> u32(23))))))
    z = fma(fma(fma(fma(_G7, t, _G6), t, _G5), t, _G4), t, _G3)
    z = fma(fma(fma(z, t, _G2), t, _G1), t, _G0)
    return float_of(bits_of(z) ^ (w & u32(0x80000000)))


@njit(inline="always")
def factor(kind, w, a, b, c):
    """The factor that a word becomes, as ``KernelForm.factors``; ``a``, ``b``, ``c``: the form's numbers; float32."""
    if kind == forms.BERNOULLI:
        return f32(1) if w < u32(a) else f32(0)
    if kind == forms.UNIFORM:
        return f32((f64(w) + 0.5) * 2.0**-32 * b + a)
    f = f32(f32(_normal(w) * f32(b)) + f32(a))
    return f if kind in (forms.POSITIVE, forms.NEAR_ONE) else max(f, f32(c))


# Numbers in memory


def wide(value):
    """A stored parameter as a number to calculate with: bfloat16, stored as uint16, becomes float32."""


@overload(wide, inline="always")
def _(value):
    if value == types.uint16:
        return lambda value: float_of(u32(value) << u32(16))
    return lambda value: value


def stored(number, like):
    """A number as it is stored where ``like`` is: for bfloat16 rounded to nearest, ties to even."""


@overload(stored, jit_options={"forceinline": True})  # numba cannot inline the choice for NaN without a warning
def _(number, like):
    if like != types.uint16:
        return lambda number, like: number

    def to_bfloat16(number, like):
        b = bits_of(number)
        rounded = u32(b + u32(0x7FFF) + ((b >> u32(16)) & u32(1))) >> u32(16)
        return np.uint16(0x7FC0) if number != number else np.uint16(rounded)

    return to_bfloat16


# The blend


@njit(inline="always")
def _blended(old, new, factor, is_near_one):
    """``attach.blend.blend`` of one element, in stored form."""
    was, now = wide(old), wide(new)
    f = type(was)(factor)
    moved = now - was
    mixed = now - moved * (type(f)(1) - f)
    if not is_near_one and abs(f) < type(f)(0.5):
        mixed = was + f * moved
    kept = old if (was == now or (not is_near_one and f == 0)) else stored(mixed, new)
    return new if f == 1 else kept


@loop
def _blend(new, old, n, x0, k1, kind, a, b, c):
    values, before = carray(new, n), carray(old, n)
    x = x0
    for i in range(n):
        w = word(x, k1)
        x = u32(x + STRIDE)
        was, now = before[i], values[i]  # both are read always: a choice of loads would not be vectorised
        if kind == forms.BERNOULLI:
            values[i] = now if w < u32(a) else was
        else:
            values[i] = _blended(was, now, factor(kind, w, a, b, c), kind == forms.NEAR_ONE)


@loop
def _copy(new, old, n):
    values, before = carray(new, n), carray(old, n)
    for i in range(n):
        before[i] = values[i]


@cache
def blend_kernel(kind: int | None, dtype: torch.dtype) -> int:
    """Address of the kernel that scales updates by factors of one kind, for parameters of one dtype.

    Args:
        kind: of factor; ``None``: copies the new values to the old. So each thread copies what it will blend, and the
            copies wait in its core's cache.
        dtype: one of ``STORED``.

    Returns:
        The address of a C function ``void (job *)``; compiled at the first call, then read from numba's cache.
    """
    like, source, copies = STORED[dtype], SOURCE, kind is None
    kind = -1 if kind is None else kind

    @compiled
    def kernel(address):
        built_from = source  # noqa: F841
        job, numbers, chunks, rows = open_job(address)
        own = own_share(job)
        while True:
            taken = take(job, own)
            if taken < 0:
                return
            chunk = chunks[taken]
            row = rows[chunk[forms.ROW]]
            n = i32(chunk[forms.LENGTH])
            new, old = at(row, forms.PARAMETER, chunk, like), at(row, forms.GRADIENT, chunk, like)
            if copies:
                _copy(new, old, n)
            else:
                x0, k1 = start(job, row, chunk)
                _blend(new, old, n, x0, k1, kind, numbers[FACTOR], numbers[FACTOR + 1], numbers[FACTOR + 2])

    address: int = kernel.address
    return address

"""CPU kernels of the generic path, compiled by numba when first used: words, factors and blend in one pass.

A kernel is a C function of one pointer to a *job* (a few int64 words). Any number of threads may call it with the same
job: each takes chunk after chunk until none is left (see ``threads``), and the result does not depend on who does what.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic, overload

from flatwise.noise import reference, threads, vectorize
from flatwise.noise.threads import END, JOB_HEAD, NEXT, SHARE_COLUMNS, SHARES, THREADS, WHO
from flatwise.noise.vectorize import loop

u32, i32, f32, f64, u64 = np.uint32, np.int32, np.float32, np.float64, np.uint64

# Kinds of factor. Their two or three parameters are float64 in the job.
NORMAL, BERNOULLI, UNIFORM = range(3)
# One more: a Normal one that never falls to 0.5 or to its minimum, which need not be looked at for every element.
NEAR_ONE = 3
# Kinds of parameter.
FLOAT32, FLOAT64, BFLOAT16 = range(3)

# The words of a job: those of ``threads``, the number of chunks, the address of their table, what keys are a function
# of, and the factor's parameters.
CHUNKS, TABLE, SEED, TICK, STREAM, PARAMETERS, JOB_WORDS = (JOB_HEAD + word for word in (0, 1, 2, 3, 4, 5, 8))
# The columns of a chunk: addresses of the new and the old values, length, first logical element, unit.
NEW, OLD, LENGTH, FIRST, UNIT, COLUMNS = range(6)

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


@njit(inline="always")
def key(seed, tick, stream, unit, segment):
    """(k0, k1) by Philox4x32-10, as ``keys.derive_keys``."""
    low = u64(0xFFFFFFFF)
    c0, c1 = u64(unit) & low, u64(unit) >> u64(32)
    c2 = u64(tick) & low
    c3 = u64(segment) | u64(stream) << u64(16) | (u64(tick) >> u64(32)) << u64(24)
    k0, k1 = u64(seed) & low, u64(seed) >> u64(32)
    for _ in range(10):
        a, b = u64(0xD2511F53) * c0, u64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> u64(32)) ^ c1 ^ k0, b & low, (a >> u64(32)) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + u64(0x9E3779B9)) & low, (k1 + u64(0xBB67AE85)) & low
    return u32(c0), u32(c1)


@njit(inline="always")
def start(seed, tick, stream, unit, first):
    """(x0, k1): what the hash of a unit's logical element ``first`` starts from, and the second key of its segment."""
    k0, k1 = key(seed, tick, stream, unit, first >> 28)
    return u32(u32(u32(first & 0xFFFFFFF) * STRIDE) + k0), k1


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
def normal(w):
    """``reference.normal`` of one word."""
    b = bits_of(f32(i32((w & u32(0x7FFFFFFF)) | u32(1))))
    m = float_of((b & u32(0x7FFFFF)) | u32(0x3F800000))
    q = fma(fma(fma(fma(fma(_L6, m, _L5), m, _L4), m, _L3), m, _L2), m, _L1)
    t = math.sqrt(fma(q, m, f32(_K - f32(i32(b >> u32(23))))))
    z = fma(fma(fma(fma(_G7, t, _G6), t, _G5), t, _G4), t, _G3)
    z = fma(fma(fma(z, t, _G2), t, _G1), t, _G0)
    return float_of(bits_of(z) ^ (w & u32(0x80000000)))


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


@njit(inline="always")
def _blend(old, new, factor, is_near_one):
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
def _blend_normal(new, old, n, x0, k1, loc, scale, minimum, is_near_one):
    values, before = carray(new, n), carray(old, n)
    x = x0
    for i in range(n):
        w = word(x, k1)
        x = u32(x + STRIDE)
        f = f32(f32(normal(w) * scale) + loc)
        values[i] = _blend(before[i], values[i], f if is_near_one else max(f, minimum), is_near_one)


@loop
def _blend_bernoulli(new, old, n, x0, k1, threshold):
    values, before = carray(new, n), carray(old, n)
    x = x0
    for i in range(n):
        w = word(x, k1)
        x = u32(x + STRIDE)
        was, now = before[i], values[i]  # both are read always: a choice of loads would not be vectorised
        values[i] = now if w < threshold else was


@loop
def _blend_uniform(new, old, n, x0, k1, low, span):
    values, before = carray(new, n), carray(old, n)
    x = x0
    for i in range(n):
        w = word(x, k1)
        x = u32(x + STRIDE)
        u = (f64(w) + 0.5) * 2.0**-32
        values[i] = _blend(before[i], values[i], f32(u * span + low), False)


def checksum(*files: str) -> int:
    """63 bits of a hash of some files' contents; where a file cannot be read, of its name.

    numba's cache looks at the file of the kernel alone, but a number that the kernel closes over is part of the cache's
    key: with this one, an edit of the files that the kernel is built from compiles it again.
    """
    import hashlib

    digest = hashlib.blake2b(digest_size=8)
    for file in files:
        path = Path(file)
        digest.update(path.read_bytes() if path.is_file() else file.encode())
    return int.from_bytes(digest.digest(), "little") >> 1


# A number as the kernels find it in memory.
STORED = {FLOAT32: f32(0), FLOAT64: f64(0), BFLOAT16: np.uint16(0)}

# What the kernels here are built from, beside this file.
SOURCES = (reference.__file__, threads.__file__, vectorize.__file__)
_source = checksum(*SOURCES)


def compiled(**options):
    """Makes a function of a job's address a C function, from numba's cache or put there.

    A read-only installation with no home folder has no place for a cache: there it is compiled anew in each process.
    """

    def compile_(kernel):
        try:
            return cfunc(types.void(types.voidptr), cache=True, **options)(kernel)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return cfunc(types.void(types.voidptr), **options)(kernel)

    return compile_


@cache
def blend_kernel(kind: int, dtype: int) -> int:
    """Address of the kernel that scales updates by factors of one kind, for parameters of one dtype.

    Args:
        kind: ``NORMAL``, ``NEAR_ONE``, ``BERNOULLI`` or ``UNIFORM``.
        dtype: ``FLOAT32``, ``FLOAT64`` or ``BFLOAT16``.

    Returns:
        The address of a C function ``void (job *)``; compiled at the first call, then read from numba's cache.
    """
    number, source = STORED[dtype], _source

    @compiled()
    def kernel(address):
        built_from = source  # noqa: F841
        job = carray(address, JOB_WORDS, dtype=np.int64)
        table = carray(pointer(job[TABLE], np.int64(0)), (job[CHUNKS], COLUMNS))
        a, b, c = double_of(job[PARAMETERS]), double_of(job[PARAMETERS + 1]), double_of(job[PARAMETERS + 2])
        own = own_share(job)
        while True:
            chunk = take(job, own)
            if chunk < 0:
                return
            new, old = pointer(table[chunk, NEW], number), pointer(table[chunk, OLD], number)
            n, first = i32(table[chunk, LENGTH]), table[chunk, FIRST]
            x0, k1 = start(job[SEED], job[TICK], job[STREAM], table[chunk, UNIT], first)
            if kind in (NORMAL, NEAR_ONE):
                _blend_normal(new, old, n, x0, k1, f32(a), f32(b), f32(c), kind == NEAR_ONE)
            elif kind == BERNOULLI:
                _blend_bernoulli(new, old, n, x0, k1, u32(a))
            else:
                _blend_uniform(new, old, n, x0, k1, a, b)

    address: int = kernel.address
    return address


@loop
def _copy(new, old, n):
    values, before = carray(new, n), carray(old, n)
    for i in range(n):
        before[i] = values[i]


@cache
def copy_kernel(dtype: int) -> int:
    """Address of the kernel that copies the new values to the old, with :func:`blend_kernel`'s job.

    So each thread copies what it will blend, and the copies wait in its core's cache.

    Args:
        dtype: ``FLOAT32``, ``FLOAT64`` or ``BFLOAT16``.

    Returns:
        As :func:`blend_kernel`.
    """
    number, source = STORED[dtype], _source

    @compiled()
    def kernel(address):
        built_from = source  # noqa: F841
        job = carray(address, JOB_WORDS, dtype=np.int64)
        table = carray(pointer(job[TABLE], np.int64(0)), (job[CHUNKS], COLUMNS))
        own = own_share(job)
        while True:
            chunk = take(job, own)
            if chunk < 0:
                return
            _copy(pointer(table[chunk, NEW], number), pointer(table[chunk, OLD], number), table[chunk, LENGTH])

    address: int = kernel.address
    return address

"""GPU kernels in Triton: keys, words and factors as device functions, and the blend of the generic path in one launch.

Floating-point operations must round one by one, as in the reference: launch every kernel with ``EXACT``, so
that the compiler fuses no product with a sum, and the fused operations are those written ``tl.fma``. Integers are meant
to wrap around; ``EXACT`` keeps Triton's debug mode from calling that an error.

Under ``TRITON_INTERPRET=1`` all this runs on CPU tensors, for tests.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

from flatwise._kernels import forms
from flatwise._noise import reference

# Keyword arguments of every launch.
EXACT = {"enable_fp_fusion": False, "sanitize_overflow": False}

# Numbers of ``forms`` that kernels know.
BERNOULLI, UNIFORM = tl.constexpr(forms.BERNOULLI), tl.constexpr(forms.UNIFORM)
PARAMETER, GRADIENT, STATE = tl.constexpr(forms.PARAMETER), tl.constexpr(forms.GRADIENT), tl.constexpr(forms.STATE)
STEP, FIRST, ID, FRESH = (tl.constexpr(column) for column in (forms.STEP, forms.FIRST, forms.ID, forms.FRESH))
ROW, OFFSET, LENGTH = tl.constexpr(forms.ROW), tl.constexpr(forms.OFFSET), tl.constexpr(forms.LENGTH)
ROW_COLUMNS, CHUNK_COLUMNS = tl.constexpr(forms.ROW_COLUMNS), tl.constexpr(forms.CHUNK_COLUMNS)

# Elements of one inner step: 8 for each thread of 4 warps, that is one or two 16-byte loads.
BLOCK = 1024
WARPS = 4

# Triton's interpreter truncates where hardware rounds to bfloat16, and garbles bfloat16's subnormal numbers.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")

_K = tl.constexpr(reference.K)
_L1, _L2, _L3, _L4, _L5, _L6 = (tl.constexpr(c) for c in reference.LOG)
_G0, _G1, _G2, _G3, _G4, _G5, _G6, _G7 = (tl.constexpr(c) for c in reference.GAUSS)


@triton.jit
def key(seed0, seed1, counter0, counter1, stream, name, segment):
    """(k0, k1), uint32, by Philox4x32-10, as ``keys.derive_keys``.

    Args:
        seed0, seed1, counter0, counter1: the low and the high half of seed and counter, as int32.
        stream, name, segment: name is the parameter id; int64 scalars.
    """
    c0, c1 = name.to(tl.uint32), (name >> 32).to(tl.uint32)
    c2 = counter0.to(tl.uint32)
    c3 = (segment | (stream << 16) | (counter1 << 24)).to(tl.uint32)
    k0, k1 = seed0.to(tl.uint32), seed1.to(tl.uint32)
    a = tl.full((), 0xD2511F53, tl.uint32)
    b = tl.full((), 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(a, c0), a * c0
        high1, low1 = tl.umulhi(b, c2), b * c2
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1


@triton.jit
def word(index, k0, k1):
    """``reference.words``: uint32 words of elements by their uint32 index in the segment."""
    x = index * 0x9E3779B9 + k0
    x ^= x >> 17
    x = x * 0xED5AD4BB
    x ^= x >> 11
    x = x * 0xAC4C1B51 + k1
    x ^= x >> 15
    x = x * 0x31848BAB
    return x ^ (x >> 14)


@triton.jit
def normal(w):
    """``reference.normal`` of uint32 words; float32."""
    r = ((w & 0x7FFFFFFF) | 1).to(tl.int32).to(tl.float32)
    b = r.to(tl.uint32, bitcast=True)
    m = ((b & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    exponent_share = _K - (b >> 23).to(tl.int32).to(tl.float32)
    q = tl.fma(m, _L6, _L5)
    q = tl.fma(q, m, _L4)
    q = tl.fma(q, m, _L3)
    q = tl.fma(q, m, _L2)
    q = tl.fma(q, m, _L1)
    t = tl.sqrt_rn(tl.fma(q, m, exponent_share))
    z = tl.fma(t, _G7, _G6)
    z = tl.fma(z, t, _G5)
    z = tl.fma(z, t, _G4)
    z = tl.fma(z, t, _G3)
    z = tl.fma(z, t, _G2)
    z = tl.fma(z, t, _G1)
    z = tl.fma(z, t, _G0)
    return (z.to(tl.uint32, bitcast=True) ^ (w & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def below(w, threshold):
    """``reference.below``: whether uint32 words are below a threshold, an int64 scalar up to 2**32."""
    return (w < threshold.to(tl.uint32)) | (threshold == 4294967296)


@triton.jit
def uniform(w):
    """``reference.uniform``: ``(w + 0.5) · 2**-32``, float64, exact."""
    return (w.to(tl.float64) + 0.5) * 2.3283064365386963e-10


@triton.jit
def factor(w, numbers, KIND: tl.constexpr):
    """Factors from words; float32. ``numbers`` points to the three float64 parameters of a ``KernelForm``."""
    if KIND == BERNOULLI:
        return tl.where(below(w, tl.load(numbers).to(tl.int64)), 1.0, 0.0)
    elif KIND == UNIFORM:
        return (uniform(w) * tl.load(numbers + 1) + tl.load(numbers)).to(tl.float32)
    else:
        loc, scale = tl.load(numbers).to(tl.float32), tl.load(numbers + 1).to(tl.float32)
        minimum = tl.load(numbers + 2).to(tl.float32)
        return tl.maximum(normal(w) * scale + loc, minimum)


@triton.jit
def chunk_of(rows, chunks):
    """The program's chunk: its tensor's row, offset in the tensor, length (int32)."""
    chunk = chunks + tl.program_id(0) * CHUNK_COLUMNS
    row = rows + tl.load(chunk + ROW) * ROW_COLUMNS
    return row, tl.load(chunk + OFFSET), tl.load(chunk + LENGTH).to(tl.int32)


@triton.jit
def key_of(row, offset, seed0, seed1, counter0, counter1, stream):
    """(k0, k1) of a chunk, and the uint32 index of its first element in the segment."""
    first = tl.load(row + FIRST) + offset
    k0, k1 = key(seed0, seed1, counter0, counter1, stream, tl.load(row + ID), first >> 28)
    return k0, k1, (first & 0xFFFFFFF).to(tl.uint32)


@triton.jit
def column(row, COLUMN: tl.constexpr, offset, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Pointer to a chunk's first element in one of the row's tensors."""
    pointer = tl.load(row + COLUMN).to(tl.pointer_type(DTYPE)) + offset
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def load(pointer, at, length, MASKED: tl.constexpr):
    """Elements at int32 offsets; where masked, 0 beyond the length."""
    if MASKED:
        return tl.load(pointer + at, mask=at < length, other=0.0)
    else:
        return tl.load(pointer + at)


@triton.jit
def store(pointer, at, length, values, MASKED: tl.constexpr):
    """Writes elements at int32 offsets; where masked, none beyond the length."""
    if MASKED:
        tl.store(pointer + at, values, mask=at < length)
    else:
        tl.store(pointer + at, values)


@triton.jit
def widen(x):
    """Values to calculate with: float64 as they are, all others as float32."""
    if x.dtype == tl.float64:
        return x
    elif INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Values rounded to nearest, ties to even, to be stored."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        b = x.to(tl.uint32, bitcast=True)
        rounded = (b + ((b >> 16) & 1) + 0x7FFF) >> 16
        return tl.where(x == x, rounded, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def blend(old, new, f, DTYPE: tl.constexpr):
    """``attach.blend.blend`` of stored values ``old`` and ``new`` with float32 factors; stored values."""
    was, now = widen(old), widen(new)
    weight = f.to(was.dtype)
    moved = now - was
    mixed = tl.where(tl.abs(weight) < 0.5, was + weight * moved, now - moved * (1.0 - weight))
    mixed = tl.where((weight == 0.0) | (was == now), old, narrow(mixed, DTYPE))
    return tl.where(weight == 1.0, new, mixed)


@triton.jit
def _blend_block(
    new, old, at, length, x, k0, k1, numbers, DTYPE: tl.constexpr, KIND: tl.constexpr, MASKED: tl.constexpr
):
    after, before = load(new, at, length, MASKED), load(old, at, length, MASKED)
    f = factor(word(x + at.to(tl.uint32), k0, k1), numbers, KIND)
    if KIND == BERNOULLI:
        store(new, at, length, tl.where(f == 1.0, after, before), MASKED)
    else:
        store(new, at, length, blend(before, after, f, DTYPE), MASKED)


@triton.jit(do_not_specialize=["seed0", "seed1", "counter0", "counter1", "stream"])
def blend_kernel(
    rows, chunks, numbers, seed0, seed1, counter0, counter1, stream,
    KIND: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One chunk of one tensor: its columns are the new values, scaled in place, and the old ones."""
    row, offset, length = chunk_of(rows, chunks)
    new = column(row, PARAMETER, offset, DTYPE, ALIGNED)
    old = column(row, GRADIENT, offset, DTYPE, ALIGNED)
    k0, k1, x = key_of(row, offset, seed0, seed1, counter0, counter1, stream)
    at = tl.arange(0, BLOCK)
    whole = length // BLOCK * BLOCK
    # Whole blocks without a mask, which would keep the compiler from loading 16 bytes at once.
    for begin in range(0, whole, BLOCK):
        _blend_block(new, old, begin + at, length, x, k0, k1, numbers, DTYPE, KIND, False)
    if whole < length:
        _blend_block(new, old, whole + at, length, x, k0, k1, numbers, DTYPE, KIND, True)

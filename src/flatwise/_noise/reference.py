"""The meaning of the noise, in plain torch operations: every kernel must give these bits.

One 32-bit word per element. torch has few operations on uint32, so a word travels as the int32 of the same bits:
products and sums wrap alike, and a logical shift is an arithmetic one whose high bits are masked away.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flatwise._noise.keys import SEGMENT, SEGMENT_BITS


def signed(bits: int) -> int:
    """The int32 that has these 32 bits."""
    return bits - (1 << 32) if bits >= 1 << 31 else bits


def _float(bits: int) -> float:
    """The float32 that has these 32 bits (as a Python float, which holds it exactly)."""
    value: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return value


def _xorshift_(x: Tensor, shift: int) -> Tensor:
    return x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1))


def words(index: Tensor, key: tuple[int, int] | tuple[Tensor, Tensor]) -> Tensor:
    """The random words of some elements of one parameter.

    ``x = index · 9E3779B9 + k0;  x ^= x >> 17;  x *= ED5AD4BB;  x ^= x >> 11;  x = x · AC4C1B51 + k1;``
    ``x ^= x >> 15;  x *= 31848BAB;  w = x ^ (x >> 14)``, all modulo 2**32.

    Args:
        index: int32, any shape: the elements' logical indices modulo 2**28, all of one segment.
        key: the segment's (k0, k1), or for a key of its own for each element two int32 tensors of the same shape.

    Returns:
        int32, same shape: the bits of the uint32 words.
    """
    k0, k1 = (k if isinstance(k, Tensor) else signed(k) for k in key)
    x = (index * signed(0x9E3779B9)).add_(k0)
    _xorshift_(x, 17).mul_(signed(0xED5AD4BB))
    _xorshift_(x, 11).mul_(signed(0xAC4C1B51)).add_(k1)
    _xorshift_(x, 15).mul_(signed(0x31848BAB))
    return _xorshift_(x, 14)


def uniform(w: Tensor) -> Tensor:
    """``u = (w + 0.5) · 2**-32`` in (0, 1), float64: the float64 value is exact."""
    return _unsigned(w).double().add_(0.5).mul_(2.0**-32)


def below(w: Tensor, threshold: int) -> Tensor:
    """``w < threshold`` for the unsigned words, 0 ≤ threshold ≤ 2**32; bool."""
    if threshold == 1 << 32:
        return torch.ones_like(w, dtype=torch.bool)
    return w.bitwise_xor(signed(1 << 31)) < signed(threshold ^ (1 << 31))


def rescale(w: Tensor, start: int, stop: int) -> Tensor:
    """Words on [start, stop) stretched to all 32 bits: ``floor((w − start) · 2**31 / (stop − start)) · 2``.

    A mixture spends one word on both its choice and its value; the last bit is lost, and no 64-bit product overflows.
    """
    stretched = ((_unsigned(w) - start) << 31) // (stop - start) << 1
    return stretched.to(torch.int32)  # keeps the low 32 bits, which is the point


def _unsigned(w: Tensor) -> Tensor:
    return w.long().bitwise_and_(0xFFFFFFFF)


# The inverse of the Normal distribution function, written on t = sqrt(−2 ln p) for the tail probability p:
# a polynomial for the logarithm of the mantissa, the exponent's share through K, and a polynomial in t.
K = _float(0x4321EE17)
LOG = tuple(map(_float, (0xC0C39D6F, 0x40AAF1A6, 0xC052569F, 0x3FA22A84, 0xBE8CE073, 0x3CD27665)))  # L1 … L6
GAUSS = tuple(  # G0 … G7
    map(_float, (0xBFE9396B, 0x40166591, 0xBF1D7224, 0x3E690212, 0xBD66A84D, 0x3C101F2B, 0xBA4C2AF4, 0x37F873D3))
)


def normal(w: Tensor) -> Tensor:
    """Standard Normal values from words by an inverse distribution function; float32, |z| ≤ 6.23.

    ``r = float32((w & 7FFFFFFF) | 1);  b = bits(r);  m = float((b & 7FFFFF) | 3F800000)``
    ``q = L6; q = fma(q, m, L5) … fma(q, m, L1);  t = sqrt(fma(q, m, K − float(b >> 23)))``
    ``z = G7; z = fma(z, t, G6) … fma(z, t, G0);  sign of z flipped where w ≥ 2**31``

    torch has no fused multiply-add. A float32 product is exact in float64, so ``fma(a, b, c)`` is taken as the float64
    sum rounded to float32: the same bits on every machine, and those of a hardware fma except where the float64 sum
    itself was rounded onto the midpoint of two float32 numbers (about one in 2**29; then the last bit differs).
    """
    r = w.bitwise_and(0x7FFFFFFF).bitwise_or_(1).to(torch.float32)
    bits = r.view(torch.int32)
    mantissa = bits.bitwise_and(0x7FFFFF).bitwise_or_(0x3F800000).view(torch.float32).double()
    exponent_share = K - (bits >> 23).to(torch.float32)
    q = _horner(LOG, mantissa)
    radicand = q.mul_(mantissa).add_(exponent_share).float()
    # By way of float64: torch's own float32 root comes from MKL where there is MKL, and is not rounded to nearest.
    t = radicand.double().sqrt_().float().double()
    z = _horner(GAUSS, t).float()
    return torch.where(w < 0, -z, z)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule with every fused multiply-add rounded to float32; float64 in and out."""
    *rest, last = coefficients
    value = torch.full_like(x, last)
    rounded = torch.empty_like(x, dtype=torch.float32)
    for coefficient in reversed(rest):
        value.copy_(rounded.copy_(value.mul_(x).add_(coefficient)))
    return value


SegmentKey = Callable[[int], tuple[int, int]]

# Long enough to hide the cost of launching an operation, short enough that the chunk's buffers stay in cache.
CHUNK = 1 << 17


def runs(start: int, count: int) -> Iterator[tuple[int, int]]:
    """Cuts ``count`` elements from logical index ``start`` on into (offset, length) runs within one segment each."""
    offset = 0
    while offset < count:
        room = SEGMENT - (start + offset) % SEGMENT
        length = min(CHUNK, room, count - offset)
        yield offset, length
        offset += length


def words_run(key: SegmentKey, start: int, count: int, device: torch.device) -> Tensor:
    """The words of the elements ``start … start + count − 1``, all of one segment; int32, shape (count,)."""
    first = start % SEGMENT
    index = torch.arange(first, first + count, dtype=torch.int32, device=device)
    return words(index, key(start >> SEGMENT_BITS))


def words_at(key: SegmentKey, index: Tensor, size: int, device: torch.device) -> Tensor:
    """The words of some logical elements of a tensor.

    Args:
        key: the keys of each segment.
        index: int64, any shape, on the CPU: which elements.
        size: a bound above all indices; where one segment holds so many, the indices need not be read.
        device: where the words are wanted.

    Returns:
        int32, the shape of ``index``.
    """
    low = (index & (SEGMENT - 1)).to(device=device, dtype=torch.int32)
    if index.numel() == 0:
        return low
    first = last = 0
    if size > SEGMENT:
        first, last = (int(bound) >> SEGMENT_BITS for bound in torch.aminmax(index))
    if first == last:
        return words(low, key(first))
    result = torch.empty_like(low)
    segments = (index >> SEGMENT_BITS).to(device)
    for segment in range(first, last + 1):
        inside = segments == segment
        result[inside] = words(low[inside], key(segment))
    return result

"""What a random word is a function of: (seed, counter, stream, parameter id, segment), packed into one Philox call.

The *counter* numbers the draws: a step, an epoch or 0. The *parameter id* is a 64-bit hash of a name, so that ten
thousand parameters still collide with a probability of only 3e-12, on whichever rank they live; a parameter group, or
the whole optimizer, has an id too where it shares one factor. The *stream* tells composed perturbations apart. A
*segment* is a run of 2**28 elements of one tensor: within it the element hash is a bijection.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SEGMENT_BITS = 28
SEGMENT = 1 << SEGMENT_BITS

SEED_LIMIT = 1 << 64
COUNTER_LIMIT = 1 << 40
STREAM_LIMIT = 1 << 8
SEGMENT_LIMIT = 1 << 16

_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(32)


def as_int64(word: int) -> int:
    """The signed integer of the same 64 bits: kernels are handed seeds as int64."""
    return word if word < 1 << 63 else word - (1 << 64)


def parameter_id(name: str) -> int:
    """The 64-bit id of a name: the first eight bytes of its BLAKE2b, little-endian."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def stream_seed(seed: int, stream: int) -> int:
    """The seed whose noise an optimizer draws that was given this seed and stream: stream 0 is the seed itself.

    Else it is the first eight bytes, little-endian, of BLAKE2b of ``stream:{seed}:{stream}``.
    """
    return seed if stream == 0 else parameter_id(f"stream:{seed}:{stream}")


def derive_keys(
    seed: int, counter: int | range, stream: int, ids: Sequence[int], segment: int = 0
) -> NDArray[np.uint64]:
    """The keys (k0, k1) under which the elements of each parameter are hashed.

    ``(k0, k1, _, _) = Philox4x32-10(block = (id_lo, id_hi, counter_lo, segment | stream << 16 | counter_hi << 24),
    key = (seed_lo, seed_hi))``

    Args:
        seed: 0 ≤ seed < 2**64.
        counter: number of the draw (a step, an epoch), 0 ≤ counter < 2**40; or, for a single id, n consecutive ones.
        stream: position of the perturbation in its composition, 0 ≤ stream < 2**8.
        ids: from :func:`parameter_id`, n of them.
        segment: 0 ≤ segment < 2**16.

    Returns:
        Shape (n, 2): 32-bit words held in uint64.

    Raises:
        ValueError: an argument is outside its range.
    """
    limits = {"seed": SEED_LIMIT, "counter": COUNTER_LIMIT, "stream": STREAM_LIMIT, "segment": SEGMENT_LIMIT}
    last = counter[-1] if isinstance(counter, range) else counter
    for (name, limit), value in zip(limits.items(), (seed, last, stream, segment), strict=True):
        if not 0 <= value < limit:
            raise ValueError(f"{name} must be an integer in [0, 2**{limit.bit_length() - 1}), got {value}")
    names, counters = np.array(ids, dtype=np.uint64), np.array(counter, dtype=np.uint64)
    block = np.empty((4, max(names.size, counters.size)), dtype=np.uint64)
    block[0] = names & _LOW
    block[1] = names >> _HIGH
    block[2] = counters & _LOW
    block[3] = np.uint64(segment | stream << 16) | (counters >> _HIGH) << np.uint64(24)
    return philox4x32(block, (seed & 0xFFFFFFFF, seed >> 32))[:2].T


def philox4x32(block: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """The block function of Philox4x32-10 (Salmon et al., SC 2011), the strong, slow generator that makes the keys.

    It runs once per parameter and step, never per element; numpy does a whole optimizer's parameters in one call.

    Args:
        block: shape (4, n), 32-bit words held in uint64; Salmon et al. call it the counter.
        key: two 32-bit words.

    Returns:
        Shape (4, n): four 32-bit words, held in uint64, for each block.
    """
    c0, c1, c2, c3 = block
    k0, k1 = key
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0 = (product1 >> _HIGH) ^ c1 ^ np.uint64(k0)
        c1 = product1 & _LOW
        c2 = (product0 >> _HIGH) ^ c3 ^ np.uint64(k1)
        c3 = product0 & _LOW
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3])

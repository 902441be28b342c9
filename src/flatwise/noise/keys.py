"""What a random word is a function of: (seed, tick, stream, unit, segment), packed into one Philox call.

A *unit* is whatever shares one family of draws: a parameter, a parameter group, or the whole optimizer. It is
identified by 64 bits of a hash of its name, so that ten thousand parameters still collide with a probability of only
3e-12, on whichever rank they live. A *stream* tells composed perturbations apart. A *segment* is a run of
2**28 elements of one tensor: within it the element hash is a bijection.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from flatwise.noise.philox import philox4x32

SEGMENT_BITS = 28
SEGMENT = 1 << SEGMENT_BITS

SEED_LIMIT = 1 << 64
TICK_LIMIT = 1 << 40
STREAM_LIMIT = 1 << 8
SEGMENT_LIMIT = 1 << 16


def as_int64(word: int) -> int:
    """The signed integer of the same 64 bits: kernels are handed seeds as int64."""
    return word if word < 1 << 63 else word - (1 << 64)


def unit_id(name: str) -> int:
    """The 64-bit identity of a unit: the first eight bytes of BLAKE2b of its name, little-endian."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little")


def stream_seed(seed: int, stream: int) -> int:
    """The seed whose noise an optimizer draws that was given this seed and stream: stream 0 is the seed itself.

    Else it is the first eight bytes, little-endian, of BLAKE2b of ``stream:{seed}:{stream}``.
    """
    return seed if stream == 0 else unit_id(f"stream:{seed}:{stream}")


def derive_keys(
    seed: int, tick: int | range, stream: int, units: Sequence[int], segment: int = 0
) -> NDArray[np.uint64]:
    """The keys (k0, k1) under which the elements of each unit are hashed.

    ``(k0, k1, _, _) = Philox4x32-10(counter = (unit_lo, unit_hi, tick_lo, segment | stream << 16 | tick_hi << 24),
    key = (seed_lo, seed_hi))``

    Args:
        seed: 0 ≤ seed < 2**64.
        tick: number of the draw (a step, an epoch), 0 ≤ tick < 2**40; or, for a single unit, n consecutive ones.
        stream: position of the perturbation in its composition, 0 ≤ stream < 2**8.
        units: identities from :func:`unit_id`, n of them.
        segment: 0 ≤ segment < 2**16.

    Returns:
        Shape (n, 2): 32-bit words held in uint64.

    Raises:
        ValueError: an argument is outside its range.
    """
    limits = {"seed": SEED_LIMIT, "tick": TICK_LIMIT, "stream": STREAM_LIMIT, "segment": SEGMENT_LIMIT}
    last = tick[-1] if isinstance(tick, range) else tick
    for (name, limit), value in zip(limits.items(), (seed, last, stream, segment), strict=True):
        if not 0 <= value < limit:
            raise ValueError(f"{name} must be an integer in [0, 2**{limit.bit_length() - 1}), got {value}")
    ids, ticks = np.array(units, dtype=np.uint64), np.array(tick, dtype=np.uint64)
    counter = np.empty((4, max(ids.size, ticks.size)), dtype=np.uint64)
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    counter[0] = ids & low
    counter[1] = ids >> high
    counter[2] = ticks & low
    counter[3] = np.uint64(segment | stream << 16) | (ticks >> high) << np.uint64(24)
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))[:2].T

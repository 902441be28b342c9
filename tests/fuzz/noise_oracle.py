"""The factors once more, written from docs/noise.md alone, in numpy and without a line of flatwise."""

from __future__ import annotations

import math
from hashlib import blake2b

import numpy as np
from scipy.special import ndtri

MASK = 0xFFFFFFFF


def philox(counter: list[int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 in Python's integers."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        one, two = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (two >> 32) ^ b ^ k0, two & MASK, (one >> 32) ^ d ^ k1, one & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [a, b, c, d]


def hash_of(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def words(seed: int, tick: int, position: int, unit: str, elements: np.ndarray) -> np.ndarray:
    """The words of some elements (all below 2**28) of a unit, as int64."""
    identity = hash_of(unit)
    counter = [identity & MASK, identity >> 32, tick & MASK, position << 16 | (tick >> 32) << 24]
    k0, k1, _, _ = philox(counter, (seed & MASK, seed >> 32))
    found = []
    for element in elements.reshape(-1).tolist():
        x = (element * 0x9E3779B9 + k0) & MASK
        x = ((x ^ x >> 17) * 0xED5AD4BB) & MASK
        x = ((x ^ x >> 11) * 0xAC4C1B51 + k1) & MASK
        x = ((x ^ x >> 15) * 0x31848BAB) & MASK
        found.append(x ^ x >> 14)
    return np.array(found, dtype=np.int64).reshape(elements.shape)


def factor(name: str, numbers: tuple[float, ...], w: np.ndarray) -> np.ndarray:
    """Factors of a distribution from words: ``constant``, ``bernoulli``, ``uniform``, ``loguniform``, ``normal``,
    or ``ralr`` (p, low, high): a mixture of a uniform with the constant 1.
    """
    u = (w + 0.5) * 2.0**-32
    match name:
        case "constant":
            return np.full(w.shape, numbers[0])
        case "bernoulli":
            return (w < round(numbers[0] * 2**32)).astype(float)
        case "uniform":
            return numbers[0] + (numbers[1] - numbers[0]) * u
        case "loguniform":
            return numbers[0] * np.exp(math.log(numbers[1] / numbers[0]) * u)
        case "normal":
            tail = ((w & 0x7FFFFFFF) | 1) * 2.0**-32
            z = np.where(w < 2**31, -ndtri(tail), ndtri(tail))
            return np.maximum(numbers[0] + numbers[1] * z, numbers[2])
        case "ralr":
            threshold = round(numbers[0] * 2**32)
            stretched = w * 2**31 // threshold * 2 if threshold else w
            return np.where(w < threshold, numbers[1] + (numbers[2] - numbers[1]) * (stretched + 0.5) * 2.0**-32, 1.0)
    raise ValueError(name)

"""The generator against known answers, and against a second implementation in plain Python integers."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from flatwise._noise import keys, reference

MASK = 0xFFFFFFFF
CPU = torch.device("cpu")


# A second implementation, of Python integers and exact fractions, written from the specification alone


def word(e, k0, k1):
    x = (e * 0x9E3779B9 + k0) & MASK
    x ^= x >> 17
    x = x * 0xED5AD4BB & MASK
    x ^= x >> 11
    x = (x * 0xAC4C1B51 + k1) & MASK
    x ^= x >> 15
    x = x * 0x31848BAB & MASK
    return x ^ (x >> 14)


def float32(bits):
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def to_float32(x):
    """The exact fraction rounded to float32, half to even (normal numbers only)."""
    if x == 0:
        return x
    exponent = math.floor(math.log2(abs(x)))
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    ulp = Fraction(2) ** (exponent - 23)
    return round(x / ulp) * ulp


def fma(a, b, c):
    return to_float32(a * b + c)


def sqrt32(x):
    """Correctly rounded: the double root of a float32 number is far enough from any midpoint."""
    return to_float32(Fraction(math.sqrt(x)))


K = float32(0x4321EE17)
L = [float32(b) for b in (0xC0C39D6F, 0x40AAF1A6, 0xC052569F, 0x3FA22A84, 0xBE8CE073, 0x3CD27665)]
G = [
    float32(b) for b in (0xBFE9396B, 0x40166591, 0xBF1D7224, 0x3E690212, 0xBD66A84D, 0x3C101F2B, 0xBA4C2AF4, 0x37F873D3)
]


def normal(w):
    r = to_float32(Fraction((w & 0x7FFFFFFF) | 1))
    b = struct.unpack("<I", struct.pack("<f", float(r)))[0]
    m = float32((b & 0x7FFFFF) | 0x3F800000)
    q = L[5]
    for coefficient in reversed(L[:5]):
        q = fma(q, m, coefficient)
    t = sqrt32(fma(q, m, K - (b >> 23)))
    z = G[7]
    for coefficient in reversed(G[:7]):
        z = fma(z, t, coefficient)
    return float(-z if w >= 1 << 31 else z)


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 & MASK, p0 >> 32 ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def unsigned(words):
    return [w & MASK for w in words.tolist()]


def int32(values):
    return torch.tensor([v - (1 << 32) if v >> 31 else v for v in values], dtype=torch.int32)


def scattered(count, salt=1):
    """Words all over the range, with its edges."""
    edges = [0, 1, 2, 0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0x80000001, MASK - 1, MASK]
    return edges + [word(e, 0xABCDEF01 * salt & MASK, 0x10FEDCBA) for e in range(count)]


# Philox


KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_random123s_known_answers(counter, key, expected):
    assert tuple(keys.philox4x32(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0].tolist()) == expected
    assert tuple(philox(counter, key)) == expected


def test_philox_of_many_counters_is_each_alone():
    counters = np.array([scattered(20, salt) for salt in range(4)], dtype=np.uint64)
    together = keys.philox4x32(counters, (0x12345678, 0x9ABCDEF0)).T.tolist()
    assert together == [philox(counter, (0x12345678, 0x9ABCDEF0)) for counter in counters.T.tolist()]


# Words


VECTOR = (0xDEADBEEF, 0x12345678)


def test_the_specifications_test_vector():
    words = reference.words(torch.tensor([0, 1, 1000003], dtype=torch.int32), VECTOR)
    assert unsigned(words) == [0x4A9C2A94, 0x199237A7, 0x14D0559A]
    assert reference.normal(words)[:1].view(torch.int32).item() == 0x3F0C95BC


@pytest.mark.parametrize("key", [(0, 0), (MASK, MASK), VECTOR, (0x80000000, 0x7FFFFFFF)])
def test_words_are_those_of_python_integers(key):
    index = [0, 1, 2, 12345, (1 << 28) - 1] + [word(e, 1, 2) >> 4 for e in range(1000)]
    assert unsigned(reference.words(int32(index), key)) == [word(e, *key) for e in index]


def test_normals_are_those_of_exact_arithmetic():
    words = scattered(3000)
    assert reference.normal(int32(words)).tolist() == [normal(w) for w in words]


def test_normals_are_symmetric_bounded_and_near_the_true_quantile():
    from scipy import stats

    words = scattered(20_000)
    z = reference.normal(int32(words)).double().numpy()
    mirrored = reference.normal(int32([w ^ 0x80000000 for w in words])).double().numpy()
    assert (z == -mirrored).all()
    tail = np.array([((w & 0x7FFFFFFF) | 1) / 2**32 for w in words])
    truth = np.where(np.array(words) >> 31 == 0, stats.norm.isf(tail), -stats.norm.isf(tail))
    central = np.abs(truth) < 3.5
    assert np.abs(z - truth)[central].max() < 1.2e-5
    assert np.abs(z).max() == pytest.approx(6.23, abs=0.01)


def test_uniforms_are_exact():
    words = scattered(1000)
    assert reference.uniform(int32(words)).tolist() == [(w + 0.5) / 2**32 for w in words]


@pytest.mark.parametrize("threshold", [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0x80000001, MASK, 1 << 32])
def test_the_bernoulli_threshold_is_unsigned_and_sharp(threshold):
    words = [*scattered(200), max(threshold - 1, 0), min(threshold, MASK), min(threshold + 1, MASK)]
    assert reference.below(int32(words), threshold).tolist() == [w < threshold for w in words]


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1 << 31), (1 << 31, 1 << 32), (0, 3), (123456789, 1 << 32), (0, 1 << 32)]
)
def test_rescaled_words_fill_all_32_bits(start, stop):
    words = [w for w in (*scattered(500), start, start + 1, stop - 1) if start <= w < stop]
    expected = [(w - start) * 2**31 // (stop - start) * 2 for w in words]
    assert unsigned(reference.rescale(int32(words), start, stop)) == expected
    assert expected[words.index(start)] == 0
    assert expected[words.index(stop - 1)] >= (1 - 1 / (stop - start)) * 2**32 - 2


# Keys


def test_keys_are_philox_of_the_specified_block():
    seed, counter, stream, segment = 0xFEDCBA9876543210, 0xAB12345678, 0x5C, 0xBEEF
    own = keys.parameter_id("name:layer.weight")
    expected = philox(
        (own & MASK, own >> 32, counter & MASK, segment | stream << 16 | 0xAB << 24), (seed & MASK, seed >> 32)
    )
    assert keys.derive_keys(seed, counter, stream, [0, own], segment)[1].tolist() == expected[:2]


def test_every_part_of_the_name_makes_another_key():
    base = {"seed": 0, "counter": 0, "stream": 0, "ids": [keys.parameter_id("a")], "segment": 0}
    others = [
        {},
        {"seed": 1},
        {"seed": 1 << 32},
        {"seed": (1 << 64) - 1},
        {"counter": 1},
        {"counter": 1 << 32},
        {"counter": (1 << 40) - 1},
        {"stream": 1},
        {"stream": 255},
        {"segment": 1},
        {"segment": (1 << 16) - 1},
        {"ids": [keys.parameter_id("b")]},
    ]
    found = {tuple(keys.derive_keys(**(base | other))[0].tolist()) for other in others}
    assert len(found) == len(others)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("seed", 1 << 64), ("counter", -1), ("counter", 1 << 40), ("stream", 256), ("segment", 1 << 16)],
)
def test_what_does_not_fit_is_refused(name, value):
    arguments = {"seed": 0, "counter": 0, "stream": 0, "ids": [1], "segment": 0} | {name: value}
    with pytest.raises(ValueError, match=rf"{name} must be an integer in \[0, 2\*\*\d+\), got {value}"):
        keys.derive_keys(**arguments)


def test_parameter_ids_are_distinct_and_fixed():
    names = [f"{kind}:{i}" for kind in ("position", "name", "group") for i in range(5000)] + ["all"]
    assert len({keys.parameter_id(name) for name in names}) == len(names)
    # Written down: checkpoints of today must draw the same noise tomorrow.
    assert keys.parameter_id("position:0") == ID_OF_POSITION_0
    assert keys.parameter_id("all") == ID_OF_ALL


ID_OF_POSITION_0 = 0xD2D4261201A98AC9
ID_OF_ALL = 0x5B365B48EEF21947


# Runs and scattered indices


def key_of(segment):
    return (0x1234 + 77 * segment) & MASK, (0x9876 + 33 * segment) & MASK


def expected_words(index):
    return [word(e & (keys.SEGMENT - 1), *key_of(e >> 28)) for e in index]


STARTS = [0, 1, 1000, keys.SEGMENT - 300, 5 * keys.SEGMENT, (1 << 32) - 500, (1 << 32) + 17, (1 << 40) - 500]


@pytest.mark.parametrize("start", STARTS)
def test_a_run_is_its_elements_wherever_it_lies(start):
    count = 300
    index = range(start, start + count)
    words = reference.words_run(key_of, start, count, CPU)
    assert unsigned(words) == expected_words(index)
    assert torch.equal(reference.words_at(key_of, torch.tensor(index), max(index, default=0) + 1, CPU), words)


def test_scattered_indices_may_lie_in_many_segments():
    edges = [segment * keys.SEGMENT for segment in (9, 1, 16, 2)]
    index = torch.tensor([[edge + offset for offset in (-1, 0, 1, 299, 300, 301)] for edge in edges])
    words = reference.words_at(key_of, index, int(index.max()) + 1, CPU)
    assert words.shape == index.shape
    assert unsigned(words.view(-1)) == expected_words(index.view(-1).tolist())


def test_no_indices_no_words():
    assert reference.words_at(key_of, torch.empty(0, 3, dtype=torch.int64), 0, CPU).shape == (0, 3)
    assert list(reference.runs(5, 0)) == []


@pytest.mark.parametrize(("start", "count"), [(0, 1), (0, 3 * reference.CHUNK + 5), (keys.SEGMENT - 10, 20), (7, 99)])
def test_runs_cover_everything_once_and_cross_no_segment(start, count):
    covered = []
    for offset, length in reference.runs(start, count):
        assert 0 < length <= reference.CHUNK
        first, last = start + offset, start + offset + length - 1
        assert first >> 28 == last >> 28
        covered.append((offset, length))
    assert sum(length for _, length in covered) == count
    assert [offset for offset, _ in covered] == [sum(n for _, n in covered[:i]) for i in range(len(covered))]


def test_lag_correlations_across_the_segment_boundary():
    """The hash alone repeats a pattern at lags of 2**30: the segment's own key removes it."""

    def own(segment):
        return tuple(keys.derive_keys(0, 0, 0, [5], segment)[0].tolist())

    count = 200_000
    first = reference.normal(reference.words_run(own, 0, count, CPU)).double()
    for start in (keys.SEGMENT, 4 * keys.SEGMENT, 8 * keys.SEGMENT):
        far = reference.normal(reference.words_run(own, start, count, CPU)).double()
        for shift in (0, 1):
            r = torch.corrcoef(torch.stack([first[shift:], far[: count - shift]]))[0, 1]
            assert abs(r) < 4.5 / math.sqrt(count)

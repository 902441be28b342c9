"""A statistical battery for the noise generator, and generators that it must fail.

Run with `python benchmarks/noise_battery.py`; it needs the `compare` extra (scipy). `--words` is the number of words
of each layout, `--thorough` takes 2**27. Nothing is timed and every seed is fixed, so the numbers repeat.

A word is a function of (seed, stream, unit, tick, element); a *layout* is an order in which such words are read as one
sequence, a *pair* two of them side by side. All words are tested, and the Bernoulli masks and Normal factors made of
them (`randomness.py` has the tests). The verdict on a generator is of the whole family of p values: none may be too
near to 0 or to 1 (Bonferroni), and together they must be uniform (Kolmogorov and Smirnov), each at level 0.0005.

The exit status is 0 if flatwise's generator and the known good ones pass, and all the bad ones fail.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from randomness import WORD_TESTS, Masks, Normals, Pair, Plan, avalanche, uniformity

from flatwise._noise import reference
from flatwise._noise.keys import SEGMENT_BITS, derive_keys, parameter_id, philox4x32
from flatwise.distributions import Bernoulli, Normal

LEVEL = 0.0005
CHUNK = 1 << 20
PIECE = 1 << 15  # words made at once: what they are made from stays in cache
BAD_WORDS = 1 << 18  # what is bad must show by then
U32, U64 = np.uint32, np.uint64


# Generators: coordinates in, words out


def hash_of(index, k0, k1):
    """The words of `docs/noise.md` from indices and keys, uint32 arrays."""
    x = index * U32(0x9E3779B9) + k0
    x ^= x >> U32(17)
    x *= U32(0xED5AD4BB)
    x ^= x >> U32(11)
    x = x * U32(0xAC4C1B51) + k1
    x ^= x >> U32(15)
    x *= U32(0x31848BAB)
    return x ^ x >> U32(14)


def keys(seed, stream, unit, tick, element):
    """(k0, k1) of each element, as `flatwise._noise.keys.derive_keys` has them for one tick."""
    segment = element >> U64(SEGMENT_BITS)
    if all(values[0] == values.min() == values.max() for values in (seed, stream, unit, tick, segment)):
        seed, stream, unit, tick, segment = (values[:1] for values in (seed, stream, unit, tick, segment))
    counter = (
        unit & U64(0xFFFFFFFF),
        unit >> U64(32),
        tick & U64(0xFFFFFFFF),
        segment | stream << U64(16) | (tick >> U64(32)) << U64(24),
    )
    k0, k1, _, _ = philox4x32(np.stack(counter), (seed & U64(0xFFFFFFFF), seed >> U64(32)))
    return k0.astype(U32), k1.astype(U32)


def ours(seed, stream, unit, tick, element):
    """Flatwise's generator."""
    k0, k1 = keys(seed, stream, unit, tick, element)
    return hash_of((element & U64((1 << SEGMENT_BITS) - 1)).astype(U32), k0, k1)


def keyed_directly(seed, stream, unit, tick, element):
    """The same hash, keyed by (tick, parameter) without Philox."""
    return hash_of(element.astype(U32), tick.astype(U32), (unit + seed + stream).astype(U32))


def one_round(seed, stream, unit, tick, element):
    """One multiplication and one xorshift on either side."""
    k0, _ = keys(seed, stream, unit, tick, element)
    x = element.astype(U32) * U32(0x9E3779B9) + k0
    x ^= x >> U32(16)
    x *= U32(0x85EBCA6B)
    return x ^ x >> U32(13)


def unmultiplied(seed, stream, unit, tick, element):
    """Flatwise's hash with the index added to the key instead of a multiple of it."""
    k0, k1 = keys(seed, stream, unit, tick, element)
    inverse = U32(pow(0x9E3779B9, -1, 1 << 32))
    return hash_of(element.astype(U32) * inverse, k0, k1)


def powers_of_lcg(seed, stream, unit, tick, element):
    """A linear congruential generator that jumps to its element: x(e) = a^e x(0) + c (a^e − 1) / (a − 1)."""
    k0, _ = keys(seed, stream, unit, tick, element & U64(0))
    x, index = k0.copy(), element.astype(U32)
    a, c = 1664525, 1013904223
    for bit in range(28):
        x = np.where(index >> U32(bit) & U32(1), x * U32(a) + U32(c), x)
        a, c = a * a & 0xFFFFFFFF, c * (a + 1) & 0xFFFFFFFF
    return x


def weyl(seed, stream, unit, tick, element):
    """Multiples of the golden ratio."""
    k0, _ = keys(seed, stream, unit, tick, element)
    return element.astype(U32) * U32(0x9E3779B9) + k0


def same_every_tick(seed, stream, unit, tick, element):
    """A mask that is drawn once."""
    return ours(seed, stream, unit, tick & U64(0), element)


def seed_plus_tick(seed, stream, unit, tick, element):
    """`seed + tick` as the key: seed 1 replays seed 0, a tick later."""
    return ours(seed + tick, stream, unit, tick & U64(0), element)


def segment_ignored(seed, stream, unit, tick, element):
    """The element modulo 2**32, under one key."""
    k0, k1 = keys(seed, stream, unit, tick, element & U64(0))
    return hash_of(element.astype(U32), k0, k1)


def known_good(source: np.random.BitGenerator) -> Callable:
    """A generator of numpy's, which knows no coordinates: always the next words of one sequence."""

    def words(seed, stream, unit, tick, element):
        pairs = source.random_raw(-(-len(element) // 2)).astype(U64)
        return pairs.view(U32)[: len(element)].copy()

    return words


# Distributions: words in, masks and factors out


def mask(words, keep):
    """The mask of `flatwise.Bernoulli`."""
    return (Bernoulli(keep).sample(torch.from_numpy(words.view(np.int32))) != 0).numpy()


def normal(words):
    """The factors of `flatwise.Normal`."""
    return Normal(0.0, 1.0).sample(torch.from_numpy(words.view(np.int32))).numpy()


def wrong_normal(words):
    """One hexadecimal digit of one coefficient is wrong: G2 is BF1D7224."""
    wrong = (*reference.GAUSS[:2], reference._float(0xBF1C7224), *reference.GAUSS[3:])
    with patch.object(reference, "GAUSS", wrong):
        return normal(words)


def wrong_mask(words, keep):
    """A threshold that is 1 % too low."""
    return mask(words, 0.99 * keep)


@dataclass(frozen=True)
class Generator:
    """A candidate.

    Attributes:
        name: for the table.
        words: maps coordinates to words.
        good: whether it should pass; ``None`` where nothing is expected.
        keyed: whether words are a function of coordinates, and do not repeat under one key.
        mask, normal: its distributions.
    """

    name: str
    words: Callable
    good: bool | None = False
    keyed: bool = True
    mask: Callable = mask
    normal: Callable = normal


FLATWISE = Generator("flatwise", ours, good=True)
CONTROLS = [
    Generator("numpy PCG64", known_good(np.random.PCG64(1)), good=True, keyed=False),
    Generator("numpy Philox", known_good(np.random.Philox(1)), good=True, keyed=False),
]
BAD = [
    Generator("keyed without Philox", keyed_directly),
    Generator("one round", one_round),
    Generator("LCG", powers_of_lcg),
    Generator("Weyl sequence", weyl),
    Generator("same mask every tick", same_every_tick),
    Generator("seed + tick", seed_plus_tick),
    Generator("segment ignored", segment_ignored),
    replace(FLATWISE, name="Normal, wrong digit", good=False, normal=wrong_normal),
    replace(FLATWISE, name="Bernoulli, 1 % off", good=False, mask=wrong_mask),
]


# Whether flatwise's hash needs to multiply the index first is a question, not a known failure.
OPEN = [Generator("unmultiplied index", unmultiplied, good=None)]
GENERATORS = [FLATWISE, *CONTROLS, *OPEN, *BAD]


# Layouts: positions in, coordinates out


@dataclass(frozen=True)
class Layout:
    """An order of words.

    Attributes:
        name: for the table.
        coordinates: maps positions (uint64) to those coordinates that are not `HOME`'s.
        words_per_key: how many words of n in a row share a key, in any order.
    """

    name: str
    coordinates: Callable
    words_per_key: Callable[[int], int] = lambda n: 1


HOME = {"seed": 0, "stream": 0, "unit": parameter_id("name:layer.weight"), "tick": 1000, "element": 7}
EDGE = 1 << SEGMENT_BITS


def _blocks(name, size=64):
    """`size` elements of one tick (unit, seed), then of the next."""
    return lambda i: {name: i // U64(size), "element": i % U64(size)}


def _interleaved(name, size=64):
    """One element of each of `size` ticks (units, seeds), then the next element."""
    return lambda i: {name: i % U64(size), "element": i // U64(size)}


def _both_sides(i):
    """Away from the segment's edge, left and right in turn."""
    half = i >> U64(1)
    return {"element": np.where(i & U64(1), U64(EDGE - 1) - half, U64(EDGE) + half)}


LAYOUTS = [
    Layout("elements", lambda i: {"element": i}, lambda n: n),
    Layout("elements around 2^28", _both_sides, lambda n: n // 2),
    Layout("elements beyond 2^43", lambda i: {"element": i + U64(1 << 43)}, lambda n: n),
    Layout("every 4096th element", lambda i: {"element": i << U64(12)}, lambda n: min(n, 1 << 16)),
    Layout("segments", lambda i: {"element": i % U64(1 << 16) << U64(28), "tick": i >> U64(16)}),
    Layout("ticks", lambda i: {"tick": i}),
    Layout("units", lambda i: {"unit": i}),
    Layout("seeds", lambda i: {"seed": i}),
    Layout("seeds one bit apart", lambda i: {"seed": (i ^ i >> U64(1)) + U64(1 << 40)}),
    Layout("streams", lambda i: {"stream": i % U64(256), "tick": i >> U64(8)}),
    Layout("64 elements of ticks", _blocks("tick"), lambda n: min(n, 64)),
    Layout("64 elements of units", _blocks("unit"), lambda n: min(n, 64)),
    Layout("64 elements of seeds", _blocks("seed"), lambda n: min(n, 64)),
    Layout("64 ticks in turn", _interleaved("tick"), lambda n: n // 64),
    Layout("2 seeds in turn", _interleaved("seed", 2), lambda n: n // 2),
]

# Two of these side by side, at each element.
PAIRS = {
    "tick, tick + 1": ({}, {"tick": 1001}),
    "tick, tick + 2^32": ({}, {"tick": 1000 + (1 << 32)}),
    "unit, unit + 1": ({"unit": 5}, {"unit": 6}),
    "seed, seed + 1": ({}, {"seed": 1}),
    "seed, its highest bit": ({}, {"seed": 1 << 63}),
    "stream, stream + 1": ({}, {"stream": 1}),
    "seed + 1, a tick earlier": ({"seed": 0, "tick": 1001}, {"seed": 1, "tick": 1000}),
    "element + 2^27": ({"offset": 0}, {"offset": 1 << 27}),
    "element + 2^28": ({"offset": 0}, {"offset": 1 << 28}),
    "element + 2^30": ({"offset": 0}, {"offset": 1 << 30}),
    "element + 2^31": ({"offset": 0}, {"offset": 1 << 31}),
}
SHARING_A_KEY = {"element + 2^27"}

# Bits of each input that there are to flip, and below what power of two the others' values are drawn.
INPUTS = {"element": (44, 24), "tick": (40, 16), "unit": (64, 64), "seed": (64, 16), "stream": (8, 2)}


EVERYTHING = [*(layout.name for layout in LAYOUTS), *PAIRS, "avalanche"]


# The battery


@dataclass(frozen=True)
class Finding:
    """One p value."""

    generator: str
    layout: str
    test: str
    detail: str
    words: int
    p: float

    @property
    def surprise(self) -> float:
        """The two-sided p value: near 0 if p is near 0 or 1."""
        return min(1.0, 2 * min(self.p, 1 - self.p))


def make(generator: Generator, coordinates: Callable, start: int, count: int):
    """The words at the positions from ``start`` on."""
    found = np.empty(count, dtype=U32)
    for first in range(0, count, PIECE):
        positions = np.arange(start + first, start + min(first + PIECE, count), dtype=U64)
        given = {**HOME, **coordinates(positions)}
        full = {name: np.broadcast_to(np.asarray(value, dtype=U64), positions.shape) for name, value in given.items()}
        found[first : first + PIECE] = generator.words(**full)
    return found


def examine(generator: Generator, layouts: Sequence[str], words: int) -> Iterator[Finding]:
    """All p values of a generator.

    Args:
        generator: whose.
        layouts: names of layouts and of pairs, or "avalanche".
        words: length of each sequence, a power of two, at least 2**14.
    """
    for layout in LAYOUTS:
        if layout.name in layouts:
            yield from _examine_sequence(generator, layout, words)
    for pair in PAIRS:
        if pair in layouts:
            yield from _examine_pair(generator, pair, words)
    if "avalanche" in layouts:
        yield from _examine_inputs(generator, words >> 8)


def _examine_sequence(generator, layout, words):
    chunk = min(words, CHUNK)
    share = layout.words_per_key if generator.keyed else Layout.words_per_key
    plan = Plan(words, chunk, words // share(words), chunk // share(chunk), _salt(generator.name, layout.name))
    tests = {name: test(plan) for name, test in WORD_TESTS.items()}
    tests |= {"masks": Masks(plan, generator.mask), "normals": Normals(plan, generator.normal)}
    for start in range(0, words, chunk):
        piece = make(generator, layout.coordinates, start, chunk)
        for test in tests.values():
            test.add(piece)
    for name, test in tests.items():
        for detail, p in test.p_values().items():
            yield Finding(generator.name, layout.name, name, detail, words, p)


def _salt(*texts: str) -> int:
    return parameter_id(" ".join(texts))


def _examine_pair(generator, pair, words):
    chunk = min(words, CHUNK)
    keys = 1 if generator.keyed and pair in SHARING_A_KEY else 2
    test = Pair(Plan(words, chunk, keys, keys, _salt(generator.name, pair)), generator.mask)
    for start in range(0, words, chunk):
        test.add(*(make(generator, _from(**side), start, chunk) for side in PAIRS[pair]))
    for detail, p in test.p_values().items():
        yield Finding(generator.name, pair, "pair", detail, words, p)


def _from(offset=0, **others):
    """The elements from ``offset`` on."""
    return lambda i: {**others, "element": i + U64(offset)}


def _examine_inputs(generator, count):
    rng = np.random.default_rng(6)
    base = {name: rng.bit_generator.random_raw(count) >> U64(64 - low) for name, (_, low) in INPUTS.items()}
    widths = {name: width for name, (width, _) in INPUTS.items()}
    for detail, p in avalanche(generator.words, widths, base).items():
        yield Finding(generator.name, "avalanche", "avalanche", detail, count, p)


@dataclass(frozen=True)
class Verdict:
    """What a family of p values says.

    Attributes:
        smallest: the smallest two-sided p value, times their number (Bonferroni).
        uniform: the p value of all of them together.
        worst: whose the smallest is.
        count: how many there are.
    """

    smallest: float
    uniform: float
    worst: Finding
    count: int

    @property
    def passes(self) -> bool:
        """Whether neither is below ``LEVEL``."""
        return min(self.smallest, self.uniform) >= LEVEL


def judge(findings: Sequence[Finding]) -> Verdict:
    """The verdict on one generator."""
    worst = min(findings, key=lambda finding: finding.surprise)
    everything = uniformity([finding.p for finding in findings])
    return Verdict(min(1.0, worst.surprise * len(findings)), everything, worst, len(findings))


def check_against_the_reference(count: int = 1000) -> None:
    """Raises if the words tested here are not those of `flatwise._noise.reference`, at random coordinates."""
    rng = np.random.default_rng(7)
    given = {name: rng.bit_generator.random_raw(count) >> U64(64 - width) for name, (width, _) in INPUTS.items()}
    drawn = ours(**given)
    for position in range(count):
        seed, stream, unit, tick, element = (
            int(given[name][position]) for name in ("seed", "stream", "unit", "tick", "element")
        )
        key = derive_keys(seed, tick, stream, [unit], element >> SEGMENT_BITS)[0]
        index = torch.tensor([element % (1 << SEGMENT_BITS)], dtype=torch.int32)
        word = reference.words(index, (int(key[0]), int(key[1])))
        if word.item() & 0xFFFFFFFF != int(drawn[position]):
            raise AssertionError(f"not flatwise's word at {given}, position {position}")


# The table


def table(findings: Sequence[Finding]) -> str:
    """Layouts down, tests across: the smallest two-sided p value of each."""
    columns = list(dict.fromkeys(finding.test for finding in findings))
    smallest: dict[tuple[str, str], float] = {}
    for finding in findings:
        place = finding.layout, finding.test
        smallest[place] = min(smallest.get(place, 1.0), finding.surprise)
    lines = [f"{'':26}" + "".join(f"{column[:9]:>10}" for column in columns)]
    for layout in dict.fromkeys(finding.layout for finding in findings):
        cells = [smallest.get((layout, column)) for column in columns]
        lines.append(f"{layout:26}" + "".join(f"{'' if p is None else format(p, '.1e'):>10}" for p in cells))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the battery; 0 if everything is as expected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=1 << 22, help="of each layout, a power of two; default 2**22")
    parser.add_argument("--thorough", action="store_true", help="2**27 words of each layout, in bounded memory")
    parser.add_argument("--layouts", nargs="+", default=EVERYTHING, choices=EVERYTHING, metavar="NAME")
    names = [generator.name for generator in GENERATORS]
    parser.add_argument("--generators", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--csv", type=Path, default=None, help="write every p value here")
    given = parser.parse_args(arguments)
    words = 1 << 27 if given.thorough else given.words
    if words < 1 << 14 or words & (words - 1):
        parser.error(f"--words must be a power of two, at least {1 << 14}, got {words}")
    check_against_the_reference()
    findings, summary, as_expected = [], [], True
    for generator in GENERATORS:
        if generator.name not in given.generators:
            continue
        size = min(words, BAD_WORDS) if generator.good is False else words
        own = list(examine(generator, given.layouts, size))
        verdict = judge(own)
        expectation = "not known" if generator.good is None else "as expected"
        if generator.good not in (None, verdict.passes):
            expectation, as_expected = "NOT AS EXPECTED", False
        failed = len({finding.layout for finding in own if finding.surprise * len(own) < LEVEL})
        summary.append(
            f"{generator.name:22}{'passes' if verdict.passes else 'FAILS':8}{expectation:17}"
            f"{size:>10}{verdict.count:>9}{verdict.worst.surprise:>10.1e}{verdict.uniform:>10.1e}{failed:>9}  "
            f"{verdict.worst.layout}: {verdict.worst.test} {verdict.worst.detail}"
        )
        print(f"{generator.name}, {size} words of each layout: smallest two-sided p values\n{table(own)}\n", flush=True)
        findings += own
    heads = f"{'words':>10}{'p values':>9}{'smallest':>10}{'together':>10}{'layouts':>9}"
    print(f"{'generator':22}{'verdict':25}{heads}  where the smallest is")
    print("\n".join(summary))
    if given.csv is not None:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Finding)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(asdict(finding) for finding in findings)
    return 0 if as_expected else 1


if __name__ == "__main__":
    sys.exit(main())

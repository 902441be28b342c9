"""Statistical tests of 32-bit words: words in, p values out, of `noise_battery.py`.

A test is fed chunks of one sequence (all of the same length, a power of two of at least 2**14 words) and accumulates
what it counts, so that memory is bounded. Its p values are uniform on (0, 1) when words are independent and uniform;
discrete ones are made so by a random number from a generator with a fixed seed. Sequences of which many words share a
key, under which no word repeats, are compared with draws without replacement: `drawn` is the share of all 2**32 words
that each key has given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy import stats as scipy_stats

LOG2_WORDS = 32
ALL_WORDS = 2.0**LOG2_WORDS
_POPCOUNT = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)
_BITS = (np.arange(1 << 16)[:, None] >> np.arange(16) & 1).astype(np.float64)


@dataclass(frozen=True)
class Plan:
    """What a test knows of the sequence before it comes.

    Attributes:
        words: length of the whole sequence.
        chunk: length of the chunks that it comes in.
        keys: number of keys that the whole sequence, in equal shares, is made with; within one no word repeats.
        chunk_keys: the same of one chunk.
        salt: tells the random numbers of this sequence's discrete p values from those of others.
    """

    words: int
    chunk: int
    keys: int
    chunk_keys: int
    salt: int = 0

    @property
    def drawn(self) -> float:
        """Share of all words that a key has given at the end."""
        return self.words / self.keys / ALL_WORDS

    def rng(self) -> np.random.Generator:
        """Random numbers for discrete p values."""
        return np.random.default_rng(self.salt)


def chi_square(counts, probabilities, variance: float = 1.0) -> float:
    """The p value of Pearson's test; ``variance`` is that of the counts over the multinomial one."""
    counts = np.asarray(counts, dtype=np.float64)
    expected = counts.sum() * np.asarray(probabilities)
    return float(special.chdtrc(len(counts) - 1, (np.square(counts - expected) / expected).sum() / variance))


def normal_p(z: float) -> float:
    """P(Z > z) of a standard Normal: small and large ones are alike surprising."""
    return float(special.ndtr(-z))


def poisson_p(count: int, mean: float, rng: np.random.Generator) -> float:
    """P(N > count) + U · P(N = count) of a Poisson number: exactly uniform."""
    law = scipy_stats.poisson
    return float(law.sf(count, mean) + rng.random() * law.pmf(count, mean))


def binomial_p(count: int, n: int, p: float, rng: np.random.Generator, variance: float = 1.0) -> float:
    """The same of a binomial number; from a Normal law where the count is large."""
    if n * p * (1 - p) > 1e5:
        return normal_p((count - n * p) / math.sqrt(n * p * (1 - p) * variance))
    law = scipy_stats.binom
    return float(law.sf(count, n, p) + rng.random() * law.pmf(count, n, p))


def uniformity(p_values) -> float:
    """The p value of p values: Kolmogorov and Smirnov's test against the uniform distribution."""
    return float(scipy_stats.kstest(p_values, "uniform").pvalue)


def halves(words):
    """Counts of the 2**16 values of the high and of the low 16 bits."""
    pieces = words.view(np.uint16).reshape(-1, 2)
    low, high = (np.bincount(pieces[:, column], minlength=1 << 16) for column in (0, 1))
    return np.stack([high, low])


def bit_z(counts_of_halves, n: int, variance: float = 1.0):
    """Standardised numbers of ones of each of the 32 bits."""
    return ((counts_of_halves @ _BITS).ravel() - n / 2) / math.sqrt(n / 4 * variance)


def bits_p(counts_of_halves, n: int, variance: float = 1.0) -> float:
    """The p value of the numbers of ones of all 32 bits."""
    return float(special.chdtrc(LOG2_WORDS, np.square(bit_z(counts_of_halves, n, variance)).sum()))


def weights(words):
    """Number of ones of each word."""
    pieces = words.view(np.uint16).reshape(-1, 2)
    return _POPCOUNT[pieces[:, 0]] + _POPCOUNT[pieces[:, 1]]


def rotate(words):
    """The low half as the high one."""
    return words << np.uint32(16) | words >> np.uint32(16)


def centred(words):
    """The words as numbers of mean 0 and variance 1."""
    return (words + (0.5 - ALL_WORDS / 2)) * (math.sqrt(12) / ALL_WORDS)


def centred_weights(words):
    """Their numbers of ones, standardised."""
    return (weights(words) - 16.0) / math.sqrt(8.0)


class Equidistribution:
    """Each bit, each byte, and each half of a word takes its values equally often."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._counts = np.zeros((2, 1 << 16), dtype=np.int64)

    def add(self, words) -> None:
        """Counts the values of a chunk's halves."""
        self._counts += halves(words)

    def p_values(self) -> dict[str, float]:
        """Of bits, four bytes, two halves."""
        variance = 1 - self._plan.drawn
        found = {"bits": bits_p(self._counts, self._plan.words, variance)}
        for half, name in zip(self._counts, ("high", "low"), strict=True):
            table = half.reshape(256, 256)
            for axis in (1, 0):
                found[f"byte {name} {axis}"] = chi_square(table.sum(axis=axis), np.full(256, 1 / 256), variance)
            if self._plan.words >= 1 << 19:
                found[f"half {name}"] = chi_square(half, np.full(1 << 16, 2.0**-16), variance)
        return found


class Serial:
    """Pairs and triples of successive words, by their highest and their lowest bits."""

    def __init__(self, plan: Plan) -> None:
        self._bits = {size: min(16 // size, int(math.log2(plan.words / size / 8) / size)) for size in (2, 3)}
        self._counts = {
            (size, end): np.zeros(1 << size * bits, dtype=np.int64)
            for size, bits in self._bits.items()
            for end in ("high", "low")
        }

    def add(self, words) -> None:
        """Counts the chunk's pairs and triples, none of which overlap."""
        for (size, end), counts in self._counts.items():
            bits = self._bits[size]
            part = words >> np.uint32(32 - bits) if end == "high" else words & np.uint32((1 << bits) - 1)
            tuples = part[: len(part) // size * size].reshape(-1, size)
            code = tuples[:, 0]
            for column in range(1, size):
                code = code << np.uint32(bits) | tuples[:, column]
            counts += np.bincount(code, minlength=len(counts))

    def p_values(self) -> dict[str, float]:
        """Of each size and end."""
        return {
            f"{size} {end}": chi_square(counts, np.full(len(counts), 1 / len(counts)))
            for (size, end), counts in self._counts.items()
        }


class Runs:
    """Lengths of runs of the highest and of the lowest bit; ascents; the order of four successive words."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._longest = int(math.log2(plan.words)) - 5
        self._lengths = np.zeros((2, self._longest), dtype=np.int64)
        self._ascents = np.zeros(2, dtype=np.int64)
        self._orders = np.zeros(64, dtype=np.int64)
        # All 24 orders of four numbers, as the outcomes of six comparisons.
        every = np.array(np.meshgrid(*[range(4)] * 4)).reshape(4, -1).T
        every = np.array([row for row in every if len(set(row)) == 4])
        self._possible = np.unique(self._compare(every))

    @staticmethod
    def _compare(rows):
        pairs = [(a, b) for a in range(4) for b in range(a)]
        return sum((rows[:, a] > rows[:, b]).astype(np.int64) << place for place, (a, b) in enumerate(pairs))

    def add(self, words) -> None:
        """Counts a chunk's runs, ascents and orders."""
        for row, bit in enumerate((31, 0)):
            bits = words >> np.uint32(bit) & np.uint32(1)
            lengths = np.diff(np.flatnonzero(bits[1:] != bits[:-1]))
            self._lengths[row] += np.bincount(np.minimum(lengths, self._longest) - 1, minlength=self._longest)
        self._ascents += [(words[1:] > words[:-1]).sum(), 1]
        self._orders += np.bincount(self._compare(words.reshape(-1, 4)), minlength=64)

    def p_values(self) -> dict[str, float]:
        """Of two bits' runs, of ascents, of orders."""
        geometric = 0.5 ** np.arange(1.0, self._longest + 1)
        geometric[-1] *= 2
        ascents, chunks = self._ascents
        n = self._plan.chunk
        z = (ascents - chunks * (n - 1) / 2) / math.sqrt(chunks * (n + 1) / 12)
        possible = self._orders[self._possible]
        return {
            "bit 31": chi_square(self._lengths[0], geometric) if self._lengths[0].sum() else 0.0,
            "bit 0": chi_square(self._lengths[1], geometric) if self._lengths[1].sum() else 0.0,
            "ascents": normal_p(z),
            "order of 4": chi_square(possible, np.full(24, 1 / 24)),
        }


class Gaps:
    """Distances between words of which the four highest, or lowest, bits are 0."""

    def __init__(self, plan: Plan) -> None:
        self._longest = int(math.log(5 * 256 / plan.words) / math.log(15 / 16))  # where five are expected
        self._counts = np.zeros((2, self._longest), dtype=np.int64)

    def add(self, words) -> None:
        """Counts a chunk's gaps."""
        for row, hits in enumerate((words < np.uint32(1 << 28), words & np.uint32(15) == 0)):
            gaps = np.diff(np.flatnonzero(hits))
            self._counts[row] += np.bincount(np.minimum(gaps, self._longest) - 1, minlength=self._longest)

    def p_values(self) -> dict[str, float]:
        """Of both ends."""
        geometric = (15 / 16) ** np.arange(self._longest) / 16
        geometric[-1] *= 16
        names = ("high", "low")
        return {
            name: chi_square(row, geometric) if row.sum() else 0.0
            for name, row in zip(names, self._counts, strict=True)
        }


class BirthdaySpacings:
    """Marsaglia's test: among the spacings of 4096 sorted words, how many have come before."""

    DAYS = 4096

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._repeated = [0, 0]

    def add(self, words) -> None:
        """Counts the repeated spacings of a chunk, for its words as they are and with their halves exchanged."""
        for row, values in enumerate((words, rotate(words))):
            days = np.sort(values.reshape(-1, self.DAYS), axis=1)
            spacings = np.sort(days - np.roll(days, 1, axis=1), axis=1)
            self._repeated[row] += int((spacings[:, 1:] == spacings[:, :-1]).sum())

    def p_values(self) -> dict[str, float]:
        """Of both."""
        m = self.DAYS
        # Pairs of equal spacings, less one for every triple.
        mean = m * (m - 1) ** 2 / (4 * ALL_WORDS) - m**5 / (18 * ALL_WORDS**2)
        mean *= self._plan.words / m
        rng = self._plan.rng()
        return {name: poisson_p(k, mean, rng) for name, k in zip(("high", "low"), self._repeated, strict=True)}


class Repeats:
    """Words that a chunk has more than once: none under one key, and as many as chance has it under several."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._repeats = 0

    def add(self, words) -> None:
        """Counts a chunk's repeats."""
        ordered = np.sort(words)
        self._repeats += int((ordered[1:] == ordered[:-1]).sum())

    def p_values(self) -> dict[str, float]:
        """Of their number; under one key there is no chance, and so no p value unless a word did repeat."""
        n, keys = self._plan.chunk, self._plan.chunk_keys
        pairs = n * (n - 1) / 2 - keys * (n / keys) * (n / keys - 1) / 2
        if pairs == 0:
            return {} if self._repeats == 0 else {"": 0.0}
        mean = (pairs / ALL_WORDS - n**3 / 6 / ALL_WORDS**2) * (self._plan.words / n)
        return {"": poisson_p(self._repeats, mean, self._plan.rng())}


class Ranks:
    """Ranks of 32 × 32 binary matrices of 32 words, and of the lowest and the highest bits of 1024 (from 2**18 on)."""

    MOST = 4096  # matrices of a chunk: elimination is slow, and linear generators show in a few

    def __init__(self, plan: Plan) -> None:
        self._counts = np.zeros((3, 33), dtype=np.int64)

    def add(self, words) -> None:
        """Counts the ranks of a chunk's first matrices."""
        bits = [np.packbits((words >> np.uint32(bit) & np.uint32(1)).astype(np.uint8)) for bit in (0, 31)]
        for row, part in enumerate((words, *(packed.view(np.uint32) for packed in bits))):
            matrices = part[: 32 * self.MOST].reshape(-1, 32)
            self._counts[row] += np.bincount(binary_rank(matrices), minlength=33)

    def p_values(self) -> dict[str, float]:
        """Of each kind of matrix."""
        probabilities = rank_probabilities()
        found = {}
        for name, counts in zip(("words", "bit 0", "bit 31"), self._counts, strict=True):
            lowest = 29 if counts.sum() >= 1500 else 30
            if counts.sum() < 1 << 8:
                continue
            cells = [counts[: lowest + 1].sum(), *counts[lowest + 1 :]]
            laws = [probabilities[: lowest + 1].sum(), *probabilities[lowest + 1 :]]
            found[name] = chi_square(cells, laws)
        return found


def rank_probabilities():
    """Probabilities of the ranks 0 … 32 of a random 32 × 32 binary matrix."""
    size = 32
    found = []
    for rank in range(size + 1):
        log2 = rank * (2 * size - rank) - size * size
        product = math.prod((1 - 2.0 ** (i - size)) ** 2 / (1 - 2.0 ** (i - rank)) for i in range(rank))
        found.append(2.0**log2 * product)
    return np.array(found)


def binary_rank(matrices):
    """Ranks of matrices of bits, shape (n, 32), a word a row."""
    rows = matrices.T.copy()
    rank = np.zeros(rows.shape[1], dtype=np.int64)
    for _ in range(rows.shape[0]):
        # The largest row has the highest bit that is left, if any has: it clears that bit in every other row.
        place = rows.argmax(axis=0)
        pivot = rows[place, np.arange(len(place))]
        rank += pivot != 0
        rows = np.minimum(rows, rows ^ pivot)  # a row gets smaller just where it has the pivot's highest bit
        # The pivot itself has become 0.
    return rank


class WeightDependence:
    """Numbers of ones of eight (or six) successive words, each low, middle or high: all sequences of these."""

    def __init__(self, plan: Plan) -> None:
        self._size = 8 if plan.words >= 1 << 20 else 6
        self._counts = np.zeros(3**self._size, dtype=np.int64)

    def add(self, words) -> None:
        """Counts a chunk's sequences."""
        ones = weights(words)
        level = (ones > 14).astype(np.int64) + (ones > 17)
        size = self._size
        rows = level[: len(level) // size * size].reshape(-1, size)
        self._counts += np.bincount(rows @ 3 ** np.arange(size), minlength=3**size)

    def p_values(self) -> dict[str, float]:
        """Of all sequences, with the binomial law of the weights."""
        law = scipy_stats.binom(32, 0.5)
        single = np.array([law.cdf(14), law.cdf(17) - law.cdf(14), law.sf(17)])
        joint = np.ones(1)
        for _ in range(self._size):
            joint = np.multiply.outer(single, joint).ravel()
        return {"": chi_square(self._counts, joint)}


class Lags:
    """Words at a distance: bits that agree, correlation of values, and of numbers of ones."""

    def __init__(self, plan: Plan) -> None:
        self._lags = sorted({3, 5, 7, *(1 << power for power in range(int(math.log2(plan.chunk)) - 1))})
        self._halves = {lag: np.zeros((2, 1 << 16), dtype=np.int64) for lag in self._lags}
        self._products = {lag: np.zeros(2) for lag in self._lags}
        self._pairs = dict.fromkeys(self._lags, 0)

    def add(self, words) -> None:
        """Compares a chunk with itself."""
        values, ones = centred(words), centred_weights(words)
        for lag in self._lags:
            self._halves[lag] += halves(words[lag:] ^ words[:-lag])
            self._products[lag] += [values[lag:] @ values[:-lag], ones[lag:] @ ones[:-lag]]
            self._pairs[lag] += len(words) - lag

    def p_values(self) -> dict[str, float]:
        """Of each lag."""
        found = {}
        for lag in self._lags:
            pairs = self._pairs[lag]
            found[f"bits {lag}"] = bits_p(self._halves[lag], pairs)
            for name, total in zip(("values", "weights"), self._products[lag], strict=True):
                found[f"{name} {lag}"] = normal_p(total / math.sqrt(pairs))
        return found


class Spectrum:
    """The power at each frequency of blocks of 2**14 words, made Normal so that it is exponential exactly."""

    BLOCK = 1 << 14

    def __init__(self, plan: Plan) -> None:
        self._blocks = plan.words // self.BLOCK
        self._power = np.zeros((2, self.BLOCK // 2 - 1))

    def add(self, words) -> None:
        """Adds a chunk's power, of the words as they are and with their halves exchanged."""
        for row, values in enumerate((words, rotate(words))):
            series = special.ndtri((values + 0.5) / ALL_WORDS).reshape(-1, self.BLOCK)
            transformed = np.fft.rfft(series, axis=1)[:, 1:-1]
            self._power[row] += (np.square(transformed.real) + np.square(transformed.imag)).sum(axis=0)

    def p_values(self) -> dict[str, float]:
        """Of the largest peak, and of all frequencies together."""
        found = {}
        for name, power in zip(("high", "low"), self._power, strict=True):
            single = special.gammaincc(self._blocks, power / self.BLOCK)
            found[f"peak {name}"] = float(-np.expm1(len(single) * np.log1p(-min(single.min(), 0.5))))
            found[f"all {name}"] = uniformity(single)
        return found


WORD_TESTS = {
    "equidistribution": Equidistribution,
    "serial": Serial,
    "runs": Runs,
    "gaps": Gaps,
    "birthdays": BirthdaySpacings,
    "repeats": Repeats,
    "ranks": Ranks,
    "weights": WeightDependence,
    "lags": Lags,
    "spectrum": Spectrum,
}


class Masks:
    """How many elements a Bernoulli factor keeps.

    Args:
        plan: what is known of the sequence.
        mask: maps words and a probability to booleans.
    """

    KEEPS = (0.5, 0.9, 0.05, 0.999)

    def __init__(self, plan: Plan, mask) -> None:
        self._plan = plan
        self._mask = mask
        self._kept = dict.fromkeys(self.KEEPS, 0)

    def add(self, words) -> None:
        """Counts a chunk's ones."""
        for keep in self.KEEPS:
            self._kept[keep] += int(np.count_nonzero(self._mask(words, keep)))

    def p_values(self) -> dict[str, float]:
        """Of each probability."""
        rng = self._plan.rng()
        variance = 1 - self._plan.drawn
        n = self._plan.words
        return {str(keep): binomial_p(k, n, keep, rng, variance) for keep, k in self._kept.items()}


class Normals:
    """Normal factors: Kolmogorov and Smirnov's distance, moments, and tails.

    Args:
        plan: what is known of the sequence.
        normal: maps words to numbers.
    """

    TAILS = (3, 4, 5)
    CELLS = 1 << 18  # so fine that the largest distance at their edges is the largest distance

    def __init__(self, plan: Plan, normal) -> None:
        self._plan = plan
        self._normal = normal
        self._cells = np.zeros(self.CELLS, dtype=np.int64)
        self._orders = range(1, 7 if plan.words >= 1 << 20 else 5)
        self._sums = np.zeros(len(self._orders))
        self._beyond = dict.fromkeys(self.TAILS, 0)

    def add(self, words) -> None:
        """Adds a chunk."""
        z = self._normal(words).astype(np.float64)
        cell = np.minimum((special.ndtr(z) * self.CELLS).astype(np.int64), self.CELLS - 1)
        self._cells += np.bincount(cell, minlength=self.CELLS)
        power = np.ones_like(z)
        for place in range(len(self._sums)):
            power *= z
            self._sums[place] += power.sum()
        for tail in self.TAILS:
            self._beyond[tail] += int(np.count_nonzero(np.abs(z) > tail))

    def p_values(self) -> dict[str, float]:
        """Of the distance, each moment and each tail."""
        n = self._plan.words
        variance = 1 - self._plan.drawn
        edges = np.arange(1, self.CELLS + 1) / self.CELLS
        distance = np.abs(np.cumsum(self._cells) / n - edges).max()
        # Stephens' correction makes the limiting law right at any n.
        effective = math.sqrt(n / variance)
        found = {"KS": float(special.kolmogorov(distance * (effective + 0.12 + 0.11 / effective)))}
        moments = [1.0]  # E z**k for k = 0, 1, …
        for k in range(1, 13):
            moments.append(moments[k - 2] * (k - 1) if k % 2 == 0 else 0.0)
        for order, total in zip(self._orders, self._sums, strict=True):
            spread = math.sqrt((moments[2 * order] - moments[order] ** 2) * n * variance)
            found[f"moment {order}"] = normal_p((total - n * moments[order]) / spread)
        rng = self._plan.rng()
        for tail, count in self._beyond.items():
            p = 2 * special.ndtr(-tail)
            if n * p >= 1:  # else the count says nothing
                found[f"tail {tail}"] = binomial_p(count, n, p, rng, variance)
        return found


class Pair:
    """Two sequences side by side: bits that agree, correlations, words that both have, and masks at the same places.

    Args:
        plan: what is known of both; one key where they share it.
        mask: maps words and a probability to booleans.
    """

    def __init__(self, plan: Plan, mask) -> None:
        self._plan = plan
        self._mask = mask
        self._halves = np.zeros((2, 1 << 16), dtype=np.int64)
        self._products = np.zeros(2)
        self._common = 0
        self._masks = np.zeros((len(Masks.KEEPS), 3), dtype=np.int64)

    def add(self, first, second) -> None:
        """Compares two chunks."""
        self._halves += halves(first ^ second)
        self._products += [
            centred(first) @ centred(second),
            centred_weights(first) @ centred_weights(second),
        ]
        ordered = np.sort(np.concatenate([np.unique(first), np.unique(second)]))
        self._common += int((ordered[1:] == ordered[:-1]).sum())
        for row, keep in enumerate(Masks.KEEPS):
            one, two = self._mask(first, keep), self._mask(second, keep)
            self._masks[row] += [np.count_nonzero(one), np.count_nonzero(two), np.count_nonzero(one & two)]

    def p_values(self) -> dict[str, float]:
        """Of everything compared."""
        n, chunk = self._plan.words, self._plan.chunk
        rng = self._plan.rng()
        found = {
            "bits": bits_p(self._halves, n),
            "values": normal_p(self._products[0] / math.sqrt(n)),
            "weights": normal_p(self._products[1] / math.sqrt(n)),
        }
        if self._plan.keys > 1:  # under one key, the words of different elements differ
            found["common words"] = poisson_p(self._common, n * chunk / ALL_WORDS, rng)
        for keep, (one, two, both) in zip(Masks.KEEPS, self._masks, strict=True):
            # Given both counts, the overlap of independent masks is hypergeometric.
            law = scipy_stats.hypergeom(n, int(one), int(two))
            if law.var() > 1e4:
                found[f"masks {keep}"] = normal_p((both - law.mean()) / law.std())
            else:
                found[f"masks {keep}"] = float(law.sf(both) + rng.random() * law.pmf(both))
        return found


def avalanche(words, inputs: dict[str, int], base: dict[str, np.ndarray]) -> dict[str, float]:
    """Strict avalanche criterion: each flipped input bit flips each output bit half the time.

    Args:
        words: maps coordinates (uint64 arrays, by name) to words.
        inputs: how many bits each input has.
        base: the coordinates whose bits are flipped.

    Returns:
        A p value for each input, of all its bits and all output bits; and one of the numbers of bits that flip.
    """
    before = words(**base)
    n = len(before)
    found = {}
    for name, width in inputs.items():
        z, heavy = [], np.zeros(33, dtype=np.int64)
        for bit in range(width):
            flipped = before ^ words(**{**base, name: base[name] ^ np.uint64(1 << bit)})
            z.append(bit_z(halves(flipped), n))
            heavy += np.bincount(weights(flipped), minlength=33)
        found[f"{name} bits"] = float(special.chdtrc(32 * width, np.square(z).sum()))
        law = scipy_stats.binom(32, 0.5).pmf(np.arange(33))
        middle = [heavy[:9].sum(), *heavy[9:24], heavy[24:].sum()]
        found[f"{name} weights"] = chi_square(middle, [law[:9].sum(), *law[9:24], law[24:].sum()])
    return found

"""Paired comparison over seeds: differences, intervals, exact tests, correction, power. Numbers in, numbers out.

Two training runs that share a seed share their initial weights and their data order, so they are compared by their
difference, and a run is only ever compared with its partner. The pieces, each usable alone, are put together by
``judge``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special

Better = Literal["lower", "higher"]
Verdict = Literal["helps", "hurts", "inconclusive", "failed"]

# Up to this many differences the sign-flip test looks at every pattern of signs (2^19 sums, some 20 ms).
EXACT_UP_TO = 20
# Above it, at this many random ones, so that p has a standard error of at most 0.0016, and of 0.0007 near 0.05.
MONTE_CARLO_FLIPS = 99_999
# `seeds_needed` gives up here: nobody trains so many seeds, and the effect is then too small to matter.
MOST_SEEDS = 10_000


@dataclass(frozen=True, slots=True)
class Judgement:
    """One arm against one baseline, paired by seed.

    Attributes:
        verdict: ``"helps"`` or ``"hurts"`` where ``p_corrected`` is at most the level, ``"inconclusive"`` where not,
            ``"failed"`` where a seed of either arm has no finite value: then nothing is tested and the numbers are NaN.
        n: number of pairs.
        differences: arm − baseline, one per seed, in the metric's unit; not finite where a value is not.
        mean, sd: mean and standard deviation (n − 1) of the differences; ``sd`` is NaN for a single pair.
        low, high: 95 % interval of the mean difference, of this comparison alone: it is not widened for the number of
            comparisons, so it can leave out 0 where the verdict is ``"inconclusive"``. NaN for a single pair.
        p: two-sided p value of the sign-flip test.
        p_corrected: the same after Holm's correction over the family of comparisons.
        seeds_needed: how many seeds would settle an inconclusive comparison (80 % power at the observed effect and
            spread); ``None`` where the verdict stands already or no reachable number would.
    """

    verdict: Verdict
    n: int
    differences: tuple[float, ...]
    mean: float
    sd: float
    low: float
    high: float
    p: float
    p_corrected: float
    seeds_needed: int | None


def judge(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    better: Better,
    level: float = 0.05,
    power: float = 0.8,
) -> dict[str, Judgement]:
    """Judge a family of paired comparisons: each arm against its baseline, with one correction over all of them.

    A verdict of ``"helps"`` or ``"hurts"`` needs a sign-flip p value that is at most ``level`` after Holm's correction;
    the sign of the mean difference says which. If no arm has any effect, the probability that even one of the
    verdicts is ``"helps"`` or ``"hurts"`` is at most ``level``: an arm without effect could be swapped with its
    baseline, however its metric is distributed. Measured (``benchmarks/paired_statistics.py``: 4 arms, 10 seeds, level
    0.05): 0.046 for normal metrics, 0.021 for error counts with their many ties; about half of it is ``"helps"``.

    Limit: an arm that leaves the mean alone but makes the differences asymmetric, such as one that is mostly a little
    better and sometimes much worse, does have an effect, and the verdict need not be about the mean: with differences
    that are exponential − 1, 0.15 of such families had a verdict (0.20 with a t test in place of the sign flips).

    A comparison with a value that is not finite is ``"failed"`` and is left out of the family. One of a single pair can
    decide nothing: it is ``"inconclusive"`` with p = 1.

    Args:
        pairs: by name, the metric of the arm and of its baseline, one number per seed; position i of both is seed i.
        better: whether a ``"lower"`` or a ``"higher"`` metric is better.
        level: the family-wise level of the tests, in (0, 1). Default: 0.05.
        power: the power at which ``seeds_needed`` aims, in (0, 1). Default: 0.8.

    Returns:
        One judgement per name, in the order of ``pairs``. ``seeds_needed`` of an inconclusive comparison is for the
        level divided by the number of comparisons in the family: what Holm asks of its smallest p value, and more
        than it asks of the others. It is always above the number of pairs that did not suffice.

    Raises:
        ValueError: an entry is empty or its two sides differ in length; ``better``, ``level`` or ``power`` is not one
            of the values above.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f'better must be "lower" or "higher"; got {better!r}')
    _check_share("level", level)
    _check_share("power", power)

    differences = {name: _differences(name, arm, baseline) for name, (arm, baseline) in pairs.items()}
    p_values = {name: sign_flip_p_value(d) for name, d in differences.items() if all(map(math.isfinite, d))}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))

    judgements = {}
    for name, d in differences.items():
        if name not in p_values:
            nan = math.nan
            judgements[name] = Judgement("failed", len(d), d, nan, nan, nan, nan, nan, nan, None)
            continue
        mean, sd = _mean_and_sd(d)
        low, high = mean_interval(d)
        verdict: Verdict = "inconclusive"
        seeds = None
        if corrected[name] <= level:
            verdict = "helps" if (mean < 0) == (better == "lower") else "hurts"
        else:
            seeds = seeds_needed(d, level / len(p_values), power)
            # The forecast rests on a t test, which may call these pairs enough where the sign-flip test did not.
            seeds = None if seeds is None else max(seeds, len(d) + 1)
        judgements[name] = Judgement(verdict, len(d), d, mean, sd, low, high, p_values[name], corrected[name], seeds)
    return judgements


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """Two-sided p value of the paired sign-flip (randomisation) test of "the arm and its baseline are the same".

    If they are, a pair's two values could as well have been swapped, so every pattern of signs of the differences was
    equally likely. The p value is the share of the 2^n patterns whose ``|Σ ± d_i|`` is at least the observed
    ``|Σ d_i|``. It needs no normality and no large n. It cannot be smaller than 2/2^n: 6 pairs are needed for 0.05.

    It is exact up to ``EXACT_UP_TO`` (20) differences. Above, it is ``(b + 1)/(m + 1)`` with ``b`` of ``m`` = 99,999
    random patterns at least as extreme (again a valid p value), from a generator with a fixed seed: the same
    differences always give the same p value, and numpy's global generator is neither read nor moved.

    Args:
        differences: arm − baseline, one per pair, finite, at least one. If all are 0, p is 1.

    Returns:
        The p value, in (0, 1].

    Raises:
        ValueError: ``differences`` is empty or has a value that is not finite.
    """
    d = _finite(differences)
    largest = np.abs(d).max()
    if largest == 0:
        return 1.0
    d = d / largest  # p does not depend on the unit, and no sum can overflow
    # Sums that are equal in exact arithmetic differ by rounding, as 0.3 − 0.2 and 0.1 do: they count as equal.
    observed = abs(d.sum()) - 1e-9 * np.abs(d).sum()

    sums = d[:1]  # the first sign is fixed: a pattern and its mirror image have the same |sum|
    if len(d) <= EXACT_UP_TO:
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= observed))

    rng = np.random.default_rng(0)
    sums = np.full(MONTE_CARLO_FLIPS, d[0])
    for value in d[1:]:
        sums += np.where(rng.integers(0, 2, MONTE_CARLO_FLIPS, dtype=np.int8), value, -value)
    return float((np.count_nonzero(np.abs(sums) >= observed) + 1) / (MONTE_CARLO_FLIPS + 1))


def mean_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of paired differences: ``mean ± t_{n−1} · sd/√n``.

    The bootstrap is not used, because at the few seeds that people can afford it covers the mean too rarely. Measured
    (``benchmarks/paired_statistics.py``; 4000 samples each, so ± 0.01): the share of 95 % intervals with the true mean

    ==================================  ======  =====  ==========  =====
    differences                         pairs   t      percentile  BCa
    ==================================  ======  =====  ==========  =====
    normal                              5       0.957  0.850       0.846
    normal                              10      0.954  0.905       0.902
    of two skewed error counts          5       0.957  0.852       0.858
    of two skewed error counts          10      0.952  0.902       0.899
    asymmetric (exponential − 1)        5       0.892  0.785       0.812
    asymmetric (exponential − 1)        10      0.897  0.858       0.873
    ==================================  ======  =====  ==========  =====

    Args:
        differences: arm − baseline, one per pair, finite, at least one.
        confidence: the share of such intervals that contains the true mean, in (0, 1). Default: 0.95.

    Returns:
        The interval's lower and upper end, in the unit of the differences; NaN for a single difference, which has no
        spread.

    Raises:
        ValueError: ``differences`` is empty or has a value that is not finite; ``confidence`` is not in (0, 1).
    """
    _check_share("confidence", confidence)
    d = _finite(differences)
    mean, sd = _mean_and_sd(d)
    half = float(special.stdtrit(len(d) - 1, (1 + confidence) / 2)) * sd / math.sqrt(len(d)) if len(d) > 1 else math.nan
    return mean - half, mean + half


def welch_interval(
    a: tuple[float, float, int], b: tuple[float, float, int], confidence: float = 0.95
) -> tuple[float, float]:
    """Welch's t interval of the difference of two means, of unpaired samples that may differ in their spread.

    For results of which only mean, spread and number are known, such as a paper's. Runs of one's own are paired by
    seed: use :func:`mean_interval` for those.

    Args:
        a, b: mean, standard deviation (n − 1) and number of the values of each sample; at least 2 values.
        confidence: the share of such intervals that contains the true difference, in (0, 1). Default: 0.95.

    Returns:
        The lower and upper end of the interval of ``mean of a − mean of b``; both are the difference itself where
        neither sample has any spread.

    Raises:
        ValueError: a number is not finite, a standard deviation negative, a sample below 2, or ``confidence`` not in
            (0, 1).
    """
    _check_share("confidence", confidence)
    for mean, sd, n in (a, b):
        if not (math.isfinite(mean) and math.isfinite(sd) and sd >= 0 and n >= 2):
            raise ValueError(
                "each sample needs a finite mean, a standard deviation of at least 0, and at least 2 values; got "
                f"mean {mean}, standard deviation {sd}, {n} values"
            )
    difference = a[0] - b[0]
    variances = a[1] ** 2 / a[2], b[1] ** 2 / b[2]
    total = sum(variances)
    if total == 0:
        return difference, difference
    freedom = total**2 / (variances[0] ** 2 / (a[2] - 1) + variances[1] ** 2 / (b[2] - 1))
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * math.sqrt(total)
    return difference - half, difference + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that may be compared with the family-wise level, each on its own.

    The i-th smallest of m is multiplied by ``m − i + 1``; none is below the one before it, and none is above 1.

    Args:
        p_values: the uncorrected p values, each in [0, 1]; may be empty.

    Returns:
        The corrected p values, in the order given.

    Raises:
        ValueError: a value is not in [0, 1].
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"a p value lies in [0, 1]; got {p}: leave out the comparisons that have none")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def seeds_needed(differences: Sequence[float], level: float, power: float = 0.8) -> int | None:
    """How many pairs a repetition would need, if the effect and the spread are what they were here.

    The smallest n at which a two-sided paired t test finds, with probability ``power``, a mean difference of the
    observed size and direction: ``P(T > t_{n−1, 1−a/2}) ≥ power``, ``T`` noncentral t with ``n − 1`` degrees of freedom
    and noncentrality ``√n · |mean|/sd``. Its level ``a`` is ``level`` rounded down to a multiple of 2/2^n, because the
    sign-flip test has no other p values: with less than that (``level < 2/2^n``) it can find nothing. In simulation
    (``benchmarks/paired_statistics.py``) the sign-flip test then finds the effect with a probability of 0.81 to
    0.91 at an aim of 0.8 (more where 2/2^n alone sets the number).

    It is a number for planning. The observed effect is itself an estimate, and one that came out too large needs more.

    Args:
        differences: arm − baseline, one per pair, finite, at least one.
        level: level of the two-sided test, in (0, 1).
        power: probability of finding the effect, in (0, 1). Default: 0.8.

    Returns:
        The number of pairs; ``None`` where the mean is 0, where a single difference shows no spread, and where more
        than 10,000 pairs would be needed.

    Raises:
        ValueError: ``differences`` is empty or has a value that is not finite; ``level`` or ``power`` is not in (0, 1).
    """
    _check_share("level", level)
    _check_share("power", power)
    mean, sd = _mean_and_sd(_finite(differences))
    if mean == 0 or math.isnan(sd):
        return None
    effect = abs(mean) / sd if sd > 0 else math.inf

    def enough(n: int) -> bool:
        # Above 50 pairs the grid of p values is finer than a float can show.
        attained = math.floor(math.ldexp(level, n - 1)) / 2 ** (n - 1) if n <= 50 else level
        if attained == 0:
            return False
        critical = special.stdtrit(n - 1, 1 - attained / 2)
        # Beyond a noncentrality of 30 the power is 1, and the function loses its accuracy.
        return bool(special.nctdtr(n - 1, min(effect * math.sqrt(n), 30.0), critical) <= 1 - power)

    low, high = 1, MOST_SEEDS
    if not enough(high):
        return None
    while high - low > 1:  # the power grows with n
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@dataclass(frozen=True, slots=True)
class Correlation:
    """A rank correlation with its 95 % interval.

    Attributes:
        value: Spearman's coefficient, in [−1, 1]; NaN where it has none: too few points, or one side all equal.
        low, high: the interval; NaN with it.
        n: number of points.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


def rank_correlation(x: Sequence[float], y: Sequence[float], given: Sequence[float] | None = None) -> Correlation:
    """Spearman's rank correlation (ties share their mean rank) with a 95 % interval.

    The interval is Fisher's ``tanh(atanh(r) ± 1.96 · √((1 + r²/2)/(n − 3)))`` with Bonett and Wright's standard error.
    It takes the points as independent. With few points it is wide, as it should be: ± 0.6 around 0 with 10 points.
    Measured (``benchmarks/rank_correlation.py``: normal points, true coefficients of 0 to 0.9), it held the true value
    in 0.97 to 0.99 of samples of 6 points, and in 0.95 to 0.97 of 10 or 15.

    Args:
        x, y: one number each per point, finite.
        given: a third variable to be held fixed, in ranks: the partial correlation, which has one point less to its
            interval; default: none.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    columns = [_finite(values) for values in (x, y, *([] if given is None else [given]))]
    n = len(columns[0])
    if any(len(column) != n for column in columns):
        raise ValueError(f"a correlation needs as many x as y; got {[len(column) for column in columns]} numbers")
    free = n - 3 if given is None else n - 4
    nothing = Correlation(math.nan, math.nan, math.nan, n)
    if free < 1 or any(np.ptp(column) == 0 for column in columns):
        return nothing
    ranks = np.corrcoef([_ranks(column) for column in columns])
    r = float(ranks[0, 1])
    if given is not None:
        rest = (1 - ranks[0, 2] ** 2) * (1 - ranks[1, 2] ** 2)
        if rest < 1e-12:  # the third decides one of the two
            return nothing
        r = float((r - ranks[0, 2] * ranks[1, 2]) / math.sqrt(rest))
    r = min(1.0, max(-1.0, r))
    half = 1.959964 * math.sqrt((1 + r * r / 2) / free)
    # A perfect order is no certainty: its interval is that of the coefficient one exchange of neighbours away.
    near = max(-1 + 12 / (n**3 - n), min(1 - 12 / (n**3 - n), r))
    low, high = math.tanh(math.atanh(near) - half), math.tanh(math.atanh(near) + half)
    return Correlation(r, min(low, r), max(high, r), n)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, position, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[position]
    return ranks


def _differences(name: str, arm: Sequence[float], baseline: Sequence[float]) -> tuple[float, ...]:
    if len(arm) != len(baseline) or len(arm) == 0:
        raise ValueError(
            f"comparison {name!r} needs as many values of the arm as of its baseline, and at least one; got {len(arm)} "
            f"and {len(baseline)}: pair them by seed"
        )
    return tuple(float(a) - float(b) for a, b in zip(arm, baseline, strict=True))


def _finite(differences: Sequence[float]) -> NDArray[np.float64]:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or len(d) == 0 or not np.isfinite(d).all():
        raise ValueError(f"differences must be a list of at least one finite number; got {differences!r}")
    return d


def _mean_and_sd(differences: Sequence[float] | NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard deviation (n − 1), the latter NaN for one number."""
    d = np.asarray(differences, dtype=np.float64)
    return float(d.mean()), float(d.std(ddof=1)) if len(d) > 1 else math.nan


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, both excluded; got {value}")

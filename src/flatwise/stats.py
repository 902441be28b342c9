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
from scipy import optimize, special

Better = Literal["lower", "higher"]
Verdict = Literal[
    "helps",
    "hurts",
    "inconclusive",
    "skewed",
    "does nothing",
    "not independent",
    "not comparable",
    "not tested",
    "failed",
]
# The verdicts of comparisons for which no test was made: their p values are NaN.
UNTESTED: tuple[Verdict, ...] = ("not independent", "not comparable", "not tested", "failed")

# Up to this many differences the sign-flip test looks at every pattern of signs (2^19 sums, some 20 ms).
EXACT_UP_TO = 20
# Above that, at this many random ones: p then has a standard error of at most 0.0016, and of 0.0007 near 0.05.
MONTE_CARLO_FLIPS = 99_999
# By how much a unit of skewness weakens t, times the number of differences; see `skewness_adjusted_p_value`.
SKEWNESS_FACTOR = 16
# `seeds_needed` stops here: an effect that needs more seeds is too small to matter.
MOST_SEEDS = 10_000


@dataclass(frozen=True, slots=True)
class Judgement:
    """One arm against one baseline, paired by seed.

    Attributes:
        verdict: ``"helps"`` or ``"hurts"`` where ``p_corrected`` is at most the level. Otherwise one of

            - ``"inconclusive"``: no difference was shown; that does not mean "equal";
            - ``"skewed"``: the sign-flip test alone would show a difference, but it assumes symmetric differences, and
              these are too asymmetric for so few pairs;
            - ``"does nothing"``: every pair is identical in all that was recorded, see ``judge``;
            - ``"not independent"``, ``"not comparable"``: the caller found that these pairs must not be tested;
            - ``"not tested"``: it stands behind another comparison, which has no verdict;
            - ``"failed"``: a seed of either arm has no finite value; the numbers are NaN.
        n: number of pairs.
        differences: arm − baseline, one per seed, in the metric's unit; not finite where a value is not.
        mean, sd: mean and standard deviation (n − 1) of the differences; ``sd`` is NaN for a single pair.
        low, high: 95 % interval of the mean difference, of this comparison alone: it is not widened for the number of
            comparisons, so it can leave out 0 where the verdict is ``"inconclusive"``. NaN for a single pair.
        p: two-sided p value of the sign-flip test; NaN where nothing was tested.
        p_corrected: the larger of ``p`` and ``p_skewness``, corrected over the family of comparisons.
        seeds_needed: how many seeds would settle an inconclusive comparison (80 % power) if the effect and its spread
            were exactly as observed; ``None`` where there is a verdict or no reachable number would.
        p_skewness: two-sided p value of the skewness-adjusted t test (:func:`skewness_adjusted_p_value`); 0 if there is
            nothing to adjust, NaN where nothing was tested.
        seeds_range: the fewest and the most seeds needed, at the ends of the effect size's 95 % interval. The most is
            ``None`` if the interval includes no effect. The whole is ``None`` unless the verdict is ``"inconclusive"``
            and there are at least two pairs.
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
    p_skewness: float = math.nan
    seeds_range: tuple[int, int | None] | None = None


def judge(
    pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    better: Better,
    level: float = 0.05,
    power: float = 0.8,
    behind: Mapping[str, str] | None = None,
    barred: Mapping[str, Verdict] | None = None,
    absent: int = 0,
) -> dict[str, Judgement]:
    """Judge a family of paired comparisons: each arm against its baseline, with one correction over all of them.

    A verdict of ``"helps"`` or ``"hurts"`` needs two p values that are at most ``level`` after the correction: that of
    the sign-flip test, which is exact if the differences are symmetric around 0, and that of a t test that is adjusted
    for their skewness. The sign of the mean difference says which.

    A comparison can stand **behind** another and is tested only after that one has a verdict, as a method's comparison
    with its control behind its comparison with vanilla. :func:`gated_holm` then corrects over the number of comparisons
    that stand behind nothing, so those behind cost the others no power. The probability that any verdict of the family
    is false is at most ``level``, however the comparisons depend on each other.

    Measured (``benchmarks/paired_statistics.py``: 4 arms, 10 seeds, level 0.05): of families without any effect, 0.036
    had a verdict for normal metrics and 0.018 for error counts with their many ties; about half of it is ``"helps"``.

    Limit: differences that are not symmetric although their mean is 0, as of an arm that is mostly a little better and
    sometimes much worse. The adjustment holds the error of a single test in either direction to 0.03 (nominally 0.025)
    at skewness 2 with 10 pairs or more; without the adjustment, the error is 0.095. Of families of 4 such arms, 0.059
    had a verdict, and 0.15 without it. It cannot see what the sample does not show: where one seed in five is much
    worse, all ten of one sample in nine are of the better kind. Its price is power: 0.60 instead of 0.80 for a single
    effect of one standard deviation with 10 pairs.

    Args:
        pairs: by name, the metric of the arm and of its baseline, one number per seed; position i of both is seed i.
        better: whether a ``"lower"`` or a ``"higher"`` metric is better.
        level: the family-wise level of the tests, in (0, 1). Default: 0.05.
        power: the power at which ``seeds_needed`` aims, in (0, 1). Default: 0.8.
        behind: by name, the comparison that must have a verdict before this one is tested; that one must stand behind
            nothing itself. Default: none.
        barred: by name, the verdict of comparisons that the caller knows must not be tested (``"not independent"`` or
            ``"not comparable"``), or that were found to be identical (``"does nothing"``). Default: none.
        absent: number of comparisons that belong to the family but whose values are not available: they count in the
            correction as if they had shown nothing. Default: 0.

    Returns:
        One judgement per name, in the order of ``pairs``. ``seeds_needed`` of an inconclusive comparison is for the
        level divided by the number of comparisons that stand behind nothing: what the correction asks of its smallest
        p value, and more than it asks of the others. It is always above the number of pairs that did not suffice.

        A comparison with a value that is not finite is ``"failed"``. It is left out of the family, and so is one that
        must not be tested. A comparison of a single pair is ``"inconclusive"`` with p = 1.

    Raises:
        ValueError: an entry is empty or its two sides differ in length; ``better``, ``level``, ``power``, ``behind``,
            ``barred`` or ``absent`` is not one of the values above.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f'better must be "lower" or "higher"; got {better!r}')
    _check_share("level", level)
    _check_share("power", power)
    if absent < 0:
        raise ValueError(f"absent must be a number of comparisons, at least 0; got {absent}")
    barred = barred or {}
    for name, given in barred.items():
        if name not in pairs or given not in (*UNTESTED, "does nothing"):
            raise ValueError(
                f"barred: {name!r} is {given!r}; expected the name of a pair ({', '.join(map(repr, pairs))}) and one "
                f"of {', '.join(map(repr, (*UNTESTED, 'does nothing')))}"
            )
    differences = {name: _differences(name, arm, baseline) for name, (arm, baseline) in pairs.items()}
    known: dict[str, Verdict] = {
        name: barred.get(name, "failed") if all(map(math.isfinite, d)) else "failed"
        for name, d in differences.items()
        if not all(map(math.isfinite, d)) or barred.get(name) in UNTESTED
    }
    branches = _branches(list(differences), behind or {}, known)
    p_values = {name: sign_flip_p_value(differences[name]) for branch in branches for name in branch}
    p_skewness = {name: skewness_adjusted_p_value(differences[name]) for name in p_values}
    larger = {name: max(p, p_skewness[name]) for name, p in p_values.items()}
    corrected = _corrected(branches, larger, absent)

    judgements = {}
    for name, d in differences.items():
        if name in known and known[name] == "failed":
            nan = math.nan
            judgements[name] = Judgement("failed", len(d), d, nan, nan, nan, nan, nan, nan, None)
            continue
        mean, sd = _mean_and_sd(d)
        low, high = mean_interval(d)
        gate = (behind or {}).get(name)
        if name not in p_values or (gate is not None and not corrected[gate] <= level):
            verdict = known.get(name, "not tested")
            judgements[name] = Judgement(verdict, len(d), d, mean, sd, low, high, math.nan, math.nan, None)
            continue
        verdict, seeds, reach = "inconclusive", None, None
        if corrected[name] <= level:
            verdict = "helps" if (mean < 0) == (better == "lower") else "hurts"
        elif barred.get(name) == "does nothing":
            verdict = "does nothing"
        elif _corrected(branches, {**larger, name: p_values[name]}, absent)[name] <= level:
            verdict = "skewed"
        elif len(d) > 1:
            share = level / (len(branches) + absent)
            seeds = seeds_needed(d, share, power)
            # The forecast rests on a t test, which may call these pairs enough where the sign-flip test did not.
            seeds = None if seeds is None else max(seeds, len(d) + 1)
            reach = seeds_range(d, share, power)
        judgements[name] = Judgement(
            verdict, len(d), d, mean, sd, low, high, p_values[name], corrected[name], seeds, p_skewness[name], reach
        )
    return judgements


def _branches(names: Sequence[str], behind: Mapping[str, str], known: Mapping[str, Verdict]) -> list[list[str]]:
    """Each comparison that can be tested and stands behind nothing, followed by those behind it that can be."""
    for name, gate in behind.items():
        if name not in names or gate not in names or gate in behind:
            raise ValueError(
                f"behind: {name!r} cannot stand behind {gate!r}: both must be among the pairs, and {gate!r} must not "
                f"stand behind another; the pairs are {', '.join(map(repr, names))}"
            )
    return [
        [first, *(name for name, gate in behind.items() if gate == first and name not in known)]
        for first in names
        if first not in behind and first not in known
    ]


def _corrected(branches: Sequence[Sequence[str]], p_values: Mapping[str, float], absent: int) -> dict[str, float]:
    # An absent comparison has shown nothing: its p value is 1, and it stays in the family to the end.
    found = gated_holm([[p_values[name] for name in branch] for branch in branches] + [[1.0]] * absent)
    return {name: p for branch, ps in zip(branches, found, strict=False) for name, p in zip(branch, ps, strict=True)}


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


def skewness_adjusted_p_value(differences: Sequence[float]) -> float:
    """Two-sided p value of a t test of "the mean difference is 0" that allows for asymmetric differences.

    The sign-flip test errs too often where the longer tail is opposite to the mean: the sample then lacks the large
    values that would move the mean back. Here such a tail weakens Student's t: it is divided by ``1 + 16 g/n`` before
    it is compared with Student's distribution of n − 1 degrees of freedom; ``g`` is the sample's skewness away from the
    mean. The factor was chosen by simulation: it is close to the smallest that holds the error below 0.03 for 10
    exponential differences. The t tests of Johnson (J. Am. Stat. Assoc. 73, 1978) and Hall (J. R. Stat. Soc. B 54,
    1992) correct for the skewness as well, but few values show little of theirs, so that these tests still err (0.04 to
    0.05 in the same case), and their correction grows with t², so that they object to large effects too.

    Where the longer tail is on the side of the mean, and where all differences are equal, there is nothing to adjust,
    and p is 0. It is 1 for a single difference and where the mean is 0.

    Measured (``benchmarks/paired_statistics.py``): at a two-sided level of 0.05, both tests together reject towards the
    short tail of exponential differences (mean 0, skewness 2) in 0.042, 0.032, 0.028 and 0.017 of samples of 6, 8, 10
    and 20 pairs; the sign-flip test alone in 0.065, 0.093, 0.095 and 0.077.

    Args:
        differences: arm − baseline, one per pair, finite, at least one.

    Returns:
        The p value, in [0, 1].

    Raises:
        ValueError: ``differences`` is empty or has a value that is not finite.
    """
    d = _finite(differences)
    n = len(d)
    largest = np.abs(d).max()
    if n == 1 or largest == 0:
        return 1.0
    d = d / largest
    mean = float(d.mean())
    if abs(mean) <= 1e-12:
        return 1.0
    deviations = d - mean
    second = float(np.mean(deviations**2))
    if second <= 1e-18:  # all equal but for rounding
        return 0.0
    away = -math.copysign(1, mean) * float(np.mean(deviations**3)) / second**1.5
    if away <= 1e-9:  # symmetric but for rounding counts as symmetric, so that p does not depend on the unit
        return 0.0
    t = abs(mean) / math.sqrt(second / (n - 1))
    return float(2 * special.stdtr(n - 1, -t / (1 + SKEWNESS_FACTOR * away / n)))


def mean_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of paired differences: ``mean ± t_{n−1} · sd/√n``.

    The bootstrap is not used: with few seeds, its intervals contain the mean too rarely. Measured
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

    For results of which only mean, spread and number are known, such as a paper's. Your own runs are paired by seed:
    use :func:`mean_interval`.

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
    return [p for (p,) in gated_holm([[p] for p in p_values])]


def gated_holm(branches: Sequence[Sequence[float]]) -> list[list[float]]:
    """Holm's step-down correction where comparisons stand behind others, and are tested only after their rejection.

    A branch is a first comparison and those behind it. As long as the first is not rejected it alone is tested;
    afterwards those behind it are, by Holm's method among themselves: the smallest of the k that are left is multiplied
    by k. The smallest number over all branches is multiplied by the number of branches in which something is left to
    reject. No corrected p value is below one that was rejected before it. Without any behind, this is :func:`holm`.

    The probability of any false rejection is at most the level, whatever the dependence. Proof: let T branches hold a
    true null hypothesis, and consider the first false rejection. Only false hypotheses were rejected before, so
    something is left in each of the T branches. If the first hypothesis of a branch is true, its p value was at most
    level/T. If not, and k of those behind it are true, at least k were left there, and the p value of one of these k
    was at most level/(T k). By Bonferroni's inequality the probability is at most level/T in either case, and over the
    T branches at most the level. It is a graphical procedure in the sense of Bretz et al., A graphical approach to
    sequentially rejective multiple test procedures, Statistics in Medicine 28 (2009).

    Args:
        branches: the uncorrected p values, each in [0, 1], the first of each branch in front; may be empty.

    Returns:
        The corrected p values, in the order given. One behind a comparison that is not rejected is never smaller than
        that comparison's.

    Raises:
        ValueError: a value is not in [0, 1].
    """
    for p in (p for branch in branches for p in branch):
        if not 0 <= p <= 1:
            raise ValueError(f"a p value lies in [0, 1]; got {p}: leave out comparisons that were not tested")
    corrected = [[math.nan] * len(branch) for branch in branches]
    left = {index: [0] for index, branch in enumerate(branches) if branch}
    largest = 0.0
    while left:
        candidates = {
            index: min((len(positions) * branches[index][position], position) for position in positions)
            for index, positions in left.items()
        }
        index = min(candidates, key=lambda i: candidates[i][0])
        p, position = candidates[index]
        largest = max(largest, min(1.0, len(left) * p))
        corrected[index][position] = largest
        left[index] = [i for i in left[index] if i != position] if position else list(range(1, len(branches[index])))
        if not left[index]:
            del left[index]
    return corrected


def seeds_needed(differences: Sequence[float], level: float, power: float = 0.8) -> int | None:
    """How many pairs a repetition would need, if the effect and the spread are what they were here.

    The smallest n at which a two-sided paired t test finds, with probability ``power``, a mean difference of the
    observed size and direction: ``P(T > t_{n−1, 1−a/2}) ≥ power``, ``T`` noncentral t with ``n − 1`` degrees of freedom
    and noncentrality ``√n · |mean|/sd``. Its level ``a`` is ``level`` rounded down to a multiple of 2/2^n, because the
    sign-flip test has no other p values: with less than that (``level < 2/2^n``) it can find nothing. In simulation
    (``benchmarks/paired_statistics.py``) the sign-flip test then finds the effect with a probability of 0.81 to
    0.91 at an aim of 0.8 (more where 2/2^n alone sets the number).

    It is a number for planning. The observed effect is itself an estimate, see :func:`seeds_range`, and the skewness
    adjustment of ``judge`` takes some of the power.

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
    return _pairs_for(abs(mean) / sd if sd > 0 else math.inf, level, power)


def seeds_range(
    differences: Sequence[float], level: float, power: float = 0.8, confidence: float = 0.95
) -> tuple[int, int | None]:
    """The range of :func:`seeds_needed` over the interval of the effect size: the observed effect is an estimate.

    The effect size is mean/sd; its interval is the exact one for normal differences, from the noncentral t
    distribution. The fewest pairs belong to its end that is farther from 0, the most to the nearer one.

    Args:
        differences: arm − baseline, one per pair, finite, at least two.
        level: level of the two-sided test, in (0, 1).
        power: probability of finding the effect, in (0, 1). Default: 0.8.
        confidence: that of the interval, in (0, 1). Default: 0.95.

    Returns:
        The fewest and the most pairs, both above the number at hand. The most is ``None`` where the interval holds 0,
        so that there may be no effect to be found, or where more than 10,000 would be needed. The fewest is 10,000
        where more would be needed.

    Raises:
        ValueError: as for :func:`seeds_needed`, or a single difference.
    """
    _check_share("level", level)
    _check_share("power", power)
    _check_share("confidence", confidence)
    d = _finite(differences)
    n = len(d)
    if n < 2:
        raise ValueError("seeds_range: an effect size has no interval with a single difference: give at least two")
    mean, sd = _mean_and_sd(d)
    if sd == 0:
        low = high = 0.0 if mean == 0 else math.inf
    else:
        low, high = (x / math.sqrt(n) for x in _noncentralities(abs(mean) / sd * math.sqrt(n), n - 1, confidence))
    most = _pairs_for(low, level, power) if low > 0 else None
    fewest = _pairs_for(high, level, power) if high > 0 else None
    return max(n + 1, fewest or MOST_SEEDS), None if most is None else max(n + 1, most)


def _noncentralities(t: float, freedom: int, confidence: float) -> tuple[float, float]:
    """The interval of the noncentrality of a t value ≥ 0, cut off at 0."""
    # The distribution function of the noncentral t loses its accuracy beyond 30, where no number of seeds is in doubt.
    if t > 30:
        return t, t
    tail = (1 - confidence) / 2

    def end(share: float) -> float:
        # The function falls with the noncentrality, to 0 far above t.
        if special.stdtr(freedom, t) <= share:
            return 0.0
        return float(optimize.brentq(lambda nc: float(special.nctdtr(freedom, nc, t)) - share, 0.0, 2 * t + 10.0))

    return end(1 - tail), end(tail)


def _pairs_for(effect: float, level: float, power: float) -> int | None:
    """The smallest number of pairs with the power at an effect size above 0; ``None`` above ``MOST_SEEDS``."""

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
        given: a third variable to hold fixed, in ranks, for the partial correlation; its interval is that of one
            point fewer. Default: none.

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
    largest = float(np.abs(d).max())
    if largest == 0:
        return 0.0, 0.0 if len(d) > 1 else math.nan
    d = d / largest  # squares of very large or very small differences are no numbers
    return largest * float(d.mean()), largest * float(d.std(ddof=1)) if len(d) > 1 else math.nan


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, both excluded; got {value}")

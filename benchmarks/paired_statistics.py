"""What the statistics of `flatter.stats` deliver at few seeds: coverage, false verdicts and power, by simulation.

Run with `python benchmarks/paired_statistics.py`; it needs the `compare` extra (scipy 1.15 or newer) and takes
about a minute. Nothing is
timed, and every generator has a fixed seed, so the numbers repeat.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from scipy import stats as scipy_stats

from flatter import stats

RUNS = 4000


def normal_differences(rng, shape):
    """Return standard normal differences."""
    return rng.normal(size=shape)


def count_differences(rng, shape):
    """Return differences of two test errors in steps of 1/360, each skewed: Poisson counts with mean 4."""
    return (rng.poisson(4, shape) - rng.poisson(4, shape)) / 360


def skewed_differences(rng, shape):
    """Return differences of mean 0 that are not symmetric: an arm that mostly does little, and sometimes much."""
    return rng.exponential(size=shape) - 1


FAMILIES = {"normal": normal_differences, "counts": count_differences, "skewed": skewed_differences}


def coverage() -> None:
    """Print the share of 95 % intervals that contain the true mean difference, 0."""
    print(f"coverage of 95 % intervals of the mean difference, {RUNS} samples each")
    print(f"{'differences':12}{'n':>4}{'t':>9}{'percentile':>12}{'BCa':>9}")
    for name, draw in FAMILIES.items():
        for n in (5, 10):
            samples = draw(np.random.default_rng(1), (RUNS, n))
            intervals = np.array([stats.mean_interval(sample) for sample in samples])
            shares = [covers(intervals[:, 0], intervals[:, 1])]
            for method in ("percentile", "BCa"):
                shares.append(np.mean([bootstrap_covers(part, method) for part in np.split(samples, 20)]))
            print(f"{name:12}{n:4}{shares[0]:9.3f}{shares[1]:12.3f}{shares[2]:9.3f}")


def covers(low, high) -> float:
    """Return the share of intervals that contain 0; a NaN interval contains nothing."""
    return float(np.mean((low <= 0) & (high >= 0)))


def bootstrap_covers(samples, method: str) -> float:
    """Return the share of the samples' bootstrap intervals (2000 resamples) that contain 0."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BCa warns and gives NaN where all the resampled means are equal
        result = scipy_stats.bootstrap(
            (samples,), np.mean, axis=-1, n_resamples=2000, method=method, rng=np.random.default_rng(2)
        )
    return covers(result.confidence_interval.low, result.confidence_interval.high)


def false_verdicts() -> None:
    """Print how often a family of arms without any effect gets a verdict, at level 0.05."""
    print(f"\nfamilies with at least one false verdict, 10 seeds, 4 arms, level 0.05, {RUNS} families each")
    print(f"{'differences':12}{'any verdict':>12}{'any helps':>12}{'t test, any':>13}")
    for name, draw in FAMILIES.items():
        verdicts = []
        samples = draw(np.random.default_rng(3), (RUNS, 4, 10))
        for differences in samples:
            pairs = {str(arm): (d, np.zeros(10)) for arm, d in enumerate(differences)}
            verdicts.append({j.verdict for j in stats.judge(pairs, better="lower").values()})
        helps = np.mean(["helps" in found for found in verdicts])
        either = np.mean(["helps" in found or "hurts" in found for found in verdicts])
        # With p values of t tests instead: Holm finds something where the smallest is at most 0.05/4.
        t_test = np.mean(scipy_stats.ttest_1samp(samples, 0, axis=-1).pvalue.min(axis=1) <= 0.05 / 4)
        print(f"{name:12}{either:12.4f}{helps:12.4f}{t_test:13.4f}")


def power() -> None:
    """Print how often the sign-flip test finds an effect with the number of seeds that `seeds_needed` named for it."""
    print("\npower of the sign-flip test with the seeds that seeds_needed names (aim: 0.8)")
    print(f"{RUNS} runs each, 1000 above {stats.EXACT_UP_TO} seeds")
    print(f"{'mean/sd':>8}{'level':>9}{'seeds':>7}{'normal':>9}{'counts':>9}")
    for effect in (0.8, 1.0, 1.5, 2.0, 3.0):
        for level in (0.05, 0.05 / 4):
            # Two differences with this mean and this standard deviation: all that `seeds_needed` looks at.
            n = stats.seeds_needed([effect - math.sqrt(0.5), effect + math.sqrt(0.5)], level)
            shares = []
            for draw in (normal_differences, count_differences):
                rng = np.random.default_rng(4)
                scale = 1.0 if draw is normal_differences else math.sqrt(8) / 360
                runs = RUNS if n <= stats.EXACT_UP_TO else 1000
                samples = draw(rng, (runs, n)) + effect * scale
                shares.append(np.mean([stats.sign_flip_p_value(d) <= level for d in samples]))
            print(f"{effect:8.1f}{level:9.4f}{n:7}{shares[0]:9.3f}{shares[1]:9.3f}")


if __name__ == "__main__":
    coverage()
    false_verdicts()
    power()

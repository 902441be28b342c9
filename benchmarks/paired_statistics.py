"""What the statistics of `flatwise.stats` deliver at few seeds: coverage, false verdicts and power, by simulation.

Run with `python benchmarks/paired_statistics.py`; it needs the `compare` extra (scipy 1.15 or newer) and takes a few
minutes. Name parts to run only these, such as `skewness power`. Nothing is timed, and every generator has a fixed seed,
so the numbers repeat.
"""

from __future__ import annotations

import argparse
import math
import warnings

import numpy as np
from scipy import stats as scipy_stats

from flatwise import stats

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


def lognormal_differences(sigma):
    """Return a function that draws lognormal differences of mean 0 and standard deviation 1."""

    def draw(rng, shape):
        values = np.exp(sigma * rng.normal(size=shape)) - math.exp(sigma**2 / 2)
        return values / math.sqrt((math.exp(sigma**2) - 1) * math.exp(sigma**2))

    return draw


def two_point_differences(rng, shape):
    """Return differences of mean 0: four in five a little below it, one in five far above; with a little noise."""
    return np.where(rng.random(shape) < 0.8, -0.5, 2.0) + 0.1 * rng.normal(size=shape)


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


SHAPES = {
    "normal": normal_differences,
    "counts": count_differences,
    "exponential": skewed_differences,
    "lognormal(0.5)": lognormal_differences(0.5),
    "lognormal(1)": lognormal_differences(1.0),
    "two points": two_point_differences,
}


def sign_flip_p_values(samples):
    """Return the p values of many samples at once, as `stats.sign_flip_p_value` gives them one by one (to 12 pairs)."""
    n = samples.shape[1]
    if n > 12:  # Student's t agrees with them by then, and is quick
        return np.nan_to_num(scipy_stats.ttest_1samp(samples, 0, axis=1).pvalue, nan=1.0)
    signs = 1 - 2 * ((np.arange(2 ** (n - 1))[:, None] >> np.arange(n)) & 1)
    p_values = []
    for part in np.array_split(samples, max(1, len(samples) // 500)):
        observed = np.abs(part.sum(axis=1)) - 1e-9 * np.abs(part).sum(axis=1)
        p_values.append(np.mean(np.abs(part @ signs.T) >= observed[:, None], axis=1))
    return np.concatenate(p_values)


def skewness() -> None:
    """Print the error of a single test in each direction, and its power, with and without the skewness adjustment."""
    print("\none test, two-sided level 0.05 and 0.05/4; differences of mean 0: share with a verdict towards the")
    print("short tail and towards the long one; below, the power at a mean of 1 and of 1.5 standard deviations")
    print("20,000 samples each; of 20 pairs with Student's t in place of the sign flips")
    print(f"{'differences':16}{'n':>4}   {'sign flips alone':32}both tests")
    for name, draw in SHAPES.items():
        for n in (6, 8, 10, 20):
            samples = draw(np.random.default_rng(5), (20_000, n))
            print(f"{name:16}{n:4}   {'   '.join(errors(samples))}")
    for effect in (1.0, 1.5):
        for n in (6, 8, 10, 20):
            samples = normal_differences(np.random.default_rng(6), (20_000, n)) + effect
            print(f"{f'normal + {effect}':16}{n:4}   {'   '.join(errors(samples))}")


def errors(samples):
    """Return, for the sign flips alone and for both tests, the shares below and above 0, at each level, as text."""
    flips = sign_flip_p_values(samples)
    adjusted = np.array([stats.skewness_adjusted_p_value(sample) for sample in samples])
    below = samples.mean(axis=1) < 0
    texts = []
    for p_values in (flips, np.maximum(flips, adjusted)):
        shares = []
        for level in (0.05, 0.05 / 4):
            found = p_values <= level
            shares.append(f"{np.mean(found & below):.3f} {np.mean(found & ~below):.3f}")
        texts.append("   ".join(shares).ljust(29))
    return texts


def gatekeeping() -> None:
    """Print the power of a method's comparison with vanilla: controls in its family, or behind its verdict."""
    print(
        "\npower to show one method of six, normal differences, 10 seeds, five controls: sign flips alone, both tests"
    )
    print(f"{'mean/sd':>8}{'controls in the family':>26}{'behind a verdict':>20}")
    for effect in (1.0, 1.5, 2.0):
        samples = normal_differences(np.random.default_rng(7), (RUNS, 11, 10))
        samples[:, 0] += effect
        flips = sign_flip_p_values(samples.reshape(-1, 10)).reshape(RUNS, 11)
        adjusted = np.array([[stats.skewness_adjusted_p_value(d) for d in family] for family in samples])
        texts = []
        for size in (11, 6):
            for p_values in (flips, np.maximum(flips, adjusted)):
                texts.append(np.mean([stats.holm(list(p[:size]))[0] <= 0.05 for p in p_values]))
        print(f"{effect:8.1f}{texts[0]:18.3f}{texts[1]:8.3f}{texts[2]:12.3f}{texts[3]:8.3f}")
    rng = np.random.default_rng(8)
    false = 0
    for _ in range(RUNS):
        # Three methods of six help by 3 sd, and so do their controls: all that is behind a verdict is not true.
        effects = np.repeat([3.0, 3.0, 3.0, 0.0, 0.0, 0.0], 10).reshape(6, 10)
        vanilla = rng.normal(size=10)
        methods, controls = rng.normal(size=(6, 10)) + effects, rng.normal(size=(6, 10)) + effects
        pairs = {f"m{i}": (methods[i], vanilla) for i in range(6)}
        pairs |= {f"m{i} c{i}": (methods[i], controls[i]) for i in range(6)}
        behind = {f"m{i} c{i}": f"m{i}" for i in range(6)}
        judged = stats.judge(pairs, better="higher", behind=behind)
        true = {f"m{i}" for i in range(3)}
        false += any(j.verdict in ("helps", "hurts") for name, j in judged.items() if name not in true)
    print(f"families with any false verdict, three of six methods and their controls at 3 sd: {false / RUNS:.4f}")


def looking_again() -> None:
    """Print how often a single comparison without an effect gets a verdict at some look, seeds added ten at a time."""
    print("\nshare of comparisons without an effect with a verdict at any look so far, level 0.05; 2000 comparisons")
    rng = np.random.default_rng(9)
    first = np.full(2000, 999)
    for run in range(2000):
        differences = rng.normal(size=100)
        for seeds in range(10, 101, 10):
            d = differences[:seeds]
            # Student's t in place of the sign flips, which agree with it for normal differences and take long.
            p = max(float(scipy_stats.ttest_1samp(d, 0).pvalue), stats.skewness_adjusted_p_value(d))
            if p <= 0.05:
                first[run] = seeds
                break
    for seeds in range(10, 101, 10):
        print(f"{seeds:6} seeds{np.mean(first <= seeds):9.3f}")


def planning() -> None:
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


PARTS = (coverage, false_verdicts, skewness, gatekeeping, looking_again, planning)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", help=f"parts to run; default: all of {', '.join(p.__name__ for p in PARTS)}"
    )
    wanted = parser.parse_args().parts
    for part in PARTS:
        if not wanted or part.__name__ in wanted:
            part()

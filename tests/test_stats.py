"""The statistics against hand calculations, against scipy, and against simulation of what they promise."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from flatwise import stats
from flatwise.stats import (
    gated_holm,
    holm,
    judge,
    mean_interval,
    seeds_needed,
    seeds_range,
    sign_flip_p_value,
    skewness_adjusted_p_value,
    welch_interval,
)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0], 2 / 8),  # |sum| 6: only +++ and −−−
        ([1.0, 2.0, -3.0], 1.0),  # sum 0: every pattern is as extreme
        ([3.0, -1.0, 2.0], 4 / 8),  # |sum| 4 or more: ±6 (+++), ±4 (+−+)
        ([1.0, 1.0, 1.0, -1.0], 10 / 16),  # |sum| 2 or more: all but the 6 patterns with two of each sign
        ([-0.5] * 6, 2 / 64),
        ([0.0, 0.0, 1.0, 1.0], 8 / 16),  # a zero flips to itself
        ([0.0, 0.0, 0.0], 1.0),
        ([-7.0], 1.0),
    ],
)
def test_sign_flips_counted_by_hand(differences, p):
    assert sign_flip_p_value(differences) == p


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_sign_flip_agrees_with_scipy(n):
    rng = np.random.default_rng(n)
    for differences in (rng.normal(0.4, 1, n), rng.integers(-3, 5, n).astype(float)):
        reference = scipy_stats.permutation_test(
            (differences,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert sign_flip_p_value(differences) == pytest.approx(reference.pvalue, abs=1e-12)


def test_ties_survive_rounding():
    # In units of 1/360: 1, 1, 2, so that +1 +1 −2 and its mirror image tie at 0, and |+1 −1 +2| = 2 ties with itself.
    arm, baseline = [8 / 360, 15 / 360, 7 / 360], [7 / 360, 14 / 360, 9 / 360]
    differences = [a - b for a, b in zip(arm, baseline, strict=True)]
    assert sum(differences) != 0  # rounding, without which this test shows nothing
    assert sign_flip_p_value(differences) == 1.0

    ten = [0.3 - 0.2, 0.1, 0.7 - 0.6, 0.9 - 0.8, 0.2 - 0.3, 0.5 - 0.4]
    assert sign_flip_p_value(ten) == sign_flip_p_value([1, 1, 1, 1, -1, 1])


@pytest.mark.parametrize("n", [10, 30])
@pytest.mark.parametrize("unit", [-1.0, 1e-300, 1e307, 5e-324])
def test_p_depends_on_neither_the_unit_nor_the_direction(n, unit):
    differences = np.round(np.random.default_rng(0).normal(1, 3, n))
    assert sign_flip_p_value(differences * unit) == sign_flip_p_value(differences)


def test_random_flips_approximate_the_exact_ones(monkeypatch):
    differences = np.random.default_rng(6).normal(0.5, 1, 14)
    exact = sign_flip_p_value(differences)
    assert 0.01 < exact < 0.2
    monkeypatch.setattr(stats, "EXACT_UP_TO", 5)
    sampled = sign_flip_p_value(differences)
    assert sampled != exact
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact / stats.MONTE_CARLO_FLIPS))
    # An effect beyond all sampled patterns: (0 + 1)/(m + 1), not 0.
    assert sign_flip_p_value([1.0] * 200) == 1 / 100_000


def test_random_flips_repeat_and_leave_numpys_generator_alone():
    differences = np.random.default_rng(3).normal(0.3, 1, 25)
    np.random.seed(5)
    first = sign_flip_p_value(differences)
    after = np.random.random()
    np.random.seed(6)
    assert sign_flip_p_value(differences) == first
    np.random.seed(5)
    assert np.random.random() == after


@pytest.mark.parametrize("function", [sign_flip_p_value, mean_interval, lambda d: seeds_needed(d, 0.05)])
@pytest.mark.parametrize("differences", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_differences_must_be_finite_and_there(function, differences):
    with pytest.raises(ValueError, match="at least one finite number; got"):
        function(differences)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_mean_interval_is_students(n, confidence):
    differences = np.random.default_rng(n).normal(1, 2, n)
    reference = scipy_stats.ttest_1samp(differences, 0).confidence_interval(confidence)
    assert mean_interval(differences, confidence) == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_mean_interval_by_hand_and_at_the_edges():
    # Mean 2, sd 1, t_{2, 0.975} = 4.302653.
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)
    assert all(map(math.isnan, mean_interval([1.0])))
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        mean_interval([1.0, 2.0], 95)


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize(("n", "m"), [(2, 5), (10, 5), (5, 3)])
def test_welch_interval_is_scipys(n, m, confidence):
    rng = np.random.default_rng(n)
    a, b = rng.normal(1, 2, n), rng.normal(3, 0.5, m)
    reference = scipy_stats.ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
    found = welch_interval((a.mean(), a.std(ddof=1), n), (b.mean(), b.std(ddof=1), m), confidence)
    assert found == pytest.approx((reference.low, reference.high), rel=1e-9)


def test_welch_interval_at_the_edges():
    assert welch_interval((2.0, 0.0, 3), (0.5, 0.0, 4)) == (1.5, 1.5)
    # One spread alone: Student's t of that sample.
    half = 4.302653 / math.sqrt(3)
    assert welch_interval((2.0, 1.0, 3), (0.0, 0.0, 3)) == pytest.approx((2 - half, 2 + half))
    for wrong in ((math.nan, 1.0, 3), (0.0, -1.0, 3), (0.0, math.inf, 3), (0.0, 1.0, 1)):
        with pytest.raises(ValueError, match="each sample needs a finite mean"):
            welch_interval((1.0, 1.0, 5), wrong)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        welch_interval((1.0, 1.0, 5), (1.0, 1.0, 5), 95)


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        # 0.005·4, 0.01·3, then 0.03·2, and 0.04·1 raised to the one before it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.4, 0.9], [1.0, 1.0, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holm_worked_by_hand(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.1])
def test_holm_refuses_what_is_no_p_value(p):
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]; got"):
        holm([0.5, p])


def pair_with(effect):
    """Two differences of mean `effect` and standard deviation 1: all that `seeds_needed` looks at."""
    return [effect - math.sqrt(0.5), effect + math.sqrt(0.5)]


def t_test_power(n, effect, level):
    return scipy_stats.nct.sf(scipy_stats.t.ppf(1 - level / 2, n - 1), n - 1, effect * math.sqrt(n))


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("level", [0.05, 0.01])
@pytest.mark.parametrize("effect", [-0.05, 0.2, 0.5, 0.7])
def test_seeds_needed_is_the_smallest_number_with_the_power(effect, level, power):
    n = seeds_needed(pair_with(effect), level, power)
    # With so many pairs the sign-flip test attains the level almost exactly; hence one pair of slack.
    assert t_test_power(n, abs(effect), level) >= power
    assert t_test_power(n - 2, abs(effect), level) < power


def test_seeds_needed_is_textbook():
    # n = 33.37 for a paired t test at d = 0.5, level 0.05 and power 0.8 (Cohen; G*Power), so 34.
    assert seeds_needed(pair_with(0.5), 0.05) == 34


@pytest.mark.parametrize(("level", "least"), [(0.05, 6), (0.05 / 3, 7), (0.01, 8), (2 / 64, 6), (2 / 64 - 1e-9, 7)])
def test_seeds_needed_reaches_the_level_with_sign_flips(level, least):
    assert seeds_needed([2.0, 2.0, 2.0], level) == least  # no spread at all
    assert seeds_needed(pair_with(1e6), level) == least
    assert sign_flip_p_value([1.0] * least) <= level < sign_flip_p_value([1.0] * (least - 1))


def test_seeds_needed_has_no_answer_without_an_effect():
    assert seeds_needed([1.0, -1.0], 0.05) is None
    assert seeds_needed([0.0, 0.0], 0.05) is None
    assert seeds_needed([3.0], 0.05) is None
    assert seeds_needed(pair_with(0.0285), 0.05) == pytest.approx(9665, abs=10)
    assert seeds_needed(pair_with(0.0275), 0.05) is None  # above 10,000
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        seeds_needed([1.0, 2.0], 0.0)
    with pytest.raises(ValueError, match="power must lie between 0 and 1"):
        seeds_needed([1.0, 2.0], 0.05, 1.0)


@pytest.mark.parametrize(("effect", "level"), [(1.0, 0.05), (1.5, 0.05), (2.0, 0.05 / 4)])
def test_a_planted_effect_is_found_with_the_promised_power(effect, level):
    runs = 2000
    n = seeds_needed(pair_with(effect), level)
    samples = np.random.default_rng(7).normal(effect, 1, (runs, n))
    found = np.mean([sign_flip_p_value(sample) <= level for sample in samples])
    # Three standard errors of the simulation below 0.8; above, what the steps of 2/2^n can add.
    assert 0.8 - 3 * math.sqrt(0.8 * 0.2 / runs) <= found <= 0.93


def normal_metric(rng, shape):
    return rng.normal(10, 1, shape)


def error_counts(rng, shape):
    """A test error in steps of 1/360: skewed, with many ties."""
    return rng.poisson(4, shape) / 360


@pytest.mark.parametrize(("draw", "least"), [(normal_metric, 0.02), (error_counts, 0.005)])
def test_families_without_an_effect_seldom_get_a_verdict(draw, least):
    families, seeds, level = 1200, 10, 0.05
    rng = np.random.default_rng(11)
    helped = either = 0
    for _ in range(families):
        vanilla, *arms = draw(rng, (4, seeds))
        judgements = judge({str(i): (arm, vanilla) for i, arm in enumerate(arms)}, better="lower", level=level)
        verdicts = {judgement.verdict for judgement in judgements.values()}
        helped += "helps" in verdicts
        either += not verdicts.isdisjoint({"helps", "hurts"})

    def at_most(share):  # plus three standard errors of the simulation
        return share + 3 * math.sqrt(share * (1 - share) / families)

    assert least <= either / families <= at_most(level)
    assert helped / families <= at_most(level / 2)


BASELINE = [0.20, 0.22, 0.19, 0.21, 0.23, 0.20, 0.18, 0.24]
LOWER = [value - 0.01 - 0.001 * i for i, value in enumerate(BASELINE)]
HIGHER = [value + 0.01 + 0.001 * i for i, value in enumerate(BASELINE)]
NOISY = [value + 0.01 * (-1) ** i * i for i, value in enumerate(BASELINE)]


@pytest.mark.parametrize(("better", "verdicts"), [("lower", ("helps", "hurts")), ("higher", ("hurts", "helps"))])
def test_judge_knows_which_way_is_better(better, verdicts):
    family = judge({"down": (LOWER, BASELINE), "up": (HIGHER, BASELINE), "noise": (NOISY, BASELINE)}, better=better)
    assert list(family) == ["down", "up", "noise"]
    assert (family["down"].verdict, family["up"].verdict) == verdicts
    assert family["noise"].verdict == "inconclusive"

    down = family["down"]
    assert down.n == 8
    assert down.differences == pytest.approx([-0.01 - 0.001 * i for i in range(8)])
    assert down.mean == pytest.approx(-0.0135)
    assert down.sd == pytest.approx(0.001 * math.sqrt(6))  # the variance of 0…7 is 42/7
    assert (down.low, down.high) == mean_interval(down.differences)
    assert (down.p, down.p_corrected, down.seeds_needed) == (2 / 256, 6 / 256, None)


def test_judge_corrects_over_the_whole_family():
    # p = 2/256 passes alone and in a family of six (12/256 = 0.047), not in one of seven (14/256 = 0.055).
    for size, verdict in [(1, "helps"), (6, "helps"), (7, "inconclusive")]:
        family = judge({str(i): (LOWER, BASELINE) for i in range(size)}, better="lower")
        assert {judgement.verdict for judgement in family.values()} == {verdict}
        assert family["0"].p_corrected == size * 2 / 256


def test_seeds_needed_of_an_inconclusive_judgement():
    family = judge({"a": (NOISY, BASELINE), "b": (HIGHER, BASELINE)}, better="lower", level=0.04, power=0.9)
    assert family["a"].seeds_needed == seeds_needed(family["a"].differences, 0.04 / 2, 0.9)
    assert family["b"].seeds_needed is None

    # Here the t test says that the six pairs suffice; the sign-flip test has just said that they do not.
    few = judge({"a": ([7.0, 5.0, 7.0, 7.0, -1.0, 6.0], [0.0] * 6)}, better="lower")["a"]
    assert few.verdict == "inconclusive"
    assert seeds_needed(few.differences, 0.05) <= 6
    assert few.seeds_needed == 7


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["arm", "baseline", "both"])
def test_a_value_that_is_not_finite_fails_and_leaves_the_family(bad, side):
    broken_arm = [bad, *LOWER[1:]] if side != "baseline" else LOWER
    broken_baseline = [bad, *BASELINE[1:]] if side != "arm" else BASELINE
    family = judge({"broken": (broken_arm, broken_baseline), "down": (LOWER, BASELINE)}, better="lower")

    broken = family["broken"]
    assert (broken.verdict, broken.n, len(broken.differences), broken.seeds_needed) == ("failed", 8, 8, None)
    assert not math.isfinite(broken.differences[0])
    numbers = (broken.mean, broken.sd, broken.low, broken.high, broken.p, broken.p_corrected)
    assert all(map(math.isnan, numbers))
    assert family["down"].p_corrected == family["down"].p


def test_a_single_pair_decides_nothing():
    judgement = judge({"a": ([1.0], [2.0])}, better="lower")["a"]
    assert (judgement.verdict, judgement.n, judgement.mean, judgement.p) == ("inconclusive", 1, -1.0, 1.0)
    assert (judgement.p_corrected, judgement.seeds_needed) == (1.0, None)
    assert all(map(math.isnan, (judgement.sd, judgement.low, judgement.high)))


def test_equal_arms_are_inconclusive():
    judgement = judge({"a": (BASELINE, BASELINE)}, better="lower")["a"]
    assert (judgement.verdict, judgement.p, judgement.low, judgement.high) == ("inconclusive", 1.0, 0.0, 0.0)
    assert judgement.seeds_needed is None


def test_judge_refuses_what_it_cannot_pair():
    with pytest.raises(ValueError, match=r"comparison 'a' needs as many values .* got 2 and 1: pair them by seed"):
        judge({"a": ([1.0, 2.0], [1.0])}, better="lower")
    with pytest.raises(ValueError, match="got 0 and 0"):
        judge({"a": ([], [])}, better="lower")
    with pytest.raises(ValueError, match='better must be "lower" or "higher"; got \'less\''):
        judge({"a": ([1.0], [1.0])}, better="less")
    with pytest.raises(ValueError, match="level must lie between 0 and 1"):
        judge({}, better="lower", level=5)
    with pytest.raises(ValueError, match="power must lie between 0 and 1"):
        judge({}, better="lower", power=80)
    assert judge({}, better="lower") == {}


# Skewness.


@pytest.mark.parametrize("sign", [1, -1])
def test_skewness_by_hand(sign):
    # Mean −1, deviations 0, −1, −1, 2 … of (−1, −2, −2, 1): third moment 1.5, second 1.5; t = −1/√(2/4).
    differences = [sign * d for d in (-1.0, -2.0, -2.0, 1.0)]
    g = 1.5 / 1.5**1.5
    expected = 2 * scipy_stats.t.sf(math.sqrt(2) / (1 + 16 * g / 4), 3)
    assert skewness_adjusted_p_value(differences) == pytest.approx(expected)
    # A tail on the side of the mean is no objection, nor is symmetry or no spread at all.
    for harmless in ([1.0, 1.0, 2.0, 9.0], [1.0, 2.0, 3.0], [0.1] * 5):
        assert skewness_adjusted_p_value([sign * d for d in harmless]) == 0.0
    for nothing in ([0.0, 0.0], [3.0], [1.0, -1.0, 0.0]):
        assert skewness_adjusted_p_value([sign * d for d in nothing]) == 1.0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_single_test_errs_rarely_with_skewed_differences(sign):
    """At skewness 2 and 10 pairs, in either direction; the sign flips alone err three times as often."""
    samples = sign * (np.random.default_rng(12).exponential(size=(4000, 10)) - 1)
    flips = np.array([sign_flip_p_value(sample) for sample in samples])
    adjusted = np.array([skewness_adjusted_p_value(sample) for sample in samples])
    short = (samples.mean(axis=1) < 0) == (sign > 0)  # the side of the short tail
    assert np.mean((flips <= 0.05) & short) > 0.08
    assert np.mean((np.maximum(flips, adjusted) <= 0.05) & short) <= 0.03 + 2 * math.sqrt(0.03 * 0.97 / 4000)
    assert np.mean((flips <= 0.05) & ~short) <= 0.01


def test_what_only_the_sign_flips_would_show_is_skewed():
    differences = [-1.0, -1.1, -0.9, -1.2, -0.8, -1.0, -1.1, -0.9, -0.1, 0.9]
    found = judge({"a": (differences, [0.0] * 10)}, better="lower")["a"]
    assert found.p <= 0.05 < found.p_skewness == found.p_corrected
    assert (found.verdict, found.seeds_needed, found.seeds_range) == ("skewed", None, None)
    mirrored = judge({"a": ([-d for d in differences], [0.0] * 10)}, better="lower")["a"]
    assert (mirrored.verdict, mirrored.p_corrected) == ("skewed", pytest.approx(found.p_corrected))


# Gates.


@pytest.mark.parametrize(
    ("branches", "corrected"),
    [
        ([[0.01], [0.04], [0.03], [0.005]], [[0.03], [0.06], [0.06], [0.02]]),  # Holm's
        ([[0.01, 0.01], [0.04]], [[0.02, 0.02], [0.04]]),  # a branch that is not at its end keeps its share
        ([[0.01, 0.02, 0.001], [0.04]], [[0.02, 0.04, 0.02], [0.04]]),  # Holm's method among those behind
        ([[0.2, 0.001], [0.01]], [[0.2, 0.2], [0.02]]),  # nothing behind a gate is below it
        ([[0.01, 0.9], [0.04]], [[0.02, 0.9], [0.08]]),
        ([], []),
    ],
)
def test_gated_holm_worked_by_hand(branches, corrected):
    assert gated_holm(branches) == [pytest.approx(branch) for branch in corrected]


def test_what_stands_behind_costs_the_others_nothing():
    pairs = {"m": (LOWER, BASELINE), "c": (HIGHER, BASELINE), "n": (NOISY, BASELINE), "d": (LOWER, BASELINE)}
    alone = judge({"m": pairs["m"], "n": pairs["n"]}, better="lower")
    gated = judge(pairs, better="lower", behind={"c": "m", "d": "n"})
    assert gated["m"] == alone["m"]
    assert gated["n"].p_corrected == alone["n"].p_corrected
    assert (gated["c"].verdict, gated["d"].verdict) == ("hurts", "not tested")
    assert gated["d"].mean == pytest.approx(-0.0135)
    assert math.isnan(gated["d"].p)


def test_the_gated_family_keeps_its_level():
    """Half of the methods truly help, and all that stands behind their verdicts is without effect."""
    families = 1000
    rng = np.random.default_rng(13)
    false = 0
    for _ in range(families):
        vanilla, own = rng.normal(size=10), np.repeat([4.0, 4.0, 0.0, 0.0], 10).reshape(4, 10)
        methods, controls = rng.normal(size=(2, 4, 10)) + own
        pairs = {f"m{i}": (methods[i], vanilla) for i in range(4)}
        pairs |= {f"c{i}": (methods[i], controls[i]) for i in range(4)}
        judged = judge(pairs, better="higher", behind={f"c{i}": f"m{i}" for i in range(4)})
        false += any(judged[name].verdict in ("helps", "hurts") for name in pairs if name not in ("m0", "m1"))
    assert 0.005 <= false / families <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / families)


def test_gates_that_make_no_sense_are_refused():
    pairs = dict.fromkeys("abc", (LOWER, BASELINE))
    for behind in ({"a": "x"}, {"x": "a"}, {"a": "b", "b": "c"}, {"a": "a"}):
        with pytest.raises(ValueError, match="cannot stand behind"):
            judge(pairs, better="lower", behind=behind)
    with pytest.raises(ValueError, match="absent must be a number of comparisons, at least 0; got -1"):
        judge(pairs, better="lower", absent=-1)
    for barred in ({"x": "failed"}, {"a": "helps"}):
        with pytest.raises(ValueError, match=r"barred: .* expected the name of a pair .'a', 'b', 'c'. and one of"):
            judge(pairs, better="lower", barred=barred)


def test_absent_comparisons_count_as_ones_that_showed_nothing():
    whole = judge({"a": (LOWER, BASELINE), "b": (BASELINE, BASELINE), "c": (BASELINE, BASELINE)}, better="lower")
    part = judge({"a": (LOWER, BASELINE)}, better="lower", absent=2)
    assert part["a"] == whole["a"]


def test_barred_comparisons_have_no_p_value_and_leave_the_family():
    pairs = {"a": (LOWER, BASELINE), "b": (HIGHER, BASELINE), "same": (BASELINE, BASELINE)}
    found = judge(pairs, better="lower", barred={"b": "not independent", "same": "does nothing"})
    assert found["b"].verdict == "not independent"
    assert math.isnan(found["b"].p)
    assert found["b"].mean == pytest.approx(0.0135)
    assert (found["same"].verdict, found["same"].p_corrected) == ("does nothing", 1.0)
    assert found["a"].p_corrected == 2 * found["a"].p


# The range of a number of seeds.


@pytest.mark.parametrize(("n", "effect"), [(5, 0.3), (10, 0.9), (10, 1.6), (20, 0.55)])
def test_seeds_range_belongs_to_the_interval_of_the_effect_size(n, effect):
    values = np.random.default_rng(n).normal(size=n)
    differences = (values - values.mean()) / values.std(ddof=1) + effect
    t = effect * math.sqrt(n)

    def at(end):
        return float(scipy_stats.nct.cdf(t, n - 1, end * math.sqrt(n)))

    fewest, most = seeds_range(differences, 0.01)
    grid = np.linspace(0.001, 4, 4000)
    inside = [e for e in grid if 0.025 <= at(e) <= 0.975]
    assert fewest == max(n + 1, seeds_needed(pair_with(inside[-1]), 0.01))
    low_is_0 = scipy_stats.t.cdf(t, n - 1) <= 0.975
    assert (most is None) == low_is_0 or seeds_needed(pair_with(inside[0]), 0.01) is None
    if most is not None:
        assert most == pytest.approx(max(n + 1, seeds_needed(pair_with(inside[0]), 0.01)), rel=0.02)


def test_seeds_range_at_the_edges():
    assert seeds_range([2.0] * 7, 0.05) == (8, 8)
    assert seeds_range([1.0, -1.0] * 5, 0.05)[1] is None
    assert seeds_range([0.0] * 7, 0.05) == (10_000, None)
    with pytest.raises(ValueError, match="no interval with a single difference"):
        seeds_range([1.0], 0.05)


def test_spreads_of_extreme_scale():
    for unit in (1e-300, 1e300):
        low, high = mean_interval([unit, 2 * unit, 3 * unit])
        assert (low / unit, high / unit) == pytest.approx(mean_interval([1.0, 2.0, 3.0]))

"""Censored waiting times against known answers."""

import math

import numpy as np
import pytest
from scipy import stats

from flatwise_papers.escape.waiting_times import WaitingTimes, exponential_test, fit_law


def censored(rng, mean, replicas, horizon, draw=None):
    times = rng.exponential(mean, replicas) if draw is None else draw(replicas)
    seen = times[times <= horizon]
    return WaitingTimes(seen, replicas - len(seen), horizon)


def test_mean_is_all_time_waited_over_the_events():
    assert WaitingTimes([1.0, 2.0, 3.0], 2, 4.0).mean == pytest.approx((6 + 8) / 3)


def test_interval_without_censoring_is_no_narrower_than_the_textbooks():
    sample = WaitingTimes([1.0, 2.0, 3.0, 6.0], 0, 10.0)
    low, high = sample.interval()
    assert high == pytest.approx(2 * 12 / stats.chi2.ppf(0.025, 8))
    assert low == pytest.approx(2 * 12 / stats.chi2.ppf(0.975, 10))
    assert low < sample.mean < high


def test_interval_covers_the_mean_under_censoring():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        low, high = censored(rng, 3.0, 30, 2.0).interval()
        covered += low <= 3.0 <= high
    assert 0.945 < covered / 1000 <= 0.985  # at least 0.95, and not by much


def test_no_event_gives_a_lower_bound_alone():
    sample = WaitingTimes([], 10, 100.0)
    assert sample.mean == math.inf
    assert sample.interval() == (pytest.approx(-1000 / math.log(0.025)), math.inf)


def test_p_values_are_uniform_for_exponential_times():
    rng = np.random.default_rng(1)
    p_values = [exponential_test(censored(rng, 5.0, 60, 8.0), simulations=99).p for _ in range(200)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.01 < np.mean(np.array(p_values) <= 0.05) < 0.1


def test_other_times_are_found_out():
    rng = np.random.default_rng(2)
    gamma = censored(rng, 5.0, 400, 8.0, lambda n: rng.gamma(2.0, 2.5, n))
    late = censored(rng, 5.0, 400, 8.0, lambda n: 1.0 + rng.exponential(4.0, n))
    assert exponential_test(gamma, simulations=199).p == pytest.approx(1 / 200)
    assert exponential_test(late, simulations=199).p == pytest.approx(1 / 200)


def test_fitted_law_finds_the_slope_and_its_interval():
    rng = np.random.default_rng(3)
    covered, chi2 = 0, []
    exponents = [1.0, 2.0, 3.0, 4.0]
    for _ in range(300):
        law = fit_law(
            exponents, [censored(rng, math.exp(0.5 + 0.8 * x), 200, 2 * math.exp(0.5 + 0.8 * x)) for x in exponents]
        )
        covered += law.low <= 0.8 <= law.high
        chi2.append(law.p)
    assert 0.9 < covered / 300 < 0.985
    assert stats.kstest(chi2, "uniform").pvalue > 0.005
    assert law.intercept == pytest.approx(0.5, abs=0.3)


def test_two_means_make_a_line_without_a_test():
    law = fit_law([0.0, 1.0], [WaitingTimes([1.0], 0, 2.0), WaitingTimes([math.e], 0, 3.0)])
    assert law.slope == pytest.approx(1.0)
    assert math.isnan(law.p)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], 0, 0.0), "horizon"),
        (([1.0], 0, math.inf), "horizon"),
        (([3.0], 0, 2.0), "times"),
        (([0.0], 0, 2.0), "times"),
        (([math.nan], 0, 2.0), "times"),
        (([[1.0]], 0, 2.0), "times"),
        (([], 0, 2.0), "at least one replica"),
        (([1.0], -1, 2.0), "at least one replica"),
    ],
)
def test_waiting_times_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        WaitingTimes(*arguments)


def test_tests_and_fits_refuse_too_little():
    one = WaitingTimes([1.0], 3, 2.0)
    with pytest.raises(ValueError, match="two events"):
        exponential_test(one)
    with pytest.raises(ValueError, match="confidence"):
        one.interval(1.0)
    with pytest.raises(ValueError, match="two different"):
        fit_law([1.0, 1.0], [one, one])
    with pytest.raises(ValueError, match="finite exponent"):
        fit_law([1.0, math.inf], [one, one])
    with pytest.raises(ValueError, match="at least one event"):
        fit_law([1.0, 2.0], [one, WaitingTimes([], 3, 2.0)])

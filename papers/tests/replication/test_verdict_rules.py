"""The verdict rules, one by one."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from flatwise.stats import judge, seeds_range
from flatwise_papers.replication.claims import Claim, Reported
from flatwise_papers.replication.rules import (
    Measured,
    check_baseline,
    credit_gain,
    expected_difference,
    falls_short,
    judge_claim,
    seeds_to_settle,
)

# 10 % down from 20: the gain is 2 points.
CLAIM = Claim(
    cell="cell",
    arm="arm",
    paper="leap",
    table="3",
    dataset="Cora",
    model="GCN",
    optimizer="",
    schedule="constant",
    baseline=Reported(20.0, 0.5, 5),
    result=Reported(18.0, 0.5, 5),
    epoch="last",
    from_accuracy=False,
    notes="",
)
LOSS = replace(CLAIM, result=Reported(22.0, 0.5, 5))
VANILLA = 15.0  # so the paper's 10 % are 1.5 points of ours


def judged(mean, sd=0.3, n=10):
    """A judgement of differences with exactly this mean and standard deviation."""
    values = np.linspace(-1, 1, n)
    values = (values - values.mean()) / values.std(ddof=1) * sd + mean
    return judge({"arm": (VANILLA + values, np.full(n, VANILLA))}, better="lower")["arm"]


def test_the_gain_is_applied_to_our_own_baseline():
    assert expected_difference(CLAIM, VANILLA) == pytest.approx(-1.5)
    assert expected_difference(LOSS, VANILLA) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("claim", "mean", "sd", "outcome"),
    [
        (CLAIM, -1.5, 0.3, "reproduced"),
        (CLAIM, -3.0, 0.3, "reproduced"),  # more than claimed
        (CLAIM, -0.5, 0.3, "reproduced"),  # the direction, if not the size
        (CLAIM, 0.5, 0.3, "not reproduced"),  # the opposite
        (CLAIM, -0.1, 0.3, "not reproduced"),  # nothing shown, the claim's size left out
        (CLAIM, -1.0, 3.0, "inconclusive"),
        (CLAIM, 0.3, 3.0, "inconclusive"),
        (LOSS, 1.5, 0.3, "reproduced"),
        (LOSS, -1.5, 0.3, "not reproduced"),
        (LOSS, 0.1, 0.3, "not reproduced"),
        (LOSS, 1.0, 3.0, "inconclusive"),
    ],
)
def test_outcomes(claim, mean, sd, outcome):
    assert judge_claim(claim, VANILLA, judged(mean, sd)) == outcome


def test_the_corrected_test_decides():
    """One arm's interval leaves out 0, but among many arms that is not enough: nor does it fall short."""
    found = judged(-1.2, 1.4)
    assert found.high < 0
    assert found.verdict == "helps"
    corrected = replace(found, verdict="inconclusive", p_corrected=0.2)
    assert judge_claim(CLAIM, VANILLA, found) == "reproduced"
    assert judge_claim(CLAIM, VANILLA, corrected) == "inconclusive"


def test_the_opposite_refutes_even_with_a_wide_interval():
    """One seed is far worse than the others: the interval reaches the claim, but all seeds are worse."""
    errors = VANILLA + np.array([0.1] * 9 + [20.0])
    found = judge({"arm": (errors, np.full(10, VANILLA))}, better="lower")["arm"]
    assert found.verdict == "hurts"
    assert not falls_short(CLAIM, VANILLA, found)
    assert judge_claim(CLAIM, VANILLA, found) == "not reproduced"


def test_failures_and_single_pairs_decide_nothing():
    failed = judge({"arm": ([1.0, math.nan], [1.0, 1.0])}, better="lower")["arm"]
    assert judge_claim(CLAIM, VANILLA, failed) == "failed"
    single = judge({"arm": ([18.0], [15.0])}, better="lower")["arm"]
    assert not falls_short(CLAIM, VANILLA, single)
    assert judge_claim(CLAIM, VANILLA, single) == "inconclusive"
    assert seeds_to_settle(CLAIM, VANILLA, single) is None


def test_falls_short_only_on_the_side_of_no_effect():
    assert falls_short(CLAIM, VANILLA, judged(-0.5))
    assert not falls_short(CLAIM, VANILLA, judged(-1.5))
    assert not falls_short(CLAIM, VANILLA, judged(-3.0))
    assert falls_short(LOSS, VANILLA, judged(0.5))
    assert not falls_short(LOSS, VANILLA, judged(3.0))


def test_seeds_to_settle():
    """The range of the smaller of two numbers: to show our difference, and to tell it from the claimed one."""
    near = judged(-1.4, 2.5)  # near the claim: to be shown
    assert judge_claim(CLAIM, VANILLA, near) == "inconclusive"
    assert seeds_to_settle(CLAIM, VANILLA, near)[0] == near.seeds_range[0] > near.n
    far = judged(-0.2, 2.5)  # far from it: to be told from the claim
    assert judge_claim(CLAIM, VANILLA, far) == "inconclusive"
    from_claim = seeds_range([difference + 1.5 for difference in far.differences], level=0.05)
    assert seeds_to_settle(CLAIM, VANILLA, far) == (min(far.seeds_range[0], from_claim[0]), from_claim[1])
    wrong = judged(0.2, 2.5)  # the wrong direction: showing our difference would not settle it sooner
    from_claim = seeds_range([difference + 1.5 for difference in wrong.differences], level=0.05)
    assert seeds_to_settle(CLAIM, VANILLA, wrong) == from_claim
    beyond = judged(-2.0, 5.0)  # larger than claimed: it can only be shown
    assert seeds_to_settle(CLAIM, VANILLA, beyond) == beyond.seeds_range


@pytest.mark.parametrize(
    ("mean", "sd", "status"),
    [
        (20.1, 0.5, "agrees"),
        (21.5, 0.05, "agrees"),  # shown, but smaller than the gain of 2
        (23.0, 5.0, "agrees"),  # larger, but not shown
        (23.0, 0.5, "worse"),
        (17.0, 0.5, "better"),
    ],
)
def test_baseline(mean, sd, status):
    check = check_baseline(CLAIM, Measured(mean, sd, 10))
    assert check.status == status
    assert check.differs == (status != "agrees")
    assert check.difference == pytest.approx(mean - 20)
    assert check.low < check.difference < check.high


def test_the_baselines_interval_is_welchs():
    ours = np.array([19.0, 19.4, 20.3, 18.8, 19.1, 19.9])
    paper = np.array([20.3, 20.9, 19.8, 20.4, 20.1])
    claim = replace(CLAIM, baseline=Reported(paper.mean(), paper.std(ddof=1), 5))
    check = check_baseline(claim, Measured(ours.mean(), ours.std(ddof=1), 6))
    expected = scipy_stats.ttest_ind(ours, paper, equal_var=False).confidence_interval()
    assert (check.low, check.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(("sd", "runs", "assumed"), [(None, 3, 3), (None, None, 1), (0.2, None, 1), (0.2, 1, 1)])
def test_what_the_paper_does_not_print_is_assumed(sd, runs, assumed):
    ours = Measured(23.0, 0.5, 10)
    check = check_baseline(replace(CLAIM, baseline=Reported(20.0, sd, runs)), ours)
    half = scipy_stats.t.ppf(0.975, 9) * 0.5 * math.sqrt(1 / 10 + 1 / assumed)
    assert (check.low, check.high) == pytest.approx((3 - half, 3 + half))


def test_other_data_and_single_seeds():
    assert check_baseline(CLAIM, Measured(30.0, 0.5, 10), comparable=False).status == "not comparable"
    assert check_baseline(CLAIM, Measured(30.0, math.nan, 1)).status == "unknown"
    assert check_baseline(CLAIM, Measured(math.nan, math.nan, 0)).status == "unknown"
    assert not check_baseline(CLAIM, Measured(30.0, math.nan, 1)).differs


HELPS, NOTHING, HURTS = judged(-1.5), judged(-0.1, 3.0), judged(1.5)


@pytest.mark.parametrize(
    ("arm", "is_vanilla", "vs_control", "control", "credit"),
    [
        (HELPS, True, None, None, "noise"),
        (HELPS, False, HELPS, NOTHING, "noise"),
        (HELPS, False, HELPS, HELPS, "noise"),
        (HELPS, False, NOTHING, HELPS, "rate"),
        (HELPS, False, HURTS, HELPS, "rate"),
        (HELPS, False, NOTHING, NOTHING, "unsettled"),
        (HELPS, False, None, None, None),
        (HURTS, True, None, None, None),
        (HURTS, False, HELPS, HURTS, None),
    ],
)
def test_whose_gain(arm, is_vanilla, vs_control, control, credit):
    assert credit_gain(arm, control_is_vanilla=is_vanilla, vs_control=vs_control, control=control) == credit

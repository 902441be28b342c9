"""The rules by which a claim is judged, all of them, with their reasons. Numbers in, verdicts out.

Everything is an error in percent, so lower is better. *Ours* is a study's: vanilla and every arm tuned with equal
budgets on validation data, then run on the same seeds, so that their difference is paired. Of the *paper's* results
only means, mostly spreads, and mostly the number of runs are known.

**The claim** is the paper's relative gain: its error falls by a share, so ours should fall by that share of our own
baseline's error. (In points, a claim from a baseline of 25 % could not be met from one of 18 %.)

1. ``reproduced``: our difference to vanilla has the claim's direction, by the paired tests (sign flips, and a t test
   adjusted for skewness) that are corrected over the cell's methods. Its size is not asked for: a gain that is shown
   but smaller than printed is reproduced, and said to be smaller. At no effect at all this happens in at most level/2
   of claims (level 0.05: one claim in 40).
2. ``not reproduced``: the same test shows the opposite direction, or the 95 % interval of our difference ends short of
   the claimed gain. If the printed gain is exactly true, that happens in at most 2.5 % of claims; if the true gain is
   smaller than printed (selected results are), more often, and rightly: what is refuted is the printed number.
3. ``inconclusive``: else. How many seeds would settle it is the smaller number of two: to show our difference, or to
   tell it from the claimed one. It is a range, over the 95 % interval of our effect size.
4. ``failed``: a run of the arm or of vanilla ended without a finite metric, or their seeds are not independent, or they
   trained different numbers of epochs. ``not run``: there is no such result.

A paper's own uncertainty does not enter: a claim from five runs with a spread as large as the gain could then never be
refuted, by any number of seeds. Whether the paper's own numbers show its gain is told beside the verdict instead.

**The baseline**: is our vanilla where the paper's is? ``worse`` or ``better`` needs both: the 95 % Welch interval of
the difference leaves out 0, and the difference is larger than the gain claimed. A smaller one says little about a gain
of that size, and the papers' spreads of 0.03 points would make nearly every baseline differ. Results of the epoch that
the paper reports are compared: its best epoch with our best. Where it does not print the spread of two runs or more,
its spread is taken to be ours, and a number of runs that is not stated to be one. Data that are not the paper's (the
JPEG copy of CIFAR-10) are ``not comparable``.

A claim whose baseline is worse or better has the verdict ``baseline differs`` in front, because a gain over a vanilla
that is poorly tuned, or that leaves no room, is another claim than the paper's; the verdict above is kept beside it.

**Whose gain**: a reproduced gain is the ``noise``'s if the arm is shown to be better than the control with its mean
rate and no randomness (vanilla itself, for a method whose mean factor is 1); the ``rate``'s if it is not, while the
control is shown to be better than vanilla; else ``unsettled``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from flatwise.stats import UNTESTED, Judgement, seeds_range, welch_interval
from flatwise.study.hints import settle_words
from flatwise_papers.replication.claims import Claim, Reported

Outcome = Literal["reproduced", "not reproduced", "inconclusive", "failed", "not run"]
BaselineStatus = Literal["agrees", "worse", "better", "not comparable", "unknown"]
Credit = Literal["noise", "rate", "unsettled"]


@dataclass(frozen=True, slots=True)
class Measured:
    """A result of ours, as an error in percent.

    Attributes:
        mean: the error.
        sd: its standard deviation over seeds (n − 1); NaN for one seed.
        n: number of seeds.
    """

    mean: float
    sd: float
    n: int


@dataclass(frozen=True, slots=True)
class BaselineCheck:
    """Our vanilla against the paper's.

    Attributes:
        status: ``"agrees"``; ``"worse"`` or ``"better"`` than the paper's; ``"not comparable"``: other data;
            ``"unknown"``: too few seeds for an interval.
        ours: our vanilla at the epoch that the paper reports.
        difference: ours − the paper's, in points.
        low, high: its 95 % interval; NaN where there is none.
    """

    status: BaselineStatus
    ours: Measured
    difference: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the paper's claim is about another baseline."""
        return self.status in ("worse", "better")


def check_baseline(claim: Claim, ours: Measured, *, comparable: bool = True) -> BaselineCheck:
    """Compare our vanilla with the paper's.

    Args:
        claim: the claim.
        ours: our vanilla at the epoch that the claim is about.
        comparable: whether the data are the paper's; default: yes.
    """
    difference = ours.mean - claim.baseline.mean
    interval = _baseline_interval(ours, claim.baseline)
    low, high = interval or (math.nan, math.nan)
    status: BaselineStatus = "agrees"
    if not comparable:
        status = "not comparable"
    elif interval is None:
        status = "unknown"
    elif not low <= 0 <= high and abs(difference) > abs(claim.gain):
        status = "worse" if difference > 0 else "better"
    return BaselineCheck(status, ours, difference, low, high)


def _baseline_interval(ours: Measured, paper: Reported) -> tuple[float, float] | None:
    if ours.n < 2 or not (math.isfinite(ours.mean) and math.isfinite(ours.sd)):
        return None
    if paper.sd is not None and paper.runs is not None and paper.runs > 1:
        return welch_interval((ours.mean, ours.sd, ours.n), (paper.mean, paper.sd, paper.runs))
    # One spread for both, known from our runs alone: Student's t with n − 1 degrees of freedom.
    runs = paper.runs or 1
    return welch_interval((ours.mean, ours.sd * math.sqrt(1 + ours.n / runs), ours.n), (paper.mean, 0.0, ours.n))


def expected_difference(claim: Claim, vanilla: float) -> float:
    """The paper's relative gain, applied to our vanilla: arm − vanilla, in points.

    Args:
        claim: the claim.
        vanilla: mean of our vanilla, an error in percent.
    """
    return -claim.relative_gain * vanilla


def judge_claim(claim: Claim, vanilla: float, judgement: Judgement) -> Outcome:
    """Judge a claim by rules 1 to 4.

    Args:
        claim: the claim.
        vanilla: mean of our vanilla, an error in percent.
        judgement: our arm against our vanilla, paired by seed; lower is better.
    """
    if judgement.verdict in UNTESTED:
        return "failed"
    claimed, opposite = ("helps", "hurts") if claim.gain > 0 else ("hurts", "helps")
    if judgement.verdict == claimed:
        return "reproduced"
    if judgement.verdict == opposite or falls_short(claim, vanilla, judgement):
        return "not reproduced"
    return "inconclusive"


def falls_short(claim: Claim, vanilla: float, judgement: Judgement) -> bool:
    """Whether the 95 % interval of our difference ends before it reaches the claimed one. Never for a single pair."""
    expected = expected_difference(claim, vanilla)
    return judgement.low > expected if claim.gain > 0 else judgement.high < expected


def seeds_to_settle(claim: Claim, vanilla: float, judgement: Judgement) -> tuple[int, int | None] | None:
    """How many seeds would settle an inconclusive claim, at 80 % power: see :func:`flatwise.stats.seeds_range`.

    Returns:
        The fewest and the most, the latter ``None`` where our effect may be none; ``None`` where there is one seed.
    """
    if judgement.n < 2:
        return None
    expected = expected_difference(claim, vanilla)
    ranges = []
    if (judgement.mean < 0) == (claim.gain > 0) and judgement.seeds_range is not None:
        ranges.append(judgement.seeds_range)
    if (judgement.mean > expected) == (claim.gain > 0):  # ours is the smaller effect: more seeds would tell it apart
        # Rule 2 goes by the 95 % interval, whatever the level of the study's tests.
        ranges.append(seeds_range([difference - expected for difference in judgement.differences], level=0.05))
    if not ranges:
        return None
    return min(fewest for fewest, _ in ranges), min((most for _, most in ranges if most is not None), default=None)


def credit_gain(
    judgement: Judgement, *, control_is_vanilla: bool, vs_control: Judgement | None, control: Judgement | None
) -> Credit | None:
    """Say whose a gain is, the noise's or the mean rate's.

    Args:
        judgement: the arm against vanilla.
        control_is_vanilla: whether the method's mean factor is 1, so that vanilla is its control.
        vs_control: the arm against its control; ``None`` where it has none.
        control: that control against vanilla.

    Returns:
        ``None`` where there is no gain, or no control.
    """
    if judgement.verdict != "helps":
        return None
    if control_is_vanilla:
        return "noise"
    if vs_control is None or control is None:
        return None
    if vs_control.verdict == "helps":
        return "noise"
    return "rate" if control.verdict == "helps" else "unsettled"


Seeds = tuple[int, int | None] | None


def explain(
    claim: Claim,
    outcome: Outcome,
    *,
    check: BaselineCheck | None = None,
    judgement: Judgement | None = None,
    vanilla: float = math.nan,
    credit: Credit | None = None,
    seeds: Seeds = None,
    other_data: str | None = None,
    failures: tuple[int, int] = (0, 0),
) -> str:
    """Explain one verdict.

    Args:
        claim: the claim.
        outcome: what became of it.
        check: our vanilla against the paper's.
        judgement: our arm against our vanilla; needed unless the claim was not run.
        vanilla: mean of our vanilla, an error in percent.
        credit: whose a reproduced gain is.
        seeds: how many would settle an inconclusive claim, the fewest and the most.
        other_data: what the data are, where they are not the paper's.
        failures: how many runs of the arm and of vanilla failed.
    """
    if outcome == "not run" or judgement is None:
        return "There is no result of this cell and arm."
    if judgement.verdict == "not independent":
        return "Several seeds gave one and the same training, so nothing is judged."
    if judgement.verdict == "not comparable":
        return f"{claim.arm} and vanilla trained different numbers of epochs, so nothing is judged."
    if outcome == "failed":
        return (
            f"{failures[0]} runs of {claim.arm} and {failures[1]} of vanilla ended without a finite error, so nothing "
            "is judged."
        )
    sentences = [
        f"{claim.arm} changes vanilla's {vanilla:.2f} % by {_interval(judgement.mean, judgement.low, judgement.high)} "
        f"points; the paper's {_share(claim)} would be {_points(expected_difference(claim, vanilla))}.",
        _reason(outcome, claim, vanilla, judgement, seeds),
        "" if credit is None else _CREDITS[credit],
        _paper_shows(claim),
        "" if check is None else _baseline(claim, check, other_data),
    ]
    return " ".join(filter(None, sentences))


def _reason(outcome: Outcome, claim: Claim, vanilla: float, judgement: Judgement, seeds: Seeds) -> str:
    p = f"p = {judgement.p_corrected:.2g}"
    if outcome == "reproduced":
        smaller = ", but the effect is smaller than the paper's" if falls_short(claim, vanilla, judgement) else ""
        return f"The direction is shown ({p}){smaller}."
    if outcome == "inconclusive":
        return f"Neither no effect ({p}) nor the paper's is ruled out: {settle_words(seeds)}."
    if judgement.verdict != "inconclusive":
        return f"The opposite is shown ({p})."
    return f"Our interval leaves the paper's out, and no effect is not ruled out ({p})."


_CREDITS: dict[Credit, str] = {
    "noise": "It is better than its control with the same mean rate and no randomness.",
    "rate": "The control with its mean rate and no randomness gains too, and it is not shown to be better than that: "
    "the gain is the rate's, not the noise's.",
    "unsettled": "It is not shown to be better than the control with its mean rate, nor that to be better than "
    "vanilla: whose the gain is, is not settled.",
}


def _paper_shows(claim: Claim) -> str:
    interval = claim.gain_interval
    if interval is None or not interval[0] <= 0 <= interval[1]:
        return ""
    return (
        f"The paper's own runs do not show its gain: {claim.gain:.2f} points, 95 % interval "
        f"[{interval[0]:.2f}, {interval[1]:.2f}].".replace("-", "−")
    )


def _baseline(claim: Claim, check: BaselineCheck, other_data: str | None) -> str:
    if check.status == "not comparable":
        return f"Trained on {other_data}: the paper's errors are not comparable with ours."
    if not check.differs:
        return ""
    relation = "above" if check.difference > 0 else "below"
    epoch = " in the best epoch" if claim.epoch == "best" else ""
    told = "was not reached" if check.status == "worse" else "was easily beaten"
    return (
        f"The paper's vanilla {told}: ours has {check.ours.mean:.2f} %{epoch}, {abs(check.difference):.2f} points "
        f"{relation} its {claim.baseline.mean:.2f} %, more than the {abs(claim.gain):.2f} claimed."
    )


def _share(claim: Claim) -> str:
    return f"relative {'gain' if claim.gain > 0 else 'loss'} of {abs(claim.relative_gain):.1%}".replace("%", " %")


def _interval(mean: float, low: float, high: float) -> str:
    return _points(mean) if math.isnan(low) else f"{_points(mean)} [{_points(low)}, {_points(high)}]"


def _points(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")

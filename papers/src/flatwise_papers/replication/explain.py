"""The reasons for a verdict, in sentences with numbers."""

from __future__ import annotations

import math

from flatwise.stats import Judgement
from flatwise.study.hints import settle_words
from flatwise_papers.replication.claims import Claim
from flatwise_papers.replication.rules import BaselineCheck, Credit, Outcome, expected_difference, falls_short

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
        _OUTCOMES[outcome](claim, vanilla, judgement, seeds),
        "" if credit is None else _CREDITS[credit],
        _paper_shows(claim),
        "" if check is None else _baseline(claim, check, other_data),
    ]
    return " ".join(filter(None, sentences))


def _reproduced(claim: Claim, vanilla: float, judgement: Judgement, seeds: Seeds) -> str:
    if falls_short(claim, vanilla, judgement):
        return f"The direction is shown (p = {judgement.p_corrected:.2g}), but the effect is smaller than the paper's."
    return f"The direction is shown (p = {judgement.p_corrected:.2g})."


def _not_reproduced(claim: Claim, vanilla: float, judgement: Judgement, seeds: Seeds) -> str:
    if judgement.verdict != "inconclusive":
        return f"The opposite is shown (p = {judgement.p_corrected:.2g})."
    return f"Our interval leaves the paper's out, and no effect is not ruled out (p = {judgement.p_corrected:.2g})."


def _inconclusive(claim: Claim, vanilla: float, judgement: Judgement, seeds: Seeds) -> str:
    return f"Neither no effect (p = {judgement.p_corrected:.2g}) nor the paper's is ruled out: {settle_words(seeds)}."


_OUTCOMES = {"reproduced": _reproduced, "not reproduced": _not_reproduced, "inconclusive": _inconclusive}

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

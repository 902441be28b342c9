"""A comparison as rows of text: the one place that formats numbers for the terminal's tables and for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from flatwise.stats import Judgement, Verdict
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.hints import seeds_range_words

NOTHING = "—"


@dataclass(frozen=True, slots=True)
class Judged:
    """One paired comparison as text.

    Attributes:
        difference: the mean paired difference, signed; ``"—"`` where nothing was tested.
        interval: its 95 % interval, such as ``"−0.61 to −0.23"``; may be empty.
        p: the corrected p value.
        verdict: the verdict in one word, or ``None`` where there is no comparison.
        note: what to add to the verdict, such as ``"needs at least 31 seeds"``; may be empty. Where there is no
            comparison, it says why.
    """

    difference: str
    interval: str
    p: str
    verdict: Verdict | None
    note: str


@dataclass(frozen=True, slots=True)
class Row:
    """One arm as text.

    Attributes:
        name, description: as in the arm's summary.
        kind: what the arm is in the comparison.
        final: mean ± standard deviation of the judged metric after the final epoch.
        best: mean of the best epoch's metric.
        vanilla, control: the arm against vanilla, and against its control.
        time: time per epoch against vanilla's, such as ``"1.04×"``.
        n: number of seeds that finished.
        failed: number of seeds that failed.
    """

    name: str
    description: str
    kind: Literal["vanilla", "method", "control"]
    final: str
    best: str
    vanilla: Judged
    control: Judged
    time: str
    n: int
    failed: int


def rows(comparison: Comparison) -> list[Row]:
    """Every arm of ``comparison`` as text, in the comparison's order."""
    return [_row(comparison, arm, decimals(comparison)) for arm in comparison.arms]


def _row(comparison: Comparison, arm: ArmSummary, places: int) -> Row:
    is_vanilla = arm is comparison.arms[0]
    return Row(
        name=arm.name,
        description=arm.description,
        kind="vanilla" if is_vanilla else "control" if arm.is_control else "method",
        final=mean_and_sd(arm.mean, arm.sd, places),
        best=number(arm.best_mean, places),
        vanilla=judged(arm.vs_vanilla, places, otherwise="the baseline" if is_vanilla else "not compared"),
        control=judged(arm.vs_control, places, otherwise=_why_no_control(comparison, arm)),
        time=f"{arm.time_ratio:.2f}×" if math.isfinite(arm.time_ratio) else NOTHING,
        n=arm.n,
        failed=arm.failed,
    )


def _why_no_control(comparison: Comparison, arm: ArmSummary) -> str:
    if arm is comparison.arms[0] or arm.is_control:
        return ""
    if arm.control is None:
        return "no control"
    return "control is vanilla" if arm.control == comparison.arms[0].name else "not compared"


def judged(judgement: Judgement | None, places: int, otherwise: str = "") -> Judged:
    """``judgement`` as text with ``places`` decimals; ``otherwise`` is the note where there is no judgement."""
    if judgement is None:
        return Judged(NOTHING, "", NOTHING, None, otherwise)
    bounds = [number(bound, places, signed=True) for bound in (judgement.low, judgement.high)]
    return Judged(
        difference=number(judgement.mean, places, signed=True),
        interval="" if NOTHING in bounds else " to ".join(bounds),
        p=p_value(judgement.p_corrected),
        verdict=judgement.verdict,
        note=verdict_note(judgement),
    )


# Why there is no "helps" or "hurts", in few enough words for a table.
_NOTES: dict[Verdict, str] = {
    "skewed": "too asymmetric for a test",
    "does nothing": "identical on all seeds",
    "not independent": "seeds repeat a training",
    "not comparable": "different numbers of epochs",
    "not tested": "no verdict against vanilla",
}


def verdict_note(judgement: Judgement) -> str:
    """What to add to a verdict: how many seeds an inconclusive comparison needs, or why nothing was concluded."""
    if judgement.verdict != "inconclusive":
        return _NOTES.get(judgement.verdict, "")
    if judgement.n < 2:
        return "one seed says nothing"
    if judgement.seeds_range is None:
        return ""
    return f"needs {seeds_range_words(judgement.seeds_range)}"


def decimals(comparison: Comparison) -> int:
    """Decimals that show a typical standard deviation over seeds with two digits: one number for the whole table.

    Returns:
        Between 0 and 8; 2 where no arm has a standard deviation above 0.
    """
    return decimals_of(arm.sd for arm in comparison.arms)


def decimals_of(spreads: Iterable[float]) -> int:
    """The same for any standard deviations."""
    known = sorted(sd for sd in spreads if math.isfinite(sd) and sd > 0)
    if not known:
        return 2
    typical = known[len(known) // 2]
    return min(8, max(0, 1 - math.floor(math.log10(typical))))


def number(value: float, places: int, signed: bool = False) -> str:
    """``value`` with ``places`` decimals and a typographic minus; a dash where it is not finite.

    Args:
        value: the number.
        places: decimals.
        signed: write ``+`` in front of a positive number. A number that rounds to zero never has a sign.
    """
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:{'+' if signed else ''}.{places}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def number_of(value: float) -> str:
    """``value`` with four digits, where no spread says how many matter; a dash where it is not finite."""
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else NOTHING


def mean_and_sd(mean: float, sd: float, places: int) -> str:
    """``"8.71 ± 0.15"``; the mean alone where there is no standard deviation."""
    spread = number(sd, places)
    return number(mean, places) if NOTHING in (number(mean, places), spread) else f"{number(mean, places)} ± {spread}"


def p_value(p: float) -> str:
    """A p value with three decimals, such as ``"0.016"``; ``"<0.001"`` below that, a dash where nothing was tested."""
    if not math.isfinite(p):
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def metric_label(comparison: Comparison, metric: str | None = None) -> str:
    """A metric's name with its unit, for headers and axes: ``"test_error (%)"``.

    Only the judged metric's unit is known: every other ``metric`` is named without one.
    """
    if metric is not None and metric != comparison.metric:
        return metric
    return f"{comparison.metric} ({comparison.unit})" if comparison.unit else comparison.metric


def difference_unit(comparison: Comparison) -> str:
    """The unit of a difference: ``"points"`` for percentages, so that nobody reads it as a relative change."""
    return "points" if comparison.unit == "%" else comparison.unit


def with_unit(text: str, unit: str) -> str:
    """``text`` followed by ``unit``, where there is one."""
    return f"{text} {unit}" if unit else text


def listing(names: Iterable[str]) -> str:
    """``"a, b and c"``."""
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last


def plural(count: int, noun: str) -> str:
    """``"1 cell"``, ``"3 cells"``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

"""The flatness of a comparison's models as rows of text, for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flatwise.report.rows import NOTHING, decimals_of, mean_and_sd, number, p_value, rows
from flatwise.stats import Judgement, Verdict
from flatwise.study.comparison import ArmFlatness, Comparison, FlatnessSummary, Measure

# A lower curvature is flatter; whether that is better, only the metric tells.
WORDS: dict[Verdict, str] = {
    "helps": "lower",
    "hurts": "higher",
    "inconclusive": "inconclusive",
    "skewed": "skewed",
    "does nothing": "inconclusive",
    "not independent": "not independent",
    "not comparable": "not comparable",
    "not tested": "not tested",
    "failed": "missing",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One measure of one arm as text.

    Attributes:
        value: mean ± standard deviation over the seeds; empty where only the difference is shown.
        difference: the mean paired difference, signed; empty where there is none.
        interval: its 95 % interval; may be empty.
        verdict: ``"lower"``, ``"higher"``, ``"inconclusive"``, ``"missing"``, or empty where nothing is compared.
        note: the corrected p value, or what is missing; may be empty.
    """

    value: str
    difference: str
    interval: str
    verdict: str
    note: str


@dataclass(frozen=True, slots=True)
class FlatnessRow:
    """One arm as text: the judged metric first.

    Attributes:
        name: the arm.
        kind: as in :class:`flatwise.report.rows.Row`.
        metric: mean ± standard deviation of the metric, or its difference from the control's.
        metric_verdict: its verdict in one word; may be empty.
        loss: mean training loss at the final weights; empty where only differences are shown.
        cells: one per measure.
    """

    name: str
    kind: str
    metric: str
    metric_verdict: str
    loss: str
    cells: tuple[Cell, ...]


def against_vanilla(comparison: Comparison, flatness: FlatnessSummary) -> list[FlatnessRow]:
    """Every arm's measures, and their paired differences from vanilla's."""
    losses = [loss for loss in flatness.loss.values() if math.isfinite(loss) and loss > 0]
    places = 4 if not losses else max(0, 2 - math.floor(math.log10(min(losses))))
    cells = [[_cell(of, of.vs_vanilla, scale_of(m)) for of in m.arms] for m in flatness.measures]
    return [
        FlatnessRow(
            name=row.name,
            kind=row.kind,
            metric=row.final,
            metric_verdict=row.vanilla.verdict or "",
            loss=number(flatness.loss[row.name], min(places, 8)),
            cells=tuple(column[index] for column in cells),
        )
        for index, row in enumerate(rows(comparison))
    ]


def against_controls(comparison: Comparison, flatness: FlatnessSummary) -> list[FlatnessRow]:
    """The methods that have a control of their own: the paired differences from it."""
    found = []
    for index, row in enumerate(rows(comparison)):
        if comparison.arms[index].vs_control is None:
            continue
        of_arm = [(m.arms[index], scale_of(m)) for m in flatness.measures]
        cells = tuple(_cell(of, of.vs_control, scale, with_value=False) for of, scale in of_arm)
        interval = f" ({row.control.interval})" if row.control.interval else ""
        metric = row.control.difference + interval
        found.append(FlatnessRow(row.name, row.kind, metric, row.control.verdict or "", "", cells))
    return found


def verdict_on(judgement: Judgement | None) -> str:
    """``"lower"``, ``"higher"``, or why there is no such verdict; empty where nothing is compared."""
    return "" if judgement is None else WORDS[judgement.verdict]


@dataclass(frozen=True, slots=True)
class Scale:
    """How a measure's numbers are written: times a power of ten, with so many decimals."""

    power: int
    places: int


def scale_of(measure: Measure) -> Scale:
    """The measure's scale: numbers with more than three decimals are written in thousandths."""
    places = decimals_of(of.sd for of in measure.arms)
    return Scale(3, places - 3) if places > 3 else Scale(0, places)


def _cell(of: ArmFlatness, judgement: Judgement | None, scale: Scale, with_value: bool = True) -> Cell:
    factor, places = 10.0**scale.power, scale.places
    verdict = verdict_on(judgement)
    difference, interval, p = "", "", ""
    if judgement is not None and verdict != "missing":
        difference = number(judgement.mean * factor, places, signed=True)
        bounds = [number(bound * factor, places, signed=True) for bound in (judgement.low, judgement.high)]
        interval = "" if NOTHING in bounds else " to ".join(bounds)
        corrected = p_value(judgement.p_corrected)
        p = f"p {corrected if corrected.startswith('<') else f'= {corrected}'}"
    missing = f"missing on {of.missing} of {len(of.values)} seeds" if of.missing else ""
    return Cell(
        value=mean_and_sd(of.mean * factor, of.sd * factor, places) if with_value else "",
        difference=difference,
        interval=interval,
        verdict=verdict,
        note=missing or (p if verdict in ("lower", "higher") else ""),
    )

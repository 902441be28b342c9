"""The flatness of a comparison's models as rows of text, for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flatter.report.rows import NOTHING, decimals_of, judged, mean_and_sd, number, rows
from flatter.stats import Judgement
from flatter.study.comparison import Comparison
from flatter.study.flatness_summary import ArmFlatness, FlatnessSummary

# A lower curvature is flatter; whether that is better, only the metric tells.
WORDS = {"helps": "lower", "hurts": "higher", "inconclusive": "inconclusive", "failed": "missing"}


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
        kind: as in :class:`flatter.report.rows.Row`.
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
    cells = [[_cell(of, of.vs_vanilla, _places(m.arms)) for of in m.arms] for m in flatness.measures]
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
        of_arm = [(m.arms[index], _places(m.arms)) for m in flatness.measures]
        cells = tuple(_cell(of, of.vs_control, places, with_value=False) for of, places in of_arm)
        interval = f" ({row.control.interval})" if row.control.interval else ""
        metric = row.control.difference + interval
        found.append(FlatnessRow(row.name, row.kind, metric, row.control.verdict or "", "", cells))
    return found


def verdict_on(judgement: Judgement | None) -> str:
    """``"lower"``, ``"higher"``, ``"inconclusive"`` or ``"missing"``; empty where nothing is compared."""
    return "" if judgement is None else WORDS[judgement.verdict]


def _places(arms: Sequence[ArmFlatness]) -> int:
    return decimals_of(of.sd for of in arms)


def _cell(of: ArmFlatness, judgement: Judgement | None, places: int, with_value: bool = True) -> Cell:
    text = judged(judgement, places)
    verdict = verdict_on(judgement)
    missing = f"missing on {of.missing} of {len(of.values)} seeds" if of.missing else ""
    p = f"p {text.p if text.p.startswith('<') else f'= {text.p}'}" if text.p != NOTHING else ""
    return Cell(
        value=mean_and_sd(of.mean, of.sd, places) if with_value else "",
        difference="" if text.difference == NOTHING else text.difference,
        interval=text.interval,
        verdict=verdict,
        note=missing or (p if verdict in ("lower", "higher") else ""),
    )

"""A replication's ledger in the report of a study: rows of text, the terminal's table, the page's section."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from flatwise.report.html_page import templates
from flatwise.report.rows import NOTHING, number, p_value, plural
from flatwise.report.table import STYLES, plain_table
from flatwise.stats import Verdict as Look
from flatwise.study.hints import seeds_range_words
from flatwise_papers.replication import Entry, Ledger, Measured, Reported
from flatwise_papers.replication.ledger import Verdict

_PLACES = 2  # as the papers print them

# How a verdict looks: as the verdict of a comparison that is as good or as bad.
LOOKS: dict[Verdict, Look | None] = {
    "reproduced": "helps",
    "not reproduced": "hurts",
    "inconclusive": "inconclusive",
    "baseline differs": "failed",
    "failed": "failed",
    "not run": None,
}
_CREDITS = {
    "noise": "and the noise's, not the mean rate's",
    "rate": "by the mean rate, not by the noise",
    "unsettled": "the noise's or the mean rate's: not settled",
}


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One claim as text. Errors are in percent, differences in points.

    Attributes:
        cell, arm: their names in the study.
        where: the paper's table and what the row is about.
        paper_vanilla, paper_arm: the paper's results.
        paper_gain: its relative gain, such as ``"−5.0 %"``: a lower error is a gain.
        vanilla, result: ours.
        difference, interval: ours, arm − vanilla, with its 95 % interval; the latter may be empty.
        expected: what the paper's relative gain means from our vanilla.
        p: of the paired test, corrected.
        verdict: the verdict.
        look: the verdict of a comparison that looks like it.
        notes: what to add to the verdict.
        explanation: the reasons, in sentences.
    """

    cell: str
    arm: str
    where: str
    paper_vanilla: str
    paper_arm: str
    paper_gain: str
    vanilla: str
    result: str
    difference: str
    interval: str
    expected: str
    p: str
    verdict: Verdict
    look: Look | None
    notes: tuple[str, ...]
    explanation: str


def ledger_rows(ledger: Ledger) -> list[LedgerRow]:
    """Every claim as text, in the ledger's order."""
    return [_row(entry) for entry in ledger.entries]


def ledger_headline(ledger: Ledger) -> str:
    """How many claims have which verdict, in a sentence."""
    if not ledger.entries:
        return "This study replicates no claim of a paper."
    counts = Counter[str](entry.verdict for entry in ledger.entries)
    clauses = [
        f"{counts[verdict]} {words}"
        for verdict, words in (
            ("not reproduced", "not reproduced"),
            ("inconclusive", "inconclusive"),
            ("baseline differs", "with another baseline than the paper's"),
            ("failed", "failed"),
            ("not run", "not run yet"),
        )
        if counts[verdict]
    ]
    first = f"{counts['reproduced'] or 'None'} of {plural(len(ledger.entries), 'claim')} reproduced"
    by_rate = sum(entry.verdict == "reproduced" and entry.credit == "rate" for entry in ledger.entries)
    if by_rate:
        first += f" ({by_rate} by the mean rate, not by the noise)"
    return f"{'; '.join([first, *clauses])}."


def _row(entry: Entry) -> LedgerRow:
    claim = entry.claim
    bounds = [number(bound, _PLACES, signed=True) for bound in (entry.low, entry.high)]
    return LedgerRow(
        cell=claim.cell,
        arm=claim.arm,
        where=", ".join(
            filter(
                None,
                (f"{claim.paper}, table {claim.table}", claim.dataset, claim.model, claim.optimizer, claim.schedule),
            )
        ),
        paper_vanilla=_reported(claim.baseline),
        paper_arm=_reported(claim.result),
        paper_gain=f"{number(-100 * claim.relative_gain, 1, signed=True)} %",
        vanilla=_measured(entry.baseline),
        result=_measured(entry.result),
        difference=number(entry.difference, _PLACES, signed=True),
        interval="" if NOTHING in bounds else " to ".join(bounds),
        expected=number(entry.expected, _PLACES, signed=True),
        p=p_value(entry.p),
        verdict=entry.verdict,
        look=LOOKS[entry.verdict],
        notes=tuple(_notes(entry)),
        explanation=entry.explanation,
    )


def _notes(entry: Entry) -> list[str]:
    notes = []
    if entry.check is not None and entry.verdict == "baseline differs":
        notes.append(f"our vanilla is {entry.check.status} than the paper's; the claim itself: {entry.outcome}")
    if entry.check is not None and entry.check.status == "not comparable":
        notes.append("other data than the paper's: the errors are not comparable, the gains are")
    if entry.credit is not None:
        notes.append(_CREDITS[entry.credit])
    if entry.outcome == "inconclusive":
        notes.append(
            "one seed says nothing" if entry.seeds_range is None else f"needs {seeds_range_words(entry.seeds_range)}"
        )
    return notes


def _reported(result: Reported) -> str:
    return _mean_and_sd(result.mean, math.nan if result.sd is None else result.sd)


def _measured(result: Measured | None) -> str:
    return NOTHING if result is None else _mean_and_sd(result.mean, result.sd)


def _mean_and_sd(mean: float, sd: float) -> str:
    return f"{number(mean, _PLACES)} ± {number(sd, _PLACES)}" if math.isfinite(sd) else number(mean, _PLACES)


def ledger_table(ledger: Ledger) -> Table:
    """The paper's numbers beside ours, with a verdict per claim."""
    table = plain_table("The paper's numbers beside ours")
    table.caption = (
        "Errors in %: vanilla, then the arm. Difference: ours, in points, paired by seed, with its 95 % interval; below"
        " it what the paper's relative gain would mean from our vanilla."
    )
    lines = ledger_rows(ledger)
    table.add_column("claim", overflow="fold", min_width=min(16, max((len(row.arm) for row in lines), default=0)))
    table.add_column("the paper", justify="right", no_wrap=True)
    table.add_column("ours", justify="right", no_wrap=True)
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("verdict", min_width=len("not reproduced"))
    for row in lines:
        table.add_row(*_claim(row))
    return table


def _claim(row: LedgerRow) -> tuple[Text, ...]:
    verdict = Text(row.verdict, style="dim" if row.look is None else STYLES[row.look])
    for note in row.notes:
        verdict.append(f"\n{note}", style="dim not bold")
    difference = Text(row.difference)
    if row.interval:
        difference.append(f"\n{row.interval}\npaper's: {row.expected}", style="dim")
    return (
        Text.assemble((row.arm, "bold"), "\n", (row.cell, "dim")),
        Text(f"{row.paper_vanilla}\n{row.paper_arm}\n{row.paper_gain}"),
        Text(f"{row.vanilla}\n{row.result}"),
        difference,
        verdict,
    )


class LedgerSection:
    """The ledger as a section of a study's report: see :class:`flatwise.study.registry.Section`.

    Args:
        ledger: the ledger.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.content = ledger
        self.headline = ledger_headline(ledger)
        self.table = ledger_table(ledger)

    def html(self, link: Callable[[str], Markup]) -> Markup:
        """Return the section of the page; ``link`` makes a link of a cell's name."""
        entries = self.content.entries
        template = templates("flatwise_papers.replication").get_template("ledger.html.jinja")
        return Markup(
            template.render(
                claims=ledger_rows(self.content),
                cell_link=link,
                from_accuracy=any(entry.claim.from_accuracy for entry in entries),
                best_epoch=any(entry.claim.epoch == "best" for entry in entries),
            )
        )

"""A replication's ledger as a table, for the terminal, a page and Markdown, and as a section of a study's report."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

from markupsafe import Markup

from flatwise.report.page import templates
from flatwise.report.table import (
    NOTHING,
    Cell,
    Column,
    Row,
    Table,
    cell,
    interval,
    mean_and_sd,
    number,
    p_value,
    plural,
)
from flatwise.study.hints import seeds_range_words
from flatwise_papers.replication.claims import Claim, Reported
from flatwise_papers.replication.ledger import Entry, Ledger, Verdict
from flatwise_papers.replication.rules import Measured

_PLACES = 2  # as the papers print them

# How a verdict looks: as the verdict of a comparison that is as good or as bad.
_LOOKS: dict[Verdict, str] = {
    "reproduced": "helps",
    "not reproduced": "hurts",
    "inconclusive": "inconclusive",
    "baseline differs": "failed",
    "failed": "failed",
    "not run": "dim",
}
_CREDITS = {
    "noise": "and the noise's, not the mean rate's",
    "rate": "by the mean rate, not by the noise",
    "unsettled": "the noise's or the mean rate's: not settled",
}


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


def ledger_table(ledger: Ledger, link: Callable[[str], str] | None = None) -> Table:
    """The paper's numbers beside ours, with a verdict per claim. Errors are in percent, differences in points.

    Args:
        ledger: the ledger.
        link: makes a link of a cell's name, for a page, which has room for p values too. Default: for the terminal.
    """
    numbers = ("the paper", "ours", "our difference", *(() if link is None else ("corrected p",)))
    accuracies = any(entry.claim.from_accuracy for entry in ledger.entries)
    best = any(entry.claim.epoch == "best" for entry in ledger.entries)
    sentences = (
        "Errors in %, mean ± standard deviation: vanilla, then the arm.",
        "The paper prints accuracies: its errors are 100 − accuracy." if accuracies else "",
        "The paper reports the best epoch, chosen on test data; ours are of the last." if best else "",
        "Our difference is in points, paired by seed, with its 95 % interval; below it what the paper's relative gain "
        "would mean from our vanilla.",
    )
    return Table(
        title="The paper's numbers beside ours",
        note=" ".join(filter(None, sentences)),
        spaced=True,
        columns=(
            Column("claim", "name"),
            *(Column(header, label=header) for header in numbers),
            Column("verdict", "verdict"),
        ),
        rows=tuple(Row(_cells(entry, link)) for entry in ledger.entries),
    )


def ledger_markdown(ledger: Ledger) -> str:
    """The ledger as Markdown: how many claims have which verdict, the table, and how to read it."""
    table = ledger_table(ledger)
    return "\n\n".join([ledger_headline(ledger), table.to_markdown(), table.note]) + "\n"


def _cells(entry: Entry, link: Callable[[str], str] | None) -> tuple[Cell, ...]:
    claim = entry.claim
    then = "\n" if link is None else "\n→ "
    bounds = interval(entry.low, entry.high, _PLACES)
    expected = f"paper's: {number(entry.expected, _PLACES, signed=True)}" if bounds else ""
    return (
        cell((claim.arm, "strong"), (claim.cell if link is None else link(claim.cell), "dim")),
        cell(
            f"{_reported(claim.baseline)}{then}{_reported(claim.result)}",
            (f"{number(-100 * claim.relative_gain, 1, signed=True)} %", "dim"),
        ),
        cell(_measured(entry.baseline) + ("" if entry.result is None else f"{then}{_measured(entry.result)}")),
        cell(number(entry.difference, _PLACES, signed=True), (bounds, "dim"), (expected, "dim")),
        *(() if link is None else (cell(p_value(entry.p)),)),
        cell((entry.verdict, _LOOKS[entry.verdict]), *((note, "note") for note in _notes(entry))),
    )


def _notes(entry: Entry) -> list[str]:
    """What to add to the verdict."""
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
    return mean_and_sd(result.mean, math.nan if result.sd is None else result.sd, _PLACES)


def _measured(result: Measured | None) -> str:
    return NOTHING if result is None else mean_and_sd(result.mean, result.sd, _PLACES)


def where(claim: Claim) -> str:
    """The paper's table and what its row is about."""
    about = (claim.dataset, claim.model, claim.optimizer, claim.schedule)
    return ", ".join(filter(None, (f"{claim.paper}, table {claim.table}", *about)))


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
        table = ledger_table(self.content, link)
        template = templates("flatwise_papers.replication").get_template("ledger.html.jinja")
        return Markup(template.render(claims=table, entries=self.content.entries, where=where))

"""The comparison as tables for the terminal, readable at 80 columns."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from flatwise.report.rows import Judged, Row, difference_unit, metric_label, rows
from flatwise.report.sentences import headline, summary_lines
from flatwise.stats import Verdict
from flatwise.study.comparison import Comparison

__all__ = ["comparison_table", "control_table", "headline", "summary_lines"]

STYLES: dict[Verdict, str] = {
    "helps": "bold green",
    "hurts": "bold red",
    "inconclusive": "yellow",
    "skewed": "yellow",
    "does nothing": "dim",
    "not independent": "bold magenta",
    "not comparable": "bold magenta",
    "not tested": "dim",
    "failed": "bold magenta",
}


def comparison_table(comparison: Comparison) -> Table:
    """The table "Does it help?": every arm against vanilla.

    Two lines per row keep it within 80 columns: the interval stands under the difference, the best epoch's metric,
    which is chosen on test data, dim under the final epoch's, and the number of seeds under the time.
    """
    table = plain_table("Does it help?")
    table.caption = (
        "Final epoch, mean ± sd over seeds. Dim: the best epoch, chosen on test data, so optimistic and never judged."
        " Differences are paired by seed, with their 95 % interval. p: sign-flip and skewness-adjusted t test, the"
        " larger of the two, corrected (Holm)."
        " Time: per epoch, ÷ vanilla's. n: seeds that finished."
    )
    lines = rows(comparison)
    _add_name_column(table, lines)
    final_width = max(len(row.final) for row in lines)
    header = Text.assemble(metric_label(comparison), "\n", ("best epoch", "dim"))
    table.add_column(header, justify="right", min_width=final_width)
    _add_judged_columns(table, comparison, "minus vanilla", [row.vanilla for row in lines])
    table.add_column("time\nn", justify="right", min_width=max(len(_count(row)) for row in lines))
    for row in lines:
        final = Text.assemble(row.final, "\n", (f"best {row.best}", "dim"))
        time = Text.assemble(row.time, "\n", (_count(row), "bold magenta" if row.failed else "dim"))
        table.add_row(name_cell(row), final, *judged_cells(row.vanilla), time)
    return table


def control_table(comparison: Comparison) -> Table:
    """The table "Is it the noise, or the mean rate?": every method against the control at its own mean rate."""
    table = plain_table("Is it the noise, or the mean rate?")
    table.caption = (
        "A control has the method's mean rate and no randomness. "
        "A gain over vanilla that the control has too is the rate's. Tested where there is a verdict against vanilla."
    )
    lines = [row for row in rows(comparison) if row.kind == "method"]
    _add_name_column(table, lines)
    _add_judged_columns(table, comparison, "minus its control", [row.control for row in lines])
    for row in lines:
        table.add_row(name_cell(row), *judged_cells(row.control))
    return table


def plain_table(title: str) -> Table:
    """An empty table that is not cut off at 80 columns, with an empty line between rows."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_edge=False,
        leading=1,
    )


def _add_name_column(table: Table, lines: list[Row]) -> None:
    # Names break at their spaces; a word of up to 16 letters stays whole.
    longest_word = max((len(word) for row in lines for word in row.name.split()), default=0)
    table.add_column("arm", min_width=min(16, longest_word), overflow="fold")


def _add_judged_columns(table: Table, comparison: Comparison, against: str, column: list[Judged]) -> None:
    unit = difference_unit(comparison)
    header = Text(f"{against}\n({unit})" if unit else against)
    table.add_column(header, justify="right", min_width=max((len(judged.interval) for judged in column), default=0))
    table.add_column("p", justify="right", min_width=max((len(judged.p) for judged in column), default=0))
    table.add_column("verdict", min_width=len("inconclusive"))


def judged_cells(judged: Judged) -> tuple[Text, str, Text]:
    """The cells of the three columns: difference with interval, p, verdict."""
    difference = Text(judged.difference)
    if judged.interval:
        difference.append("\n").append(judged.interval, style="dim")
    if judged.verdict is None:
        return difference, judged.p, Text(judged.note, style="dim")
    note = f"\n({judged.note})" if judged.note else ""
    return difference, judged.p, Text.assemble((judged.verdict, STYLES[judged.verdict]), note)


# Cells are Text, never str, where they hold an arm's name: rich would read "[red]" in a str as markup.
def name_cell(row: Row, indent: int = 0) -> Text:
    """An arm's name."""
    return Text(" " * indent + row.name, style={"control": "dim", "vanilla": "", "method": "bold"}[row.kind])


def _count(row: Row) -> str:
    return f"{row.n} of {row.n + row.failed}" if row.failed else str(row.n)

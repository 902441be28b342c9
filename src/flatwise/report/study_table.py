"""A study on the terminal: how far it is, what came out, what was chosen.

All tables are readable at 80 columns. Cells are :class:`rich.text.Text`, never ``str``, where they hold a name: rich
would read ``[red]`` in a ``str`` as markup.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from flatwise.report.rows import NOTHING, Row, metric_label, plural, rows
from flatwise.report.study_sentences import what_is_known
from flatwise.report.table import judged_cells, name_cell, plain_table
from flatwise.report.tuning_rows import search_rows
from flatwise.study.results import CellResult, CellStatus
from flatwise.study.spec import StudySpec

_STAGES = {"tuning": "yellow", "final runs": "cyan", "done": "green"}


def status_table(statuses: Sequence[CellStatus]) -> Table:
    """How far every cell is."""
    table = plain_table("")
    table.leading = 0
    table.add_column("cell", overflow="fold")
    table.add_column("stage", min_width=10)
    table.add_column("trials", justify="right", no_wrap=True)
    table.add_column("failed", justify="right")
    for status in statuses:
        table.add_row(
            Text(status.name),
            Text(status.stage, style=_STAGES[status.stage]),
            f"{status.ended} of {status.planned}",
            Text(str(status.failed) if status.failed else NOTHING, style="bold magenta" if status.failed else "dim"),
        )
    if any(status.stage == "tuning" for status in statuses):
        table.caption = "What a cell runs after this round of its tuning follows from the outcome, and is not counted."
    return table


def study_table(results: Sequence[CellResult]) -> Table:
    """Every cell with its arms against vanilla, without the controls; under the verdict that against the control."""
    table = plain_table("Does it help?")
    table.leading = 0
    table.caption = (
        "Test set, final epoch, mean ± sd over seeds; differences paired by seed, with their 95 % interval."
        " p: sign-flip and skewness-adjusted t test, corrected (Holm) over the methods of a cell. Dim: against the"
        " control at the same mean rate."
    )
    shown = [(result, _methods(result)) for result in results]
    lines = [row for _, found in shown for row in found]
    words = [word for name in [row.name for row in lines] + [r.cell.name for r in results] for word in name.split()]
    table.add_column("cell\n  arm", min_width=min(18, max(map(len, words), default=0)), overflow="fold")
    table.add_column("final", justify="right", min_width=max((len(row.final) for row in lines), default=0))
    table.add_column(
        "minus vanilla", justify="right", min_width=max((len(r.vanilla.interval) for r in lines), default=0)
    )
    table.add_column("p", justify="right", min_width=max((len(row.vanilla.p) for row in lines), default=0))
    table.add_column("verdict", min_width=len("inconclusive"))
    for position, (result, found) in enumerate(shown):
        if position:
            table.add_row()
        table.add_row(*_heading(result))
        for row in found:
            table.add_row(name_cell(row, indent=2), *_cells(row))
    return table


def _methods(result: CellResult) -> list[Row]:
    return [] if result.comparison is None else [row for row in rows(result.comparison) if row.kind != "control"]


def _heading(result: CellResult) -> tuple[Text, ...]:
    name = Text(result.cell.name, style="bold underline")
    if result.comparison is None:
        return name, Text(""), Text(""), Text(""), Text("not judged yet", style="yellow")
    seeds = Text(plural(len(result.comparison.seeds), "seed"), style="dim")
    return name, Text(metric_label(result.comparison), style="dim"), Text(""), Text(""), seeds


def _cells(row: Row) -> tuple[Text | str, ...]:
    difference, p, verdict = judged_cells(row.vanilla)
    if row.control.verdict is not None:
        verdict.append(f"\ncontrol: {row.control.verdict}", style="dim")
    final = Text(row.final)
    if row.failed:
        final.append(f"\n{row.failed} of {row.n + row.failed} failed", style="bold magenta")
    return final, difference, p, verdict


def tuning_lines(study: StudySpec, results: Sequence[CellResult]) -> list[str]:
    """What every search chose, a line each, and a line for each cell that is not judged yet."""
    lines = []
    for result in results:
        for row in search_rows(study, result):
            if row.count:
                value = "" if row.value == NOTHING else f", validation {row.value} (best of {row.count})"
                warned = f". {' '.join(row.warnings)}" if row.warnings else ""
                lines.append(f"{result.cell.name}, {row.name}: {row.chosen}{value}{warned}")
        if result.comparison is None:
            lines.append(f"{result.cell.name}: {what_is_known(result)}")
    return lines

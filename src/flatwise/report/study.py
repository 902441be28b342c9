"""A study in words: what came out over all cells, how it was run, and its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from flatwise.report.comparison import (
    VERBS,
    arm_rows,
    difference_unit,
    final,
    gain_is_own,
    headline,
    judged_cells,
    judged_columns,
    methods,
    metric_label,
    named_lines,
    verdict_of,
    whose_gain,
)
from flatwise.report.figures import forest_plots
from flatwise.report.table import NOTHING, Cell, Column, Line, Row, Table, cell, listing, plural, row
from flatwise.report.tuning import (
    configuration_words,
    edges_by_cell,
    is_tuned,
    search_lines,
    seeds_words,
    tuning_words,
    value_words,
)
from flatwise.stats import UNTESTED
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.registry import get_task
from flatwise.study.results import CellResult, CellStatus
from flatwise.study.spec import StudySpec


def judged(results: Iterable[CellResult]) -> list[Comparison]:
    """The comparisons of the cells that have one."""
    return [result.comparison for result in results if result.comparison is not None]


# Sentences


def study_headline(results: Sequence[CellResult]) -> str:
    """The whole study in one sentence: which methods help or hurt, and in how many cells."""
    comparisons = judged(results)
    if not comparisons:
        return "Nothing is judged yet: no cell has a seed that all its arms have run."
    if len(results) == 1:
        return headline(comparisons[0])
    verdicts = {
        name: Counter(verdict_of(arm.vs_vanilla) for _, arm in found) for name, found in _by_method(comparisons).items()
    }
    if not verdicts:
        return "Only vanilla was run: there is nothing to compare."
    total = sum(verdicts.values(), Counter())
    where = f"of {plural(len(comparisons), 'cell')}"
    clauses = []
    for verdict in ("helps", "hurts"):
        found = [(name, counts[verdict]) for name, counts in verdicts.items() if counts[verdict]]
        first = [f"{name} {verdict} in {count} {where}" for name, count in found[:1]]
        clauses += [listing([*first, *(f"{name} in {count}" for name, count in found[1:])])] if found else []
    if count := total["inconclusive"]:
        rest = "the other" if count < total.total() else "all"
        clauses.append(f"{rest} {'comparison is' if count == 1 else f'{count} comparisons are'} inconclusive")
    if count := total["skewed"]:
        clauses.append(f"{plural(count, 'comparison')} {'is' if count == 1 else 'are'} too skewed")
    if count := total["does nothing"]:
        clauses.append(f"{plural(count, 'comparison')} showed that nothing is done")
    if count := sum(total[verdict] for verdict in UNTESTED):
        clauses.append(f"{plural(count, 'comparison')} could not be tested")
    start = "Against vanilla, " if total["helps"] else f"No method was shown to help in any {where}: "
    return f"{start}{'; '.join(clauses)}."


def method_lines(results: Sequence[CellResult]) -> list[tuple[str, str]]:
    """For every method its name and a line that says in which cells it does what."""
    comparisons = judged(results)
    if len(results) == 1:
        return [pair for comparison in comparisons for pair in named_lines(comparison)]
    return [(name, f" {_in_which_cells(found)}.") for name, found in _by_method(comparisons).items()]


def _in_which_cells(found: Sequence[tuple[Comparison, ArmSummary]]) -> str:
    parts = []
    for verdict, (verb, _) in VERBS.items():
        with_it = [(comparison, arm) for comparison, arm in found if verdict_of(arm.vs_vanilla) == verdict]
        if not with_it:
            continue
        everywhere = len(with_it) == len(found) > 1
        cells = f"all {len(found)} cells" if everywhere else listing(comparison.task for comparison, _ in with_it)
        parts.append(f"{verb} in {cells}")
        if verdict == "helps":
            own = [comparison.task for comparison, arm in with_it if gain_is_own(comparison, arm)]
            parts[-1] += whose_gain(own, len(with_it), ",", "only in")
    return "; ".join(parts)


def _by_method(comparisons: Sequence[Comparison]) -> dict[str, list[tuple[Comparison, ArmSummary]]]:
    found: dict[str, list[tuple[Comparison, ArmSummary]]] = {}
    for comparison in comparisons:
        for arm in methods(comparison):
            found.setdefault(arm.name, []).append((comparison, arm))
    return found


def what_is_known(result: CellResult) -> str:
    """What is known of a cell that has no comparison yet, in a sentence."""
    if not result.tuned:
        return "Its tuning is not finished."
    choices = [f"{tuned.arm} {configuration_words(tuned.choice)}" for tuned in result.tuned if tuned.space]
    if result.baseline is not None:
        choices.insert(0, f"the baseline {configuration_words(result.baseline.choice)}")
    chosen = f"Its tuning is done: {'; '.join(choices)}. " if choices else ""
    return f"{chosen}No seed of its final runs is complete."


def tuning_lines(study: StudySpec, results: Sequence[CellResult]) -> list[str]:
    """What every search chose, a line each, and a line for each cell that is not judged yet."""
    lines = []
    for result in results:
        lines += search_lines(study, result)
        if result.comparison is None:
            lines.append(f"{result.cell.name}: {what_is_known(result)}")
    return lines


def final_words(study: StudySpec) -> str:
    """What the runs are that are judged, in a sentence or two."""
    controls = (
        " So is a control for each method: its settings and mean rate, without noise (vanilla, where that is the same)."
        if study.final.controls
        else " There are no controls at the same mean rate."
    )
    chosen = " with its chosen settings" if is_tuned(study) else ""
    return (
        f"Every arm{chosen} is run on {seeds_words(study.final.seeds)}, paired, and judged on the test split after the "
        f"last epoch.{controls}"
    )


# Tables


def study_table(results: Sequence[CellResult], link: Callable[[str], str] | None = None) -> Table:
    """Every cell with vanilla and the methods: the controls are on the cell's page.

    Args:
        results: the cells.
        link: makes a link of a cell's name, for a page, which has a column for the comparison with the control.
            Default: for the terminal, where its verdict stands under the other.
    """
    is_page = link is not None
    rows: list[Row] = []
    for result in results:
        comparison, name = result.comparison, result.cell.name
        heading, beside = cell((link(name) if link else name, "strong")), [cell()] if is_page else []
        if comparison is None:
            rows.append(row(heading, "", "", "", cell(("not judged yet", "caution")), *beside, kind="group"))
            continue
        unit, seeds = difference_unit(comparison), plural(len(comparison.seeds), "seed")
        about = [metric_label(comparison), f"in {unit}" if unit else "", "", seeds]
        rows.append(row(heading, *(cell((text, "dim")) for text in about), *beside, kind="group"))
        cells = partial(_arm_cells, comparison, is_page=is_page)
        indent = "" if is_page else "  "
        rows += arm_rows(comparison, [comparison.arms[0], *methods(comparison)], cells, indent)
    columns = [Column("cell\n  arm", "name"), Column("final", label="final epoch")]
    columns += judged_columns("minus vanilla", "")
    if is_page:
        columns.append(Column("against\nits control", "text", label="against control"))
    return Table(
        columns,
        rows,
        title="Does it help?",
        note="Test set, final epoch, mean ± sd over seeds; differences paired by seed, with their 95 % interval. p: "
        "sign-flip and skewness-adjusted t test, corrected (Holm) over the methods of a cell. Dim: against the control "
        "at the same mean rate.",
    )


def _arm_cells(comparison: Comparison, arm: ArmSummary, *, is_page: bool) -> Iterable[Cell]:
    failed = f"{arm.failed} of {arm.n + arm.failed} failed" if arm.failed else ""
    difference, p, verdict = judged_cells(comparison, arm)
    from_control, _, of_control = judged_cells(comparison, arm, control=True)
    yield from (cell(final(comparison, arm), (failed, "alert")), difference, p)
    if is_page:
        numbers = from_control if arm.vs_control is not None else ()
        yield from (verdict, of_control + tuple(Line(line.text, "dim") for line in numbers))
    else:
        control = "" if arm.vs_control is None else f"control: {arm.vs_control.verdict}"
        yield verdict + cell((control, "dim"))


_STAGES = {"tuning": "inconclusive", "final runs": "", "done": "helps"}


def status_table(statuses: Sequence[CellStatus]) -> Table:
    """How far every cell is, for the terminal."""
    rows = []
    for status in statuses:
        failed = cell((str(status.failed), "alert") if status.failed else (NOTHING, "dim"))
        stage = cell((status.stage, _STAGES[status.stage]))
        rows.append(row(status.name, stage, f"{status.ended} of {status.planned}", failed))
    is_tuning = any(status.stage == "tuning" for status in statuses)
    note = "What a cell runs after this round of its tuning follows from the outcome, and is not counted."
    columns = (Column("cell", "name"), Column("stage", "verdict"), Column("trials"), Column("failed"))
    return Table(columns, rows, note=note if is_tuning else "")


def overview_content(study: StudySpec, results: Sequence[CellResult], link: Callable[[str], str]) -> dict[str, Any]:
    """What ``study.html.jinja`` asks for; ``link`` makes a link of a cell's name."""
    comparisons = judged(results)
    return {
        "study": study,
        "link": link,
        "headline": study_headline(results),
        "lines": method_lines(results),
        "cells": [result.cell for result in results],
        "summaries": {result.cell.name: get_task(result.cell.task).summary for result in results},
        "comparisons": comparisons,
        "waiting": {result.cell.name: what_is_known(result) for result in results if result.comparison is None},
        "edges": edges_by_cell(study, results),
        "value_words": value_words,
        "results": study_table(results, link),
        "forests": {name: figure for name, figure in forest_plots(comparisons).items() if figure.data},
        "tuning": tuning_words(study),
        "final": final_words(study),
    }

"""The cell page's section on tuning: what was searched, what came out, what was chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import plotly.graph_objects as go
from markupsafe import Markup

from flatwise.report.html_page import templates
from flatwise.report.rows import number_of
from flatwise.report.search_figures import search_figures
from flatwise.report.study_sentences import tuning_words, validation_label
from flatwise.report.tuning_rows import SearchRow, search_rows, value_words
from flatwise.study.registry import get_task
from flatwise.study.results import CellResult
from flatwise.study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class _Search:
    """One search as the template takes it.

    Attributes:
        row: its words.
        figures: name and id of every figure.
        table: a row per configuration: its settings, its value, whether it was chosen.
    """

    row: SearchRow
    figures: list[tuple[str, str | None]]
    table: list[tuple[list[str], str, bool]]


def tuning_section(study: StudySpec, result: CellResult, draw: Callable[[go.Figure], str | None]) -> Markup:
    """The section as HTML; empty where the study tunes nothing.

    Args:
        study: the study.
        result: the cell.
        draw: keeps a figure for the page and returns the id of the element that it is drawn in.
    """
    rows = search_rows(study, result)
    if not any(row.count for row in rows):
        return Markup("")
    task = get_task(result.cell.task)
    label = validation_label(task)
    searches = []
    for row in rows:
        drawn = search_figures(row.tuned, label, task.direction, is_grid=study.tuning.sampler == "grid")
        table = [
            ([value_words(value) for value in configuration.values()], number_of(found), index == row.tuned.chosen)
            for index, (configuration, found) in enumerate(zip(row.tuned.configurations, row.tuned.values, strict=True))
        ]
        searches.append(_Search(row, [(name, draw(figure)) for name, figure in drawn.items()], table))
    template = templates().get_template("tuning.html.jinja")
    text = template.render(words=tuning_words(study), label=label, better=task.direction, searches=searches)
    return Markup(text)  # rendered with escaping on

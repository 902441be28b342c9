"""A study as pages: an overview with the verdicts first, and a page for every cell; they share one program."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatwise.report.html_page import PLOTLY, Drawn, render, write_plotly, write_text
from flatwise.report.page import comparison_content
from flatwise.report.rows import Row, difference_unit, metric_label, rows
from flatwise.report.study_figures import forest_plots
from flatwise.report.study_sentences import (
    final_words,
    method_lines,
    seeds_words,
    study_headline,
    tuning_words,
    what_is_known,
)
from flatwise.report.style import arm_styles
from flatwise.report.tuning_rows import edges_by_cell, value_words
from flatwise.report.tuning_section import tuning_section
from flatwise.study.registry import Section, get_task
from flatwise.study.results import CellResult
from flatwise.study.spec import StudySpec

OVERVIEW = "report.html"
CELLS = "cells"


def write_study_report(
    study: StudySpec, results: Sequence[CellResult], folder: Path, sections: Sequence[Section] = ()
) -> Path:
    """Write the overview ``report.html``, a page per cell, ``cells/<name>.html``, and ``plotly.min.js`` for all.

    The folder is self-contained: its pages load nothing but that program, which draws their figures. A cell whose
    tuning is not finished has no page; the overview lists it. Existing pages are replaced.

    Args:
        study: the study.
        results: what is known of its cells; see :func:`flatwise.study.results.study_results`.
        folder: the folder to write to; it is made if it is not there.
        sections: what plugins add; default: nothing.

    Returns:
        The path of the overview.

    Raises:
        OSError: the folder cannot be made or written.
        UnknownTaskError: a cell's own task cannot be imported any more.
    """
    (folder / CELLS).mkdir(parents=True, exist_ok=True)
    write_plotly(folder)
    slugs = cell_slugs([result.cell.name for result in results])
    for result in results:
        page = render_cell(study, result, f"../{PLOTLY}")
        if page is not None:
            write_text(page, folder / CELLS / f"{slugs[result.cell.name]}.html")
    # Last: a reader never finds a link to a page that is not there.
    return write_text(render_overview(study, results, slugs, sections, PLOTLY), folder / OVERVIEW)


def cell_slugs(names: Sequence[str]) -> dict[str, str]:
    """A file name for every cell: lower-case letters, digits and hyphens, no two alike."""
    slugs: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "cell"
        slug, number = plain, 1
        while slug in slugs.values():
            number += 1
            slug = f"{plain}-{number}"
        slugs[name] = slug
    return slugs


def render_overview(
    study: StudySpec,
    results: Sequence[CellResult],
    slugs: dict[str, str],
    sections: Sequence[Section] = (),
    plotly_file: str | None = None,
) -> str:
    """The overview as text. For ``plotly_file`` see :func:`render`."""
    drawn = Drawn()
    judged = [result.comparison for result in results if result.comparison is not None]
    return render(
        "study.html.jinja",
        drawn,
        plotly_file=plotly_file,
        study=study,
        headline=study_headline(results),
        lines=method_lines(results),
        cells=[_Cell.of(study, result, slugs) for result in results],
        judged=len(judged),
        edges=edges_by_cell(study, results),
        sections=sections,
        slugs={result.cell.name: slugs[result.cell.name] for result in results if _has_page(result)},
        forests=[(name, drawn.add(figure)) for name, figure in forest_plots(judged).items() if figure.data],
        tuning=tuning_words(study),
        final=final_words(study),
        level=study.final.level,
    )


def render_cell(study: StudySpec, result: CellResult, plotly_file: str | None = None) -> str | None:
    """A cell's page as text; ``None`` where nothing is known of the cell. For ``plotly_file`` see :func:`render`."""
    if not _has_page(result):
        return None
    drawn = Drawn()
    content: dict[str, Any] = {"study": study, "overview": f"../{OVERVIEW}", "plotly_file": plotly_file}
    if result.comparison is None:
        section = tuning_section(study, result, drawn.add)
        return render("waiting.html.jinja", drawn, name=result.cell.name, tuning=section, **content)
    content |= comparison_content(result.comparison, drawn)
    return render("cell.html.jinja", drawn, tuning=tuning_section(study, result, drawn.add), **content)


def _has_page(result: CellResult) -> bool:
    return result.comparison is not None or any(tuned.space for tuned in result.tuned)


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell as the overview shows it.

    Attributes:
        name: its name.
        slug: its page's file name; ``None`` where it has no page.
        task, summary: its task, and what that trains on what.
        settings: what the study and the cell change about the task's settings.
        metric, unit: what is judged, with its unit; the unit of a difference. Empty before anything is judged.
        seeds: the seeds that are judged, in words; empty before.
        complete: whether those are all.
        rows: vanilla and the methods; a control is on the cell's page.
        colors: colour and dash of each of them.
        known: what is known of a cell that is not judged.
    """

    name: str
    slug: str | None
    task: str
    summary: str
    settings: dict[str, str]
    metric: str
    unit: str
    seeds: str
    complete: bool
    rows: list[Row]
    colors: list[tuple[str, str]]
    known: str

    @classmethod
    def of(cls, study: StudySpec, result: CellResult, slugs: dict[str, str]) -> _Cell:
        cell, comparison = result.cell, result.comparison
        shown = [] if comparison is None else [row for row in rows(comparison) if row.kind != "control"]
        styles = {} if comparison is None else arm_styles(comparison)
        return cls(
            name=cell.name,
            slug=slugs[cell.name] if _has_page(result) else None,
            task=cell.task,
            summary=get_task(cell.task).summary,
            settings={name: value_words(value) for name, value in {**study.settings, **cell.settings}.items()},
            metric="" if comparison is None else metric_label(comparison),
            unit="" if comparison is None else difference_unit(comparison),
            seeds="" if comparison is None else seeds_words(comparison.seeds),
            complete=comparison is not None and len(comparison.seeds) == len(study.final.seeds),
            rows=shown,
            colors=[(styles[row.name].color, styles[row.name].dash) for row in shown],
            known="" if comparison is not None else what_is_known(result),
        )

"""The pages: a comparison as one HTML file that needs nothing else, and a study as an overview and a page per cell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from flatwise.report import figures
from flatwise.report.comparison import (
    arm_styles,
    comparison_table,
    control_table,
    has_controls,
    headline,
    metric_label,
    named_lines,
    warnings,
)
from flatwise.report.flatness import flatness_content
from flatwise.report.plot import to_json
from flatwise.report.study import overview_content
from flatwise.report.tuning import tuning_content
from flatwise.study.comparison import Comparison
from flatwise.study.export import written_whole
from flatwise.study.registry import Section
from flatwise.study.results import CellResult
from flatwise.study.spec import StudySpec
from flatwise.study.store import Record

OVERVIEW = "report.html"
CELLS = "cells"
PLOTLY = "plotly.min.js"  # the figures' program, where several pages share it: 4.6 MB, once instead of in every page


@cache
def templates(package: str = "flatwise.report") -> Environment:
    """The templates of a package, which may use those here; whatever is put into one is escaped."""
    packages = dict.fromkeys((package, "flatwise.report"))
    return Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(template: str, plotly_file: str | None, **content: Any) -> str:
    """A whole page as text.

    Args:
        template: its file. It places a figure by calling ``plot``.
        plotly_file: where the page finds the program that draws the figures; ``None``: it is in the page.
        **content: what the template asks for.
    """
    drawn: dict[str, str] = {}  # figures as JSON, by the id of the element that each is drawn in

    def plot(figure: go.Figure) -> Markup:
        """The element that a figure is drawn in; none for a figure that shows nothing."""
        if not figure.data:
            return Markup("")
        drawn[f"figure-{len(drawn) + 1}"] = to_json(figure)
        height = int(figure.layout.height)
        return Markup('<div class="plot" id="figure-{}" style="min-height: {}px"></div>').format(len(drawn), height)

    def script() -> Markup:
        """The figures and the program that draws them. Neither may be escaped: :func:`to_json` has seen to it."""
        return Markup("{" + ",\n".join(f'"{identity}": {text}' for identity, text in drawn.items()) + "}")

    content |= {
        "drawn": drawn,
        "plot": plot,
        "figures": script,
        "plotly_file": plotly_file,
        "plotlyjs": lambda: Markup(get_plotlyjs()),
    }
    return templates().get_template(template).render(content)


def _write(text: str, path: Path) -> Path:
    """Write a page beside ``path`` and move it there, so that a reader never sees half of it; return ``path``.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


# A comparison


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write ``comparison`` as one self-contained HTML page.

    The same comparison gives the same bytes. The page is written beside ``path`` and then moved there, so that a reader
    never sees half of it; an existing file is replaced.

    Args:
        comparison: the comparison to show.
        path: the file to write; its folder must exist.

    Returns:
        ``path``.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    return _write(render_page(comparison), path)


def render_page(comparison: Comparison) -> str:
    """The page of ``comparison`` as text."""
    return _render("comparison.html.jinja", None, study=None, **_comparison_content(comparison))


def _comparison_content(comparison: Comparison) -> dict[str, Any]:
    """What ``comparison.html.jinja`` asks for."""
    on_record = {(record.arm, record.seed) for record in comparison.records}
    wanted = {(arm.name, seed) for arm in comparison.arms for seed in comparison.seeds}
    return {
        "comparison": comparison,
        "headline": headline(comparison),
        "warnings": warnings(comparison),
        "lines": named_lines(comparison),
        "tables": [comparison_table(comparison), *([control_table(comparison)] if has_controls(comparison) else [])],
        "metric": metric_label(comparison),
        "legend": arm_styles(comparison),
        "differences": {
            "Minus vanilla": figures.differences_from_vanilla(comparison),
            "Minus its control at the same mean rate": figures.differences_from_controls(comparison),
        },
        "curves": {metric: figures.learning_curves(comparison, metric) for metric in figures.metrics(comparison)},
        "rates": figures.effective_rates(comparison),
        "failed": [record for record in comparison.records if record.status == "failed"],
        "last_lines": _last_lines,
        "missing": len(wanted - on_record),
        "versions": _versions(comparison.records),
        "flatness": flatness_content(comparison),
    }


def _versions(records: Sequence[Record]) -> dict[str, str]:
    """Each package with every version that a trial ran under."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for package, version in (record.versions or {}).items():
            found.setdefault(package, {})[str(version)] = None
    return {package: ", ".join(versions) for package, versions in found.items()}


def _last_lines(record: Record, most: int = 12) -> str:
    """The last lines of a failed trial's traceback; empty where there is none."""
    return "\n".join((record.traceback or "").rstrip().splitlines()[-most:])


# A study


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
    _write(get_plotlyjs(), folder / PLOTLY)
    slugs = cell_slugs([result.cell.name for result in results])
    for result in results:
        page = render_cell(study, result, f"../{PLOTLY}")
        if page is not None:
            _write(page, folder / CELLS / f"{slugs[result.cell.name]}.html")
    # Last: a reader never finds a link to a page that is not there.
    return _write(render_overview(study, results, slugs, sections, PLOTLY), folder / OVERVIEW)


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
    """The overview as text; without ``plotly_file`` the program that draws its figures is in it."""
    linked = {result.cell.name for result in results if _has_page(result)}

    def link(name: str) -> Markup:
        """A cell's name, with a link to its page if it has one."""
        return Markup('<a href="cells/{}.html">{}</a>').format(slugs[name], name) if name in linked else escape(name)

    content = overview_content(study, results, link)
    return _render("study.html.jinja", plotly_file, sections=sections, **content)


def render_cell(study: StudySpec, result: CellResult, plotly_file: str | None = None) -> str | None:
    """A cell's page as text; ``None`` where nothing is known of the cell. See :func:`render_overview`."""
    if not _has_page(result):
        return None
    content: dict[str, Any] = {"study": study, "overview": f"../{OVERVIEW}", "tuning": tuning_content(study, result)}
    if result.comparison is None:
        return _render("waiting.html.jinja", plotly_file, name=result.cell.name, **content)
    return _render("comparison.html.jinja", plotly_file, **content, **_comparison_content(result.comparison))


def _has_page(result: CellResult) -> bool:
    return result.comparison is not None or any(tuned.space for tuned in result.tuned)

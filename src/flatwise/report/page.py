"""The comparison as one HTML file that needs nothing else: no network, no second file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatwise.report import figures
from flatwise.report.flatness_section import flatness_section
from flatwise.report.html_page import Drawn, render, write_text
from flatwise.report.rows import difference_unit, metric_label, rows
from flatwise.report.sentences import headline, summary_lines, warnings
from flatwise.report.style import arm_styles
from flatwise.study.comparison import Comparison
from flatwise.study.store import Record


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
    return write_text(render_page(comparison), path)


def render_page(comparison: Comparison) -> str:
    """The page of ``comparison`` as text."""
    drawn = Drawn()
    return render("page.html.jinja", drawn, **comparison_content(comparison, drawn))


def comparison_content(comparison: Comparison, drawn: Drawn) -> dict[str, Any]:
    """What ``page.html.jinja`` and its children ask for.

    Args:
        comparison: the comparison to show.
        drawn: where its figures are added.
    """
    styles = arm_styles(comparison)
    metrics = figures.metrics(comparison)
    methods = [arm for arm in comparison.arms[1:] if not arm.is_control]
    lines = summary_lines(comparison)
    return {
        "comparison": comparison,
        "vanilla": comparison.arms[0].name,
        "headline": headline(comparison),
        "warnings": warnings(comparison),
        # Every line begins with its arm's name, which the page sets in bold.
        "lines": [(arm.name, line.removeprefix(arm.name)) for arm, line in zip(methods, lines, strict=True)],
        "rows": rows(comparison),
        "metric": metric_label(comparison),
        "difference_unit": difference_unit(comparison),
        "legend": [(arm.name, styles[arm.name].color, styles[arm.name].dash) for arm in comparison.arms],
        "vanilla_figure": drawn.add(figures.differences_from_vanilla(comparison)),
        "control_figure": drawn.add(figures.differences_from_controls(comparison)),
        "curves": [(metric, drawn.add(figures.learning_curves(comparison, metric))) for metric in metrics],
        "rates": [(name, drawn.add(figure)) for name, figure in figures.effective_rates(comparison).items()],
        "trials": _Trials.of(comparison),
        "flatness": flatness_section(comparison, drawn.add),
    }


@dataclass(frozen=True, slots=True)
class _Trials:
    """What ran.

    Attributes:
        finished: number of finished trials.
        failed: the records of the failed ones, each with the last lines of its traceback (empty where there is none).
        missing: number of trials that the comparison has no record of: it was interrupted.
        versions: each package with every version that a trial ran under.
    """

    finished: int
    failed: list[tuple[Record, str]]
    missing: int
    versions: Mapping[str, str]

    @classmethod
    def of(cls, comparison: Comparison) -> _Trials:
        on_record = {(record.arm, record.seed) for record in comparison.records}
        wanted = {(arm.name, seed) for arm in comparison.arms for seed in comparison.seeds}
        versions: dict[str, dict[Any, None]] = {}
        for record in comparison.records:
            for package, version in (record.versions or {}).items():
                versions.setdefault(package, {})[version] = None
        return cls(
            finished=sum(record.status == "finished" for record in comparison.records),
            failed=[(record, _last_lines(record)) for record in comparison.records if record.status == "failed"],
            missing=len(wanted - on_record),
            versions={package: ", ".join(map(str, found)) for package, found in versions.items()},
        )


def _last_lines(record: Record, most: int = 12) -> str:
    return "\n".join((record.traceback or "").rstrip().splitlines()[-most:])

"""The comparison as one HTML file that needs nothing else: no network, no second file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from flatter.report import figures
from flatter.report.flatness_section import flatness_section
from flatter.report.rows import difference_unit, metric_label, rows
from flatter.report.sentences import headline, summary_lines
from flatter.report.style import arm_styles
from flatter.study.comparison import Comparison
from flatter.study.records import Record


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
    text = render_page(comparison)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path


def render_page(comparison: Comparison) -> str:
    """The page of ``comparison`` as text."""
    drawn = _Drawn({})
    template = files("flatter.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    styles = arm_styles(comparison)
    metrics = figures.metrics(comparison)
    methods = [arm for arm in comparison.arms[1:] if not arm.is_control]
    lines = summary_lines(comparison)
    return environment.from_string(template).render(
        comparison=comparison,
        vanilla=comparison.arms[0].name,
        headline=headline(comparison),
        # Every line begins with its arm's name, which the page sets in bold.
        lines=[(arm.name, line.removeprefix(arm.name)) for arm, line in zip(methods, lines, strict=True)],
        rows=rows(comparison),
        metric=metric_label(comparison),
        difference_unit=difference_unit(comparison),
        legend=[(arm.name, styles[arm.name].color, styles[arm.name].dash) for arm in comparison.arms],
        vanilla_figure=drawn.add(figures.differences_from_vanilla(comparison)),
        control_figure=drawn.add(figures.differences_from_controls(comparison)),
        curves=[(metric, drawn.add(figures.learning_curves(comparison, metric))) for metric in metrics],
        rates=[(name, drawn.add(figure)) for name, figure in figures.effective_rates(comparison).items()],
        trials=_Trials.of(comparison),
        flatness=flatness_section(comparison, environment, drawn.add),
        # The page's own data and plotly's program: neither may be escaped, `to_json` has seen to the first.
        figures=Markup(drawn.json()),
        plotlyjs=Markup(get_plotlyjs()),
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """The figures of the page, as JSON, by the id of the element that each is drawn in."""

    by_id: dict[str, str]

    def add(self, figure: go.Figure) -> str | None:
        """Keep ``figure`` and return its id; ``None`` for a figure that shows nothing."""
        if not figure.data:
            return None
        identity = f"figure-{len(self.by_id) + 1}"
        self.by_id[identity] = figures.to_json(figure)
        return identity

    def json(self) -> str:
        return "{" + ",\n".join(f'"{identity}": {text}' for identity, text in self.by_id.items()) + "}"


@dataclass(frozen=True, slots=True)
class _Trials:
    """What ran.

    Attributes:
        finished: number of finished trials.
        failed: the records of the failed ones.
        missing: number of trials that the comparison has no record of: it was interrupted.
        versions: each package with every version that a trial ran under.
    """

    finished: int
    failed: list[Record]
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
            failed=[record for record in comparison.records if record.status == "failed"],
            missing=len(wanted - on_record),
            versions={package: ", ".join(map(str, found)) for package, found in versions.items()},
        )

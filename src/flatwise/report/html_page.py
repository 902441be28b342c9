"""What every page is made with: the templates, the figures that it draws, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from flatwise.report.figures import to_json
from flatwise.study.export import written_whole


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


@dataclass(frozen=True, slots=True)
class Drawn:
    """The figures of one page, as JSON, by the id of the element that each is drawn in."""

    by_id: dict[str, str] = field(default_factory=dict)

    def add(self, figure: go.Figure) -> str | None:
        """Keep ``figure`` and return its id; ``None`` for a figure that shows nothing."""
        if not figure.data:
            return None
        identity = f"figure-{len(self.by_id) + 1}"
        self.by_id[identity] = to_json(figure)
        return identity

    def json(self) -> str:
        """All of them, as JSON that may stand inside an HTML script."""
        return "{" + ",\n".join(f'"{identity}": {text}' for identity, text in self.by_id.items()) + "}"


PLOTLY = "plotly.min.js"  # the figures' program, where several pages share it


def write_plotly(folder: Path) -> Path:
    """Write the program that draws the figures, for pages that share it: 4.6 MB, once instead of in every page.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    return write_text(get_plotlyjs(), folder / PLOTLY)


def render(template: str, drawn: Drawn, *, plotly_file: str | None = None, **content: Any) -> str:
    """A whole page as text.

    Args:
        template: its file.
        drawn: its figures.
        plotly_file: where the page finds the program that :func:`write_plotly` wrote; default: it is in the page.
        **content: what the template asks for.
    """
    shared = plotly_file if drawn.by_id else None
    return (
        templates()
        .get_template(template)
        .render(
            **content,
            # The page's own data and plotly's program: neither may be escaped, `to_json` has seen to the first.
            figures=Markup(drawn.json()),
            plotly_file=shared,
            plotlyjs=Markup(get_plotlyjs()) if drawn.by_id and shared is None else None,
        )
    )


def write_text(text: str, path: Path) -> Path:
    """Write a page beside ``path`` and move it there, so that a reader never sees half of it; return ``path``.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path

"""How the figures look: a colour for each arm, and axes that stand on a light and on a dark page alike."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from flatwise.study.comparison import Comparison

Array = npt.NDArray[np.float64]

NEUTRAL = "#7d8590"
# Okabe and Ito's colours, told apart by colour-blind readers, without their black and yellow (each is lost on a light
# or a dark page), their blue lighter for the dark page's sake, and with two of Paul Tol's.
PALETTE = ("#1F83C4", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999933", "#AA4499")
_GRID = "rgba(125, 133, 144, 0.22)"


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How an arm is drawn: a colour, and a plotly dash pattern."""

    color: str
    dash: str


def arm_styles(comparison: Comparison) -> dict[str, ArmStyle]:
    """A style for each arm's name: vanilla grey, a colour per method, its control dashed in the same colour.

    Methods beyond the palette's eight start again, in dash-dotted lines.
    """
    styles = {comparison.arms[0].name: ArmStyle(NEUTRAL, "solid")}
    methods = [arm for arm in comparison.arms[1:] if not arm.is_control]
    for index, method in enumerate(methods):
        color = PALETTE[index % len(PALETTE)]
        styles[method.name] = ArmStyle(color, "solid" if index < len(PALETTE) else "dashdot")
        if method.control is not None:
            styles.setdefault(method.control, ArmStyle(color, "dash"))
    for arm in comparison.arms:  # a control whose method is not in the comparison
        styles.setdefault(arm.name, ArmStyle(NEUTRAL, "dash"))
    return styles


def lay_out(figure: go.Figure, height: int, x: str, y: str, values: Sequence[Array]) -> None:
    """Give ``figure`` its height in pixels, its axes with their titles, and no background of its own.

    Args:
        figure: the figure, with its traces.
        height: height in pixels; the width follows the page.
        x, y: the axes' titles.
        values: what the y axis must show; empty to leave its range alone.
    """
    axis: dict[str, Any] = {"gridcolor": _GRID, "linecolor": _GRID, "zeroline": False, "automargin": True}
    # Never "100μ": a learning rate of 0.0001 is written 0.0001.
    axis |= {"exponentformat": "power", "minexponent": 6}
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 12, "r": 12, "t": 12, "b": 44},
        paper_bgcolor="rgba(0, 0, 0, 0)",
        plot_bgcolor="rgba(0, 0, 0, 0)",
        font={"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top"},
        hovermode="closest",
    )
    title = {"standoff": 8, "font": {"size": 13}}
    figure.update_xaxes(**axis, title={"text": x, **title})
    figure.update_yaxes(**axis, title={"text": y, **title}, **(value_axis(values) if values else {}))


def value_axis(values: Sequence[Array]) -> dict[str, Any]:
    """An axis that shows ``values``: logarithmic where they are positive and span more than a factor of 5.

    Failed seeds are not among ``values``: a loss that explodes must not squash the curves of the others.
    """
    finite = np.concatenate([array[np.isfinite(array)] for array in values]) if values else np.array([])
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    logarithmic = low > 0 and high > 5 * low
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - margin, high + margin
    if logarithmic:
        return {"type": "log", "range": [low, high], "tickmode": "array", "tickvals": _log_ticks(low, high)}
    return {"type": "linear", "range": [low, high], "tickmode": "auto", "tickvals": None}


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 in every decade up to two decades, else the powers of ten: plotly's own choice mixes two sizes."""
    digits = (1, 2, 5) if high - low < 2 else (1,)
    return [digit * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for digit in digits]


def translucent(color: str, opacity: float) -> str:
    """``color``, such as ``"#1F83C4"``, with an opacity between 0 and 1."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def escape(text: str) -> str:
    """``text`` for plotly, which reads tags and a few entities in what it draws, but no entity for a quote."""
    return html.escape(text, quote=False)

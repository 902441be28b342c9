"""What the figures have in common: axes that stand on a light and on a dark page alike, dots, means, intervals."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from flatwise.report.comparison import NEUTRAL, difference_unit
from flatwise.report.table import ArmStyle, labelled
from flatwise.stats import Judgement
from flatwise.study.comparison import Comparison

Array = npt.NDArray[np.float64]

_GRID = "rgba(125, 133, 144, 0.22)"


def floats(values: Any) -> Array:
    """``values`` as an array of floats."""
    return np.array(values, dtype=np.float64)


def escape(text: str) -> str:
    """``text`` for plotly, which reads tags and a few entities in what it draws, but no entity for a quote."""
    return html.escape(text, quote=False)


def translucent(color: str, opacity: float) -> str:
    """``color``, such as ``"#1F83C4"``, with an opacity between 0 and 1."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def to_json(figure: go.Figure) -> str:
    """The figure as JSON that may stand inside an HTML script: no character of it can end the script."""
    text = cast(str, figure.to_json())
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# Axes


def lay_out(figure: go.Figure, height: int, x: str = "", y: str = "", values: Sequence[Array] = ()) -> None:
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
    figure.update_xaxes(**axis, title={"text": escape(x), **title})
    figure.update_yaxes(**axis, title={"text": escape(y), **title}, **(value_axis(values) if values else {}))


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


# Seeds, means and intervals


def add_seeds(
    figure: go.Figure, x: Any, y: Any, name: str, style: ArmStyle, seeds: Any, hover: str, col: int | None = None
) -> None:
    """Draw a dot per seed; a control's are hollow.

    Args:
        figure: the figure.
        x, y: where.
        name, style: the arm, its name escaped.
        seeds: each dot's seed, for the text under the mouse.
        hover: what that says below the arm and the seed.
        col: column, from 1, of a figure that has several.
    """
    filled = "rgba(0, 0, 0, 0)" if style.dash == "dash" else translucent(style.color, 0.45)
    figure.add_scatter(
        x=floats(x),
        y=floats(y),
        name=name,
        meta="seeds",
        customdata=seeds,
        mode="markers",
        marker={"color": filled, "size": 7.5, "line": {"color": style.color, "width": 1.2}},
        hovertemplate=f"<b>{name}</b>, %{{customdata}}<br>{hover}<extra></extra>",
        row=None if col is None else 1,
        col=col,
    )


def add_mean(
    figure: go.Figure,
    x: float,
    y: float,
    name: str,
    color: str,
    hover: str,
    filled: bool = True,
    col: int | None = None,
) -> None:
    """Draw a mean as a diamond; nothing where it is not finite. For the arguments see :func:`add_seeds`."""
    if not (math.isfinite(x) and math.isfinite(y)):
        return
    figure.add_scatter(
        x=[x],
        y=[y],
        name=f"{name}: mean",
        meta="mean",
        mode="markers",
        marker={
            "symbol": "diamond" if filled else "diamond-open",
            "size": 11,
            "color": color,
            "line": {"color": "white" if filled else color, "width": 1.4},
        },
        hovertemplate=f"<b>{name}</b><br>{hover}<extra></extra>",
        row=None if col is None else 1,
        col=col,
    )


def add_difference(
    figure: go.Figure, judgement: Judgement, height: float, name: str, color: str, unit: str, *, filled: bool = True
) -> list[float]:
    """Draw the mean difference and its interval; return what the axis must reach."""
    bounds = [bound for bound in (judgement.low, judgement.high) if math.isfinite(bound)]
    hover = f"mean %{{x:+.5~g}} {escape(unit)}"
    if len(bounds) == 2:
        figure.add_scatter(
            x=bounds,
            y=[height, height],
            name=f"{name}: 95 % interval",
            meta="interval",
            mode="lines",
            line={"color": color, "width": 4},
            hoverinfo="skip",
        )
        hover += f"<br>95 % interval {bounds[0]:+.4g} to {bounds[1]:+.4g}".replace("-", "−")
    hover += f"<br>{judgement.verdict}"
    add_mean(figure, judgement.mean, height, name, color, hover, filled=filled)
    return [value for value in (judgement.mean, *bounds) if math.isfinite(value)]


def write(figure: go.Figure, text: str, height: float, size: int = 12) -> None:
    """Write at the left edge. Names stand above what they name, not beside it: a phone has no width for them."""
    _annotate(figure, text, x=0, xref="paper", y=height, xanchor="left", yanchor="middle", font={"size": size})


def _annotate(figure: go.Figure, text: str, **place: Any) -> None:
    figure.add_annotation(text=text, showarrow=False, **place)


def lay_out_differences(
    figure: go.Figure, comparison: Comparison, zero: str, reach: Sequence[float], rows: tuple[float, float], height: int
) -> None:
    """Lay out a figure of differences: a line at 0, and above it which side is better.

    Args:
        figure: the figure, with its traces.
        comparison: whose metric it is about.
        zero: what stands at 0.
        reach: what the x axis must show besides 0.
        rows: the ends of the y axis.
        height: height in pixels.
    """
    lay_out(figure, height=height, x=labelled(f"difference in {comparison.metric}", difference_unit(comparison)))
    low, high = min([0.0, *reach]), max([0.0, *reach])
    margin = 0.08 * (high - low) or 1.0
    low, high = low - margin, high + margin
    figure.add_vline(x=0, layer="below", line={"color": NEUTRAL, "width": 1.5})
    figure.update_xaxes(range=[low, high])
    figure.update_yaxes(range=list(rows), showticklabels=False, fixedrange=True)
    # Close to one end of the axis the text at zero would run into that end's: it then stands above it.
    crowded = not low + 0.3 * (high - low) < 0 < high - 0.3 * (high - low)
    left, right = ("← better", "worse →") if comparison.better == "lower" else ("← worse", "better →")
    above = {"y": 1, "yref": "paper", "yanchor": "bottom"}
    _annotate(figure, left, x=0, xref="paper", xanchor="left", yshift=6, **above)
    _annotate(figure, right, x=1, xref="paper", xanchor="right", yshift=6, **above)
    _annotate(figure, zero, x=0, xref="x", xanchor="center", yshift=24 if crowded else 6, **above)
    figure.update_layout(showlegend=False, margin={"l": 8, "r": 8, "t": 52 if crowded else 34, "b": 44})

"""Plotly figures of a search: every configuration that was tried, with its validation value, the chosen one marked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from flatwise.report.rows import number_of
from flatwise.report.style import Array, escape, lay_out, value_axis
from flatwise.report.tuning_rows import configuration_words, value_words
from flatwise.stats import Better
from flatwise.study.plan import TuningResult
from flatwise.study.spec import Value

TRIED, CHOSEN = "#1F83C4", "#D55E00"
# From pale to strong: the better, the stronger. Dark text reads on the pale end, light text on the strong one.
_SCALE = ((0.0, "#0b5a8f"), (0.5, "#7fb6da"), (1.0, "#e6eef4"))
_MOST_TICKS = 9


def search_figures(tuned: TuningResult, label: str, better: Better, *, is_grid: bool) -> dict[str, go.Figure]:
    """Figures of one search by what they show.

    Args:
        tuned: the search.
        label: the validation metric with its unit.
        better: whether lower or higher values are better.
        is_grid: whether all of a grid was tried, as opposed to configurations that a sampler drew.

    Returns:
        A heatmap for a grid over two settings; else the value over each setting, one figure per setting. Empty where
        nothing was searched.
    """
    if is_grid and len(tuned.space) == 2:
        return {" × ".join(tuned.space): _heatmap(tuned, label, better)}
    joined = is_grid and len(tuned.space) == 1
    return {key: _over(tuned, key, label, better, joined=joined) for key in tuned.space}


def _over(tuned: TuningResult, key: str, label: str, better: Better, *, joined: bool) -> go.Figure:
    """The validation value over one setting; a line joins the points of a grid."""
    figure = go.Figure()
    values = np.array(tuned.values, dtype=np.float64)
    places = [configuration[key] for configuration in tuned.configurations]
    is_number = all(isinstance(place, (int, float)) and not isinstance(place, bool) for place in places)
    x: list[float] | list[str] = (
        [float(place) for place in places] if is_number else [escape(value_words(place)) for place in places]
    )
    finite = [i for i in range(len(places)) if math.isfinite(values[i])]
    order = sorted(finite, key=lambda i: x[i]) if is_number else finite
    _add_points(figure, tuned, x, values, order, "tried", mode="lines+markers" if joined else "markers")
    failed = [i for i in range(len(places)) if i not in finite]
    if failed:
        worst = (np.nanmax if better == "lower" else np.nanmin)(values) if finite else 0.0
        _add_failed(figure, tuned, x, failed, float(worst))
    if tuned.chosen in finite:
        _add_points(figure, tuned, x, values, [tuned.chosen], "chosen", mode="markers")
    lay_out(figure, height=260, x=escape(key), y=escape(label), values=[values[finite]] if finite else [])
    if is_number:
        _lay_out_numbers(figure, np.array(x, dtype=np.float64))
    else:
        figure.update_xaxes(type="category")
    figure.update_layout(margin={"t": 20})
    return figure


def _add_points(
    figure: go.Figure,
    tuned: TuningResult,
    x: Sequence[float] | Sequence[str],
    values: Array,
    shown: Sequence[int],
    name: str,
    mode: str,
) -> None:
    chosen = name == "chosen"
    figure.add_scatter(
        x=[x[i] for i in shown],
        y=values[list(shown)],
        name=name,
        mode=mode,
        line={"color": TRIED, "width": 1.5},
        marker={
            "symbol": "circle-open" if chosen else "circle",
            "size": 17 if chosen else 8,
            "color": CHOSEN if chosen else TRIED,
            "line": {"width": 3 if chosen else 0},
        },
        customdata=[_told(tuned, i) for i in shown],
        hovertemplate=f"%{{customdata}}<br>%{{y:.5~g}}{', chosen' if chosen else ''}<extra></extra>",
    )


def _add_failed(
    figure: go.Figure, tuned: TuningResult, x: Sequence[float] | Sequence[str], failed: Sequence[int], height: float
) -> None:
    """A configuration without a value is drawn as a cross at the worst one's height, and says that it failed."""
    figure.add_scatter(
        x=[x[i] for i in failed],
        y=[height] * len(failed),
        name="failed",
        mode="markers+text",
        text=["failed"] * len(failed),
        textposition="bottom center",
        textfont={"size": 11},
        marker={"symbol": "x", "size": 9, "color": "#AA4499"},
        cliponaxis=False,
        customdata=[_told(tuned, i) for i in failed],
        hovertemplate="%{customdata}<br>failed on a seed<extra></extra>",
    )


def _told(tuned: TuningResult, index: int) -> str:
    return f"<b>{escape(configuration_words(tuned.configurations[index]))}</b>"


def _lay_out_numbers(figure: go.Figure, x: Array) -> None:
    axis = value_axis([x])
    distinct = sorted(set(x.tolist()))
    if len(distinct) <= _MOST_TICKS:
        axis |= {"tickmode": "array", "tickvals": distinct, "ticktext": [value_words(value) for value in distinct]}
    figure.update_xaxes(**axis)


def _heatmap(tuned: TuningResult, label: str, better: Better) -> go.Figure:
    """A cell per configuration, coloured by its rank: one value that explodes would leave the others one colour."""
    across, down = tuned.space
    columns, rows = _distinct(tuned, across), _distinct(tuned, down)
    at = {(configuration[down], configuration[across]): i for i, configuration in enumerate(tuned.configurations)}
    index = np.array([[at[row, column] for column in columns] for row in rows])
    values = np.array(tuned.values, dtype=np.float64)
    ranks = np.full(len(values), np.nan)
    finite = np.flatnonzero(np.isfinite(values))
    sign = 1.0 if better == "lower" else -1.0
    ranks[finite[np.argsort(sign * values[finite], kind="stable")]] = np.linspace(0, 1, len(finite))
    # A failed one has no colour; its text stands on the page itself.
    shown = [[_cell_text(tuned, i) if np.isfinite(values[i]) else "" for i in row] for row in index]
    figure = go.Figure(
        go.Heatmap(
            z=ranks[index],
            zmin=0,
            zmax=1,
            colorscale=_SCALE,
            showscale=False,
            text=shown,
            texttemplate="%{text}",
            textfont={"size": 12 if len(columns) <= 6 else 10},
            customdata=[[f"{_told(tuned, i)}<br>{escape(label)} {number_of(values[i])}" for i in row] for row in index],
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            name="tried",
        )
    )
    lay_out(figure, height=96 + 40 * len(rows), x=escape(across), y=escape(down), values=[])
    for axis, names in ((figure.layout.xaxis, columns), (figure.layout.yaxis, rows)):
        axis.update(
            range=[-0.5, len(names) - 0.5],
            tickmode="array",
            tickvals=list(range(len(names))),
            ticktext=[escape(value_words(name)) for name in names],
            showgrid=False,
        )
    for y, x in np.argwhere(~np.isfinite(ranks[index])):
        figure.add_annotation(x=int(x), y=int(y), text="failed", showarrow=False, font={"size": 11})
    if np.isfinite(values[tuned.chosen]):
        ((y, x),) = np.argwhere(index == tuned.chosen)
        edge = {"color": CHOSEN, "width": 3}
        figure.add_shape(type="rect", x0=x - 0.47, x1=x + 0.47, y0=y - 0.45, y1=y + 0.45, line=edge, name="chosen")
    return figure


def _distinct(tuned: TuningResult, key: str) -> list[Value]:
    """The values of one setting: numbers from low to high, others in the order of the grid."""
    found = list(dict.fromkeys(configuration[key] for configuration in tuned.configurations))
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in found):
        return sorted(found, key=float)
    return found


def _cell_text(tuned: TuningResult, index: int) -> str:
    text = number_of(tuned.values[index])
    return f"<b>{text}</b>" if index == tuned.chosen else text

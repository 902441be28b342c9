"""The forest plot of a study: every arm's difference to vanilla, in every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from flatter.report.figures import label_sides
from flatter.report.rows import difference_unit, with_unit
from flatter.report.style import NEUTRAL, arm_styles, escape, lay_out
from flatter.study.comparison import ArmSummary, Comparison

_ROW = 26  # pixels
_LONGEST = 20  # letters of a name beside its interval: more would leave a phone no room for the interval


def forest_plots(comparisons: Sequence[Comparison]) -> dict[str, go.Figure]:
    """One figure for every metric that cells are judged by: differences of one metric stand on one axis."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for comparison in comparisons:
        groups.setdefault((comparison.metric, comparison.unit, comparison.better), []).append(comparison)
    return {metric_of(found[0]): _forest(found) for found in groups.values()}


def metric_of(comparison: Comparison) -> str:
    """What a figure of differences is about: the metric, its unit and its better side."""
    unit = difference_unit(comparison)
    return f"{with_unit(comparison.metric, f'({unit})' if unit else '')}, {comparison.better} is better"


def _forest(comparisons: Sequence[Comparison]) -> go.Figure:
    """A row per cell with its name, and below it one per method: mean difference and 95 % interval."""
    figure = go.Figure()
    names: list[tuple[float, str]] = []
    reach = [0.0]
    row = 0.0
    for comparison in comparisons:
        methods = [arm for arm in comparison.arms[1:] if not arm.is_control and arm.vs_vanilla is not None]
        if not methods:
            continue
        if len(comparisons) > 1:
            figure.add_annotation(
                {"x": 0, "xref": "paper", "y": row, "text": f"<b>{shortened(comparison.task, 30)}</b>"},
                xanchor="left",
                yanchor="middle",
                showarrow=False,
                font={"size": 12},
            )
            row -= 1
        for arm in methods:
            names.append((row, shortened(arm.name, _LONGEST)))
            reach += _add_row(figure, comparison, arm, row)
            row -= 1
        row -= 0.35
    if not figure.data and not names:
        return figure
    low, high = min(reach), max(reach)
    margin = 0.08 * (high - low) or 1.0
    bottom, top = row + 0.35 + 0.4, 0.6
    zero = {"color": NEUTRAL, "width": 1.5}
    figure.add_shape(type="line", x0=0, x1=0, y0=bottom, y1=top, layer="below", line=zero)
    label_sides(figure, comparisons[0].better, "vanilla")
    unit = difference_unit(comparisons[0])
    title = escape(with_unit(f"difference in {comparisons[0].metric}", f"({unit})" if unit else ""))
    lay_out(figure, height=round(78 + _ROW * (top - bottom)), x=title, y="", values=[])
    figure.update_xaxes(range=[low - margin, high + margin])
    figure.update_yaxes(
        range=[bottom, top],
        tickmode="array",
        tickvals=[at for at, _ in names],
        ticktext=[name for _, name in names],
        showgrid=False,
        fixedrange=True,
    )
    figure.update_layout(showlegend=False, margin={"l": 8, "r": 8, "t": 34, "b": 44})
    return figure


def _add_row(figure: go.Figure, comparison: Comparison, arm: ArmSummary, row: float) -> list[float]:
    """Draw one difference; return what the axis must reach."""
    judgement = arm.vs_vanilla
    assert judgement is not None
    color = arm_styles(comparison)[arm.name].color
    name = f"{escape(comparison.task)}: {escape(arm.name)}"
    if not math.isfinite(judgement.mean):
        figure.add_scatter(
            x=[0], y=[row], name=name, meta="failed", mode="markers+text", text=["  failed, not tested"],
            textposition="middle right", textfont={"size": 11}, hoverinfo="skip",
            marker={"symbol": "x", "size": 8, "color": color},
        )  # fmt: skip
        return []
    bounds = [bound for bound in (judgement.low, judgement.high) if math.isfinite(bound)]
    if len(bounds) == 2:
        figure.add_scatter(
            x=bounds,
            y=[row, row],
            name=f"{name}: 95 % interval",
            meta="interval",
            mode="lines",
            line={"color": color, "width": 3},
            hoverinfo="skip",
        )
    interval = f"<br>95 % interval {bounds[0]:+.4g} to {bounds[1]:+.4g}".replace("-", "−") if len(bounds) == 2 else ""
    shown = judgement.verdict in ("helps", "hurts")
    figure.add_scatter(
        x=[judgement.mean],
        y=[row],
        name=name,
        meta="mean",
        mode="markers",
        marker={
            "symbol": "diamond" if shown else "diamond-open",
            "size": 11,
            "color": color,
            "line": {"color": color, "width": 1.5},
        },
        hovertemplate=f"<b>{name}</b><br>%{{x:+.4~g}}{interval}<br>{judgement.verdict}<extra></extra>",
    )
    return [judgement.mean, *bounds]


def shortened(name: str, letters: int) -> str:
    """A name for a figure, escaped, cut where it is longer than so many letters."""
    return escape(name if len(name) <= letters else f"{name[: letters - 1]}…")

"""The forest plot of a study: every arm's difference to vanilla, in every cell."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from flatwise.report.figures import label_sides, untested_words
from flatwise.report.rows import difference_unit, with_unit
from flatwise.report.style import NEUTRAL, arm_styles, escape, lay_out
from flatwise.study.comparison import ArmSummary, Comparison

_ROW = 34  # pixels


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
    """Below each cell's name a row per method: its name, and under it mean difference and 95 % interval.

    Names stand above what they name, not beside it: a phone has no width for them.
    """
    figure = go.Figure()
    reach = [0.0]
    row = 0.0
    for comparison in comparisons:
        methods = [arm for arm in comparison.arms[1:] if not arm.is_control and arm.vs_vanilla is not None]
        if methods and len(comparisons) > 1:
            _write(figure, f"<b>{escape(comparison.task)}</b>", row, size=13)
            row -= 0.8
        for arm in methods:
            reach += _add_row(figure, comparison, arm, row)
            row -= 1
    low, high = min(reach), max(reach)
    margin = 0.08 * (high - low) or 1.0
    low, high, bottom, top = low - margin, high + margin, row + 0.5, 0.55
    zero = {"color": NEUTRAL, "width": 1.5}
    figure.add_shape(type="line", x0=0, x1=0, y0=bottom, y1=top, layer="below", line=zero)
    unit = difference_unit(comparisons[0])
    title = escape(with_unit(f"difference in {comparisons[0].metric}", f"({unit})" if unit else ""))
    lay_out(figure, height=round(96 + _ROW * (top - bottom)), x=title, y="", values=[])
    figure.update_xaxes(range=[low, high])
    figure.update_yaxes(range=[bottom, top], showticklabels=False, showgrid=False, fixedrange=True)
    figure.update_layout(showlegend=False, margin={"l": 8, "r": 8, "b": 44})
    label_sides(figure, comparisons[0].better, "vanilla", low, high)
    return figure


def _write(figure: go.Figure, text: str, height: float, size: int) -> None:
    figure.add_annotation(
        {"x": 0, "xref": "paper", "y": height, "text": text, "font": {"size": size}},
        xanchor="left",
        yanchor="middle",
        showarrow=False,
    )


def _add_row(figure: go.Figure, comparison: Comparison, arm: ArmSummary, row: float) -> list[float]:
    """Draw one difference; return what the axis must reach."""
    judgement = arm.vs_vanilla
    assert judgement is not None
    color = arm_styles(comparison)[arm.name].color
    _write(figure, escape(arm.name) + untested_words(judgement), row + 0.22, 12)
    if not math.isfinite(judgement.mean):
        return []
    name = f"{escape(comparison.task)}: {escape(arm.name)}"
    height = row - 0.2
    bounds = [bound for bound in (judgement.low, judgement.high) if math.isfinite(bound)]
    interval = ""
    if len(bounds) == 2:
        interval = f"<br>95 % interval {bounds[0]:+.4g} to {bounds[1]:+.4g}".replace("-", "−")
        figure.add_scatter(
            x=bounds,
            y=[height, height],
            name=f"{name}: 95 % interval",
            meta="interval",
            mode="lines",
            line={"color": color, "width": 3},
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=[judgement.mean],
        y=[height],
        name=name,
        meta="mean",
        mode="markers",
        marker={
            "symbol": "diamond" if judgement.verdict in ("helps", "hurts") else "diamond-open",
            "size": 11,
            "color": color,
            "line": {"color": color, "width": 1.5},
        },
        hovertemplate=f"<b>{name}</b><br>%{{x:+.4~g}}{interval}<br>{judgement.verdict}<extra></extra>",
    )
    return [judgement.mean, *bounds]

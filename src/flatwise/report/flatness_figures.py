"""Plotly figures of flatness: each measure arm beside arm, and against the metric and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from flatwise.report.rows import metric_label
from flatwise.report.style import NEUTRAL, Array, arm_styles, escape, lay_out, translucent, value_axis
from flatwise.study.comparison import Comparison, FlatnessSummary, Measure

HEIGHT_OF_ARM = 26


def arm_beside_arm(comparison: Comparison, flatness: FlatnessSummary) -> dict[str, go.Figure]:
    """The judged metric and then every measure, by its label: a row per arm, a dot per seed, a diamond at the mean."""
    metric = final_metric(comparison)
    figures = {metric_label(comparison): _strip(comparison, metric)}
    for measure in flatness.measures:
        figures[measure.label] = _strip(comparison, {of.arm: of.values for of in measure.arms})
    return figures


def final_metric(comparison: Comparison) -> dict[str, tuple[float, ...]]:
    """The judged metric after the final epoch of each arm by seed; NaN where the trial failed or is not on record."""
    final = {
        (record.arm, record.seed): float(record.epochs[-1][comparison.metric])
        for record in comparison.records
        if record.status == "finished"
    }
    return {
        arm.name: tuple(final.get((arm.name, seed), math.nan) for seed in comparison.seeds) for arm in comparison.arms
    }


def strip_height(comparison: Comparison) -> int:
    """Height in pixels of a figure of :func:`arm_beside_arm`."""
    return 56 + HEIGHT_OF_ARM * len(comparison.arms)


def _strip(comparison: Comparison, values: Mapping[str, Sequence[float]]) -> go.Figure:
    figure = go.Figure()
    styles = arm_styles(comparison)
    names = [arm.name for arm in comparison.arms]
    vanilla = _mean(values[names[0]])
    for row, arm in enumerate(comparison.arms):
        name, color = escape(arm.name), styles[arm.name].color
        figure.add_scatter(
            x=np.array(values[arm.name], dtype=np.float64),
            y=[-row] * len(comparison.seeds),
            name=name,
            meta="seeds",
            customdata=list(comparison.seeds),
            mode="markers",
            marker=_dot(color, arm.is_control),
            hovertemplate=f"<b>{name}</b>, seed %{{customdata}}<br>%{{x:.4~g}}<extra></extra>",
        )
        _add_mean(figure, [_mean(values[arm.name])], [-row], name, color, "mean %{x:.4~g}")
    if math.isfinite(vanilla):
        figure.add_vline(x=vanilla, line={"color": NEUTRAL, "width": 1, "dash": "dot"}, layer="below")
    lay_out(figure, height=strip_height(comparison), x="", y="", values=[])
    everything = np.array([value for own in values.values() for value in own], dtype=np.float64)
    figure.update_xaxes(tickangle=0, **value_axis([everything]))
    figure.update_yaxes(
        range=[0.6 - len(names), 0.6],
        tickvals=[-row for row in range(len(names))],
        ticktext=[escape(name) for name in names],
        showgrid=False,
        fixedrange=True,
    )
    figure.update_layout(showlegend=False, margin={"l": 8, "r": 8, "t": 6, "b": 32})
    return figure


def against_metric_and_rate(comparison: Comparison, flatness: FlatnessSummary) -> dict[str, go.Figure]:
    """Every measure, by its label, against the judged metric (left) and the mean effective learning rate (right)."""
    metric = final_metric(comparison)
    return {m.label: _scatter(comparison, flatness, m, metric) for m in flatness.measures}


def _scatter(
    comparison: Comparison, flatness: FlatnessSummary, measure: Measure, metric: Mapping[str, Sequence[float]]
) -> go.Figure:
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    styles = arm_styles(comparison)
    for arm, of in zip(comparison.arms, measure.arms, strict=True):
        name, color = escape(arm.name), styles[arm.name].color
        rates = [flatness.rate[arm.name]] * len(comparison.seeds)
        for column, x in ((1, list(metric[arm.name])), (2, rates)):
            figure.add_scatter(
                x=np.array(x, dtype=np.float64),
                y=np.array(of.values, dtype=np.float64),
                name=name,
                meta="seeds",
                customdata=list(comparison.seeds),
                mode="markers",
                marker=_dot(color, arm.is_control),
                hovertemplate=f"<b>{name}</b>, seed %{{customdata}}<br>%{{x:.4~g}}, %{{y:.4~g}}<extra></extra>",
                row=1,
                col=column,
            )
            _add_mean(figure, [_mean(x)], [of.mean], name, color, "means %{x:.4~g}, %{y:.4~g}", row=1, col=column)
    values = [np.array(of.values, dtype=np.float64) for of in measure.arms]
    lay_out(figure, height=320, x="", y=escape(measure.label), values=values)
    figure.update_yaxes(title_text="", col=2)
    sides: tuple[tuple[int, str, list[Array]], ...] = (
        (1, metric_label(comparison), [np.array(list(metric.values()), dtype=np.float64).ravel()]),
        (2, "mean learning rate", [np.array(list(flatness.rate.values()), dtype=np.float64)]),
    )
    for column, title, x_values in sides:
        figure.update_xaxes(title_text=escape(title), **value_axis(x_values), col=column)
    figure.update_layout(showlegend=False)
    return figure


def _dot(color: str, is_control: bool) -> dict[str, object]:
    filled = "rgba(0, 0, 0, 0)" if is_control else translucent(color, 0.4)
    return {"color": filled, "size": 7, "line": {"color": color, "width": 1.1}}


def _add_mean(
    figure: go.Figure, x: list[float], y: list[float], name: str, color: str, text: str, **where: int
) -> None:
    if math.isfinite(x[0]) and math.isfinite(y[0]):
        figure.add_scatter(
            x=x,
            y=y,
            name=f"{name}: mean",
            meta="mean",
            mode="markers",
            marker={"symbol": "diamond", "size": 11, "color": color, "line": {"color": "white", "width": 1.2}},
            hovertemplate=f"<b>{name}</b><br>{text}<extra></extra>",
            **where,
        )


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan

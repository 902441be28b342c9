"""Plotly figures of a comparison. They draw what was recorded and judged; the only arithmetic is a mean for a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import plotly.graph_objects as go

from flatwise.report.rows import difference_unit, metric_label, verdict_note, with_unit
from flatwise.report.style import NEUTRAL, ArmStyle, Array, arm_styles, escape, lay_out, translucent, value_axis
from flatwise.stats import UNTESTED, Judgement
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.store import Record

_NOT_METRICS = ("scheduled_lr", "effective_lr", "seconds")


def metrics(comparison: Comparison) -> list[str]:
    """Every metric that an arm reports, the judged one first; without the rates and the time."""
    names = {name: None for record in comparison.records for epoch in record.epochs for name in epoch}
    others = [name for name in names if name not in (*_NOT_METRICS, comparison.metric)]
    return [comparison.metric, *others] if comparison.metric in names else others


# Learning curves


def learning_curves(comparison: Comparison, metric: str) -> go.Figure:
    """``metric`` over epochs: per arm the mean over its finished seeds and, as a band, their range.

    A failed seed is never averaged in or left out: it has a thin dotted line of its own, which ends in a cross.
    """
    figure = go.Figure()
    styles = arm_styles(comparison)
    drawn: list[Array] = []
    last = 1
    for arm in comparison.arms:
        records = [record for record in comparison.records if record.arm == arm.name]
        finished = [record for record in records if record.status == "finished"]
        epochs, values = _curves(finished, metric)
        if epochs:
            _add_mean_and_range(figure, arm, styles[arm.name], epochs, values, _unit_after(comparison, metric))
            drawn.append(values)
            last = max(last, epochs[-1])
        for record in records:
            if record.status == "failed":
                _add_failed_seed(figure, arm, styles[arm.name], record, metric)
    label = escape(metric_label(comparison, metric))
    lay_out(figure, height=380 if metric == comparison.metric else 320, x="epoch", y=label, values=drawn)
    _remember_views(figure, drawn, last)
    return figure


def _remember_views(figure: go.Figure, drawn: Sequence[Array], last: int) -> None:
    """Keep two views in the figure, as plotly's relayout takes them: the whole curves, and their last half."""
    margin = 0.03 * max(1, last - 1)
    halves = [values[:, values.shape[1] // 2 :] for values in drawn]
    views = {
        name: {"xaxis.range": x} | {f"yaxis.{key}": value for key, value in value_axis(values).items()}
        for name, x, values in (
            ("whole", [1 - margin, last + margin], drawn),
            ("last half", [(1 + last) / 2, last + margin / 2], halves),
        )
    }
    figure.update_xaxes(range=[1 - margin, last + margin])
    figure.update_layout(meta=views)


def _unit_after(comparison: Comparison, metric: str) -> str:
    """The unit to write after a value of ``metric`` in hover text, with its space; empty where unknown."""
    return f" {escape(comparison.unit)}" if metric == comparison.metric and comparison.unit else ""


def _curves(records: Sequence[Record], metric: str) -> tuple[list[int], Array]:
    """The epochs (from 1) at which any of ``records`` reports ``metric``, and the values: a row per record."""
    length = max((len(record.epochs) for record in records), default=0)
    epochs = [
        index
        for index in range(length)
        if any(index < len(record.epochs) and metric in record.epochs[index] for record in records)
    ]
    values = [[_value(record, index, metric) for index in epochs] for record in records]
    return [index + 1 for index in epochs], np.array(values, dtype=np.float64).reshape(len(records), len(epochs))


def _value(record: Record, index: int, name: str) -> float:
    return float(record.epochs[index].get(name, math.nan)) if index < len(record.epochs) else math.nan


def _add_mean_and_range(
    figure: go.Figure, arm: ArmSummary, style: ArmStyle, epochs: list[int], values: Array, unit: str
) -> None:
    # A seed that is NaN at an epoch makes the mean NaN there: a gap in the line, not a mean over fewer seeds.
    means, lows, highs = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    name = escape(arm.name)
    if len(values) > 1:
        edge = {
            "x": epochs,
            "mode": "lines",
            "line": {"width": 0},
            "legendgroup": arm.name,
            "showlegend": False,
            "hoverinfo": "skip",
        }
        figure.add_scatter(y=lows, name=f"{name}: lowest seed", **edge)
        fill = translucent(style.color, 0.13)
        figure.add_scatter(y=highs, name=f"{name}: highest seed", fill="tonexty", fillcolor=fill, **edge)
    figure.add_scatter(
        x=epochs,
        y=means,
        name=name,
        legendgroup=arm.name,
        mode="lines" if len(epochs) > 1 else "markers",
        line={"color": style.color, "dash": style.dash, "width": 2},
        customdata=np.stack([lows, highs], axis=1),
        hovertemplate=(
            f"<b>{name}</b>, epoch %{{x}}<br>mean %{{y:.5~g}}{unit}"
            f"<br>{len(values)} seeds: %{{customdata[0]:.5~g}} to %{{customdata[1]:.5~g}}<extra></extra>"
        ),
    )


def _add_failed_seed(figure: go.Figure, arm: ArmSummary, style: ArmStyle, record: Record, metric: str) -> None:
    epochs, values = _curves([record], metric)
    finite = np.flatnonzero(np.isfinite(values[0]))
    if not len(finite):
        return
    symbols = ["x" if index == finite[-1] else "circle" for index in range(len(epochs))]
    sizes = [8 if index == finite[-1] else 0 for index in range(len(epochs))]
    name = f"{escape(arm.name)}: seed {record.seed} failed"
    figure.add_scatter(
        x=epochs,
        y=values[0],
        name=name,
        legendgroup=arm.name,
        showlegend=False,
        mode="lines+markers",
        line={"color": style.color, "dash": "dot", "width": 1},
        marker={"symbol": symbols, "size": sizes, "color": style.color, "line": {"width": 0}},
        hovertemplate=f"<b>{name}</b><br>epoch %{{x}}: %{{y:.5~g}}<extra></extra>",
    )


# Effective learning rate


def effective_rates(comparison: Comparison) -> dict[str, go.Figure]:
    """One figure per method, by its name: the scheduled rate, and the effective rate of the method and its control.

    Each is the path of one trial, the method's first seed: a mean over seeds would hide the randomness. A method that
    recorded no rates has no figure.
    """
    styles = arm_styles(comparison)
    figures = {}
    for arm in comparison.arms[1:]:
        record = _first_record(comparison, arm.name)
        if arm.is_control or record is None:
            continue
        figure = go.Figure()
        # Wide and pale, so that an effective rate that equals it is seen on top of it.
        scheduled = ArmStyle(translucent(NEUTRAL, 0.45), "solid")
        drawn = [
            _add_rate(figure, record, "scheduled_lr", "scheduled", scheduled, width=6),
            _add_rate(figure, record, "effective_lr", arm.name, styles[arm.name], width=1.8),
        ]
        control = next((other for other in comparison.arms if other.is_control and other.name == arm.control), None)
        control_record = _first_record(comparison, control.name) if control is not None else None
        if control is not None and control_record is not None:
            style = styles[control.name]
            drawn.append(_add_rate(figure, control_record, "effective_lr", control.name, style, width=1.8))
        if figure.data:
            lay_out(figure, height=250, x="epoch", y="", values=drawn)
            figures[arm.name] = figure
    return figures


def _first_record(comparison: Comparison, arm: str) -> Record | None:
    """The arm's record of the earliest seed, finished if any is."""
    order = {seed: index for index, seed in enumerate(comparison.seeds)}
    records = [record for record in comparison.records if record.arm == arm and record.epochs]
    return min(
        records,
        key=lambda record: (record.status == "failed", order.get(record.seed, len(order))),
        default=None,
    )


def _add_rate(figure: go.Figure, record: Record, key: str, name: str, style: ArmStyle, width: float) -> Array:
    epochs, values = _curves([record], key)
    if epochs:
        figure.add_scatter(
            x=epochs,
            y=values[0],
            name=escape(name),
            mode="lines" if len(epochs) > 1 else "markers",
            line={"color": style.color, "dash": style.dash, "width": width},
            hovertemplate=(
                f"<b>{escape(name)}</b>, seed {record.seed}<br>epoch %{{x}}: rate %{{y:.4~g}}<extra></extra>"
            ),
        )
    return values


# Paired differences


def differences_from_vanilla(comparison: Comparison) -> go.Figure:
    """Each arm minus vanilla, seed by seed, with the mean and its 95 % interval."""
    vanilla = comparison.arms[0].name
    judged = [(arm, vanilla, arm.vs_vanilla) for arm in comparison.arms[1:] if arm.vs_vanilla is not None]
    return _differences(comparison, judged, zero="vanilla")


def differences_from_controls(comparison: Comparison) -> go.Figure:
    """Each method minus its control, seed by seed, with the mean and its 95 % interval."""
    judged = [(arm, arm.control or "", arm.vs_control) for arm in comparison.arms[1:] if arm.vs_control is not None]
    return _differences(comparison, judged, zero="its control")


def _differences(comparison: Comparison, judged: Sequence[tuple[ArmSummary, str, Judgement]], zero: str) -> go.Figure:
    """One row per arm, the first on top, its name written above its dots: long names then cost no width."""
    figure = go.Figure()
    styles = arm_styles(comparison)
    unit = difference_unit(comparison)
    reach = [0.0]
    for index, (arm, baseline, judgement) in enumerate(judged):
        row, name = -float(index), escape(arm.name)
        color = styles[arm.name].color
        untested = untested_words(judgement)
        dots, bar = row - 0.02, row - 0.25  # the name is above the dots, the interval below them
        figure.add_annotation(
            {"x": 0, "xref": "paper", "y": row + 0.36, "text": f"<b>{name}</b>{untested}", "font": {"size": 12}},
            xanchor="left",
            yanchor="middle",
            showarrow=False,
        )
        pairs = paired_seeds(comparison, arm.name, baseline, judgement)
        figure.add_scatter(
            x=np.array(judgement.differences, dtype=np.float64),
            y=[dots + _spread(position) for position in range(len(pairs))],
            name=name,
            meta="seeds",
            customdata=pairs,
            mode="markers",
            marker={
                "color": "rgba(0, 0, 0, 0)" if arm.is_control else translucent(color, 0.5),
                "size": 8,
                "line": {"color": color, "width": 1.2},
            },
            hovertemplate=f"<b>{name}</b>, %{{customdata}}<br>%{{x:+.5~g}} {escape(unit)}<extra></extra>",
        )
        reach += [value for value in judgement.differences if math.isfinite(value)]
        if math.isfinite(judgement.mean):
            _add_interval(figure, judgement, bar, name, color, unit)
            reach += [value for value in (judgement.low, judgement.high) if math.isfinite(value)]
    low, high = min(reach), max(reach)
    margin = 0.08 * (high - low) or 1.0
    bottom, top = 0.58 - len(judged), 0.58
    zero_line = {"color": NEUTRAL, "width": 1.5}
    figure.add_shape(type="line", x0=0, x1=0, y0=bottom, y1=top, layer="below", line=zero_line)
    label = escape(with_unit(f"difference in {comparison.metric}", f"({unit})" if unit else ""))
    lay_out(figure, height=96 + 56 * len(judged), x=label, y="", values=[])
    figure.update_xaxes(range=[low - margin, high + margin])
    between_rows = [0.58 - index for index in range(len(judged) + 1)]
    figure.update_yaxes(range=[bottom, top], tickvals=between_rows, showticklabels=False, fixedrange=True)
    figure.update_layout(showlegend=False, margin={"l": 8, "r": 8, "b": 44})
    label_sides(figure, comparison.better, zero, low - margin, high + margin)
    return figure


def untested_words(judgement: Judgement) -> str:
    """What to write beside an arm's name where nothing was tested; empty where it was, or where a gate is closed."""
    if judgement.verdict == "not tested" or judgement.verdict not in UNTESTED:
        return ""
    return " — failed, not tested" if judgement.verdict == "failed" else f" — not tested: {verdict_note(judgement)}"


def paired_seeds(comparison: Comparison, arm: str, baseline: str, judgement: Judgement) -> list[str]:
    """A name for each of the judgement's differences: ``"seed 3"`` where it is certain which seed it is.

    A judgement has one difference per pair and does not say of which seed. It is certain where the pairs that are on
    record are as many as the differences; where not, the pair is numbered instead.
    """
    on_record = {(record.arm, record.seed) for record in comparison.records}
    seeds = [seed for seed in comparison.seeds if {(arm, seed), (baseline, seed)} <= on_record]
    count = len(judgement.differences)
    if len(seeds) == count:
        return [f"seed {seed}" for seed in seeds]
    return [f"pair {position + 1}" for position in range(count)]


def _spread(position: int) -> float:
    """A small vertical offset, so that equal differences do not hide each other: the golden ratio's sequence."""
    return ((position * 0.618034) % 1.0 - 0.5) * 0.2


def _add_interval(figure: go.Figure, judgement: Judgement, height: float, name: str, color: str, unit: str) -> None:
    bounds = [judgement.low, judgement.high]
    interval = ""
    if all(math.isfinite(bound) for bound in bounds):
        figure.add_scatter(
            x=bounds,
            y=[height, height],
            name=f"{name}: 95 % interval",
            meta="interval",
            mode="lines",
            line={"color": color, "width": 5},
            hoverinfo="skip",
        )
        interval = f"<br>95 % interval {judgement.low:+.4g} to {judgement.high:+.4g}".replace("-", "−")
    figure.add_scatter(
        x=[judgement.mean],
        y=[height],
        name=f"{name}: mean",
        meta="mean",
        mode="markers",
        marker={"symbol": "diamond", "size": 12, "color": color, "line": {"color": "white", "width": 1.5}},
        hovertemplate=f"<b>{name}</b><br>mean %{{x:+.5~g}} {escape(unit)}{interval}<extra></extra>",
    )


def label_sides(figure: go.Figure, better: str, zero: str, low: float, high: float) -> None:
    """Write above a figure of differences which side is better, and what stands at zero; and make room for it.

    Args:
        figure: the figure.
        better: whether lower or higher values are better.
        zero: what stands at zero.
        low, high: the ends of the x axis: close to one of them the text at zero would run into that end's.
    """
    crowded = not low + 0.3 * (high - low) < 0 < high - 0.3 * (high - low)
    left, right = ("← better", "worse →") if better == "lower" else ("← worse", "better →")
    for text, x, xref, anchor in ((left, 0, "paper", "left"), (right, 1, "paper", "right"), (zero, 0, "x", "center")):
        figure.add_annotation(
            text=text,
            x=x,
            xref=xref,
            xanchor=anchor,
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            yshift=24 if crowded and xref == "x" else 6,
        )
    figure.update_layout(margin={"t": 52 if crowded else 34})


# JSON


def to_json(figure: go.Figure) -> str:
    """The figure as JSON that may stand inside an HTML script: no character of it can end the script."""
    text = cast(str, figure.to_json())
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")

"""Plotly figures of a comparison and of a study. They draw what was recorded and judged; all arithmetic is a mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from flatwise.report import plot
from flatwise.report.comparison import NEUTRAL, arm_styles, difference_unit, methods, metric_label, verdict_note
from flatwise.report.table import ArmStyle, labelled
from flatwise.stats import UNTESTED, Judgement
from flatwise.study.comparison import ArmSummary, Comparison, FlatnessSummary, Measure
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
    is_judged = metric == comparison.metric
    drawn: list[plot.Array] = []
    last = 1
    for arm in comparison.arms:
        records = [record for record in comparison.records if record.arm == arm.name]
        epochs, values = _curves([record for record in records if record.status == "finished"], metric)
        if epochs:
            unit = f" {plot.escape(comparison.unit)}" if is_judged and comparison.unit else ""
            _add_mean_and_range(figure, arm.name, styles[arm.name], epochs, values, unit)
            drawn.append(values)
            last = max(last, epochs[-1])
        for record in records:
            if record.status == "failed":
                _add_failed_seed(figure, styles[arm.name], record, metric)
    label = metric_label(comparison, metric)
    plot.lay_out(figure, height=380 if is_judged else 320, x="epoch", y=label, values=drawn)
    margin = 0.03 * max(1, last - 1)
    figure.update_xaxes(range=[1 - margin, last + margin])
    # Two views, as plotly's relayout takes them: the whole curves, and their last half.
    halves = [values[:, values.shape[1] // 2 :] for values in drawn]
    views = {"whole": ([1 - margin, last + margin], drawn), "last half": ([(1 + last) / 2, last + margin / 2], halves)}
    figure.update_layout(
        meta={
            name: {"xaxis.range": x} | {f"yaxis.{key}": value for key, value in plot.value_axis(shown).items()}
            for name, (x, shown) in views.items()
        }
    )
    return figure


def _curves(records: Sequence[Record], metric: str) -> tuple[list[int], plot.Array]:
    """The epochs (from 1) at which any of ``records`` reports ``metric``, and the values: a row per record."""
    length = max((len(record.epochs) for record in records), default=0)
    padded = [[*record.epochs, *[{}] * (length - len(record.epochs))] for record in records]
    epochs = [index for index in range(length) if any(metric in epochs[index] for epochs in padded)]
    values = [[float(epochs_of[index].get(metric, math.nan)) for index in epochs] for epochs_of in padded]
    return [index + 1 for index in epochs], plot.floats(values).reshape(len(records), len(epochs))


def _add_line(
    figure: go.Figure, epochs: list[int], values: plot.Array, name: str, style: ArmStyle, width: float, **more: Any
) -> None:
    """Draw a line over epochs; a single epoch as a dot."""
    look = {"mode": "lines" if len(epochs) > 1 else "markers", "name": name}
    line = {"color": style.color, "dash": style.dash, "width": width}
    figure.add_scatter(**(look | {"x": epochs, "y": values, "line": line} | more))


def _add_mean_and_range(
    figure: go.Figure, arm: str, style: ArmStyle, epochs: list[int], values: plot.Array, unit: str
) -> None:
    # A seed that is NaN at an epoch makes the mean NaN there: a gap in the line, not a mean over fewer seeds.
    means, lows, highs = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
    name = plot.escape(arm)
    if len(values) > 1:
        edge = {"mode": "lines", "legendgroup": arm, "showlegend": False, "hoverinfo": "skip"}
        band = {"fill": "tonexty", "fillcolor": plot.translucent(style.color, 0.13)}
        _add_line(figure, epochs, lows, f"{name}: lowest seed", style, 0, **edge)
        _add_line(figure, epochs, highs, f"{name}: highest seed", style, 0, **edge, **band)
    hover = (
        f"<b>{name}</b>, epoch %{{x}}<br>mean %{{y:.5~g}}{unit}"
        f"<br>{len(values)} seeds: %{{customdata[0]:.5~g}} to %{{customdata[1]:.5~g}}<extra></extra>"
    )
    ends = np.stack([lows, highs], axis=1)
    _add_line(figure, epochs, means, name, style, 2, legendgroup=arm, customdata=ends, hovertemplate=hover)


def _add_failed_seed(figure: go.Figure, style: ArmStyle, record: Record, metric: str) -> None:
    epochs, values = _curves([record], metric)
    finite = np.flatnonzero(np.isfinite(values[0]))
    if not len(finite):
        return
    is_last = [index == finite[-1] for index in range(len(epochs))]
    name = f"{plot.escape(record.arm)}: seed {record.seed} failed"
    _add_line(
        figure,
        epochs,
        values[0],
        name,
        ArmStyle(style.color, "dot"),
        1,
        legendgroup=record.arm,
        showlegend=False,
        mode="lines+markers",
        marker={
            "symbol": ["x" if last else "circle" for last in is_last],
            "size": [8 if last else 0 for last in is_last],
            "color": style.color,
            "line": {"width": 0},
        },
        hovertemplate=f"<b>{name}</b><br>epoch %{{x}}: %{{y:.5~g}}<extra></extra>",
    )


# Effective learning rate


def effective_rates(comparison: Comparison) -> dict[str, go.Figure]:
    """One figure per method, by its name: the scheduled rate, and the effective rate of the method and its control.

    Each is the path of one trial, the method's first seed: a mean over seeds would hide the randomness. A method that
    recorded no rates has no figure.
    """
    styles = arm_styles(comparison)
    controls = {arm.name for arm in comparison.arms if arm.is_control}
    # Wide and pale, so that an effective rate that equals it is seen on top of it.
    scheduled = ArmStyle(plot.translucent(NEUTRAL, 0.45), "solid")
    figures = {}
    for arm in methods(comparison):
        paths = [
            (arm.name, "scheduled_lr", "scheduled", scheduled, 6.0),
            (arm.name, "effective_lr", arm.name, styles[arm.name], 1.8),
        ]
        if arm.control in controls:
            paths.append((arm.control, "effective_lr", arm.control, styles[arm.control], 1.8))
        figure = go.Figure()
        drawn = []
        for of, key, label, style, width in paths:
            record = _first_record(comparison, of)
            epochs, values = _curves([] if record is None else [record], key)
            if record is not None and epochs:
                name = plot.escape(label)
                hover = f"<b>{name}</b>, seed {record.seed}<br>epoch %{{x}}: rate %{{y:.4~g}}<extra></extra>"
                _add_line(figure, epochs, values[0], name, style, width, hovertemplate=hover)
                drawn.append(values)
        if drawn:
            plot.lay_out(figure, height=250, x="epoch", values=drawn)
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
    """One row per arm, the first on top: its name, below it a dot per seed, below these mean and interval."""
    figure = go.Figure()
    styles = arm_styles(comparison)
    unit = difference_unit(comparison)
    reach: list[float] = []
    for index, (arm, baseline, judgement) in enumerate(judged):
        row, name = -float(index), plot.escape(arm.name)
        plot.write(figure, f"<b>{name}</b>{_untested_words(judgement)}", row + 0.36)
        pairs = paired_seeds(comparison, arm.name, baseline, judgement)
        hover = f"%{{x:+.5~g}} {plot.escape(unit)}"
        heights = [row - 0.02 + _spread(position) for position in range(len(pairs))]
        plot.add_seeds(figure, judgement.differences, heights, name, styles[arm.name], pairs, hover)
        reach += [value for value in judgement.differences if math.isfinite(value)]
        reach += plot.add_difference(figure, judgement, row - 0.25, name, styles[arm.name].color, unit)
    top = 0.58
    plot.lay_out_differences(figure, comparison, zero, reach, (top - len(judged), top), 96 + 56 * len(judged))
    figure.update_yaxes(tickvals=[top - index for index in range(len(judged) + 1)])  # lines between the rows
    return figure


def _untested_words(judgement: Judgement) -> str:
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


def forest_plots(comparisons: Sequence[Comparison]) -> dict[str, go.Figure]:
    """Every method's difference to vanilla in every cell: a figure for every metric that cells are judged by."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        metric = labelled(comparison.metric, difference_unit(comparison))
        groups.setdefault(f"{metric}, {comparison.better} is better", []).append(comparison)
    return {name: _forest(found) for name, found in groups.items()}


def _forest(comparisons: Sequence[Comparison]) -> go.Figure:
    """Below each cell's name a row per method: its name, and under it mean difference and 95 % interval."""
    figure = go.Figure()
    reach: list[float] = []
    row = 0.0
    for comparison in comparisons:
        task, styles, unit = plot.escape(comparison.task), arm_styles(comparison), difference_unit(comparison)
        judged = [(arm.name, arm.vs_vanilla) for arm in methods(comparison) if arm.vs_vanilla is not None]
        if judged and len(comparisons) > 1:
            plot.write(figure, f"<b>{task}</b>", row, size=13)
            row -= 0.8
        for arm, judgement in judged:
            plot.write(figure, plot.escape(arm) + _untested_words(judgement), row + 0.22)
            name, shown = f"{task}: {plot.escape(arm)}", judgement.verdict in ("helps", "hurts")
            reach += plot.add_difference(figure, judgement, row - 0.2, name, styles[arm].color, unit, filled=shown)
            row -= 1
    bottom, top = row + 0.5, 0.55
    plot.lay_out_differences(figure, comparisons[0], "vanilla", reach, (bottom, top), round(96 + 34 * (top - bottom)))
    figure.update_yaxes(showgrid=False)
    return figure


# Flatness


def arm_beside_arm(comparison: Comparison, flatness: FlatnessSummary) -> dict[str, go.Figure]:
    """The judged metric and then every measure, by its label: a row per arm, a dot per seed, a diamond at the mean."""
    figures = {metric_label(comparison): _strip(comparison, _final_values(comparison))}
    for measure in flatness.measures:
        figures[measure.label] = _strip(comparison, {of.arm: of.values for of in measure.arms})
    return figures


def _final_values(comparison: Comparison) -> dict[str, tuple[float, ...]]:
    """The judged metric after the final epoch of each arm by seed; NaN where the trial failed or is not on record."""
    final = {
        (record.arm, record.seed): float(record.epochs[-1][comparison.metric])
        for record in comparison.records
        if record.status == "finished"
    }
    return {
        arm.name: tuple(final.get((arm.name, seed), math.nan) for seed in comparison.seeds) for arm in comparison.arms
    }


def _strip(comparison: Comparison, values: Mapping[str, Sequence[float]]) -> go.Figure:
    figure = go.Figure()
    styles = arm_styles(comparison)
    names = [arm.name for arm in comparison.arms]
    seeds = [f"seed {seed}" for seed in comparison.seeds]
    for row, arm in enumerate(comparison.arms):
        name, style, x = plot.escape(arm.name), styles[arm.name], values[arm.name]
        plot.add_seeds(figure, x, [-row] * len(seeds), name, style, seeds, "%{x:.4~g}")
        plot.add_mean(figure, _mean(x), -row, name, style.color, "mean %{x:.4~g}")
    vanilla = _mean(values[names[0]])
    if math.isfinite(vanilla):
        figure.add_vline(x=vanilla, line={"color": NEUTRAL, "width": 1, "dash": "dot"}, layer="below")
    plot.lay_out(figure, height=56 + 26 * len(names))
    figure.update_xaxes(tickangle=0, **plot.value_axis([plot.floats(list(values.values())).ravel()]))
    figure.update_yaxes(
        range=[0.6 - len(names), 0.6],
        tickvals=[-row for row in range(len(names))],
        ticktext=[plot.escape(name) for name in names],
        showgrid=False,
        fixedrange=True,
    )
    figure.update_layout(showlegend=False, margin={"l": 8, "r": 8, "t": 6, "b": 32})
    return figure


def against_metric_and_rate(comparison: Comparison, flatness: FlatnessSummary) -> dict[str, go.Figure]:
    """Every measure, by its label, against the judged metric (left) and the mean effective learning rate (right)."""
    metric = _final_values(comparison)
    rates = {arm: [rate] * len(comparison.seeds) for arm, rate in flatness.rate.items()}
    sides: dict[str, Mapping[str, Sequence[float]]] = {metric_label(comparison): metric, "mean learning rate": rates}
    return {measure.label: _scatter(comparison, measure, sides) for measure in flatness.measures}


def _scatter(comparison: Comparison, measure: Measure, sides: Mapping[str, Mapping[str, Sequence[float]]]) -> go.Figure:
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    styles = arm_styles(comparison)
    seeds = [f"seed {seed}" for seed in comparison.seeds]
    for arm, of in zip(comparison.arms, measure.arms, strict=True):
        name, style = plot.escape(arm.name), styles[arm.name]
        for column, side in enumerate(sides.values(), start=1):
            x, hover = side[arm.name], "%{x:.4~g}, %{y:.4~g}"
            plot.add_seeds(figure, x, of.values, name, style, seeds, hover, col=column)
            plot.add_mean(figure, _mean(x), of.mean, name, style.color, f"means {hover}", col=column)
    plot.lay_out(figure, height=320, y=measure.label, values=[plot.floats(of.values) for of in measure.arms])
    figure.update_yaxes(title_text="", col=2)
    for column, (title, side) in enumerate(sides.items(), start=1):
        axis = plot.value_axis([plot.floats(list(side.values())).ravel()])
        figure.update_xaxes(title_text=plot.escape(title), **axis, col=column)
    figure.update_layout(showlegend=False)
    return figure


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan

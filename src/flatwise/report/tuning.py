"""The searches of a study: how it tunes, what was tried and chosen, what to be warned of, and the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from flatwise.report.plot import Array, escape, floats, lay_out, value_axis
from flatwise.report.table import NOTHING, Column, Table, cell, labelled, listing, number_of, plural, row
from flatwise.stats import Better
from flatwise.study.arms import VANILLA
from flatwise.study.plan import TuningResult
from flatwise.study.registry import get_task
from flatwise.study.results import CellResult
from flatwise.study.search import Configuration
from flatwise.study.spec import Choices, Range, Space, StudySpec, Times, Value, grid_size
from flatwise.study.task import Task

# A sampler never draws a range's very end: this share of the range counts as its edge.
_EDGE = 0.05


@dataclass(frozen=True, slots=True)
class Search:
    """A search that was made.

    Attributes:
        name: the arm, or ``"baseline"`` for the search that all arms start from.
        space: what was searched.
        tuned: what was tried and chosen.
    """

    name: str
    space: Space
    tuned: TuningResult


def searches_of(study: StudySpec, result: CellResult) -> list[Search]:
    """The searches of a cell, the baseline's first; an arm with nothing to search has one without a space."""
    spaces = {arm.name: arm.space for arm in study.arms}
    found = [] if result.baseline is None else [Search("baseline", study.tuning.baseline, result.baseline)]
    return found + [Search(tuned.arm, spaces[tuned.arm], tuned) for tuned in result.tuned]


# Tables and lines


def searches_table(searches: Sequence[Search], label: str) -> Table:
    """What every search chose, for a page; ``label`` is the validation metric with its unit."""
    rows = []
    for search in searches:
        tuned = search.tuned
        if not tuned.space:
            fixed = cell(("nothing was searched: its settings are fixed", "dim"))
            rows.append(row(search.name, fixed, NOTHING, NOTHING))
            continue
        warnings = [(warning, "caution") for warning in search_warnings(tuned, search.space)]
        searched = [f"{key}: {_dimension_words(dimension)}" for key, dimension in search.space.items()]
        rows.append(
            row(
                search.name,
                cell(configuration_words(tuned.choice), *warnings),
                number_of(tuned.values[tuned.chosen]),
                cell(str(len(tuned.values)), ("; ".join(searched), "dim")),
            )
        )
    chosen, out_of = Column("chosen", "text", label="chosen"), Column("out of", "text", label="out of")
    return Table((Column("arm", "name"), chosen, Column(label, label=label), out_of), rows)


def configurations_table(tuned: TuningResult, label: str) -> Table:
    """All configurations of a search, for a page."""
    rows = []
    for index, (configuration, value) in enumerate(zip(tuned.configurations, tuned.values, strict=True)):
        state = "chosen" if index == tuned.chosen else "" if math.isfinite(value) else "failed"
        last = "✓ chosen" if state == "chosen" else state
        rows.append(row(*map(value_words, configuration.values()), number_of(value), last, kind=state))
    return Table([*map(Column, tuned.space), Column(label), Column("", "text")], rows)


def search_lines(study: StudySpec, result: CellResult) -> list[str]:
    """What every search of a cell chose, a line each."""
    lines = []
    for search in searches_of(study, result):
        if search.tuned.space:
            value = number_of(search.tuned.values[search.tuned.chosen])
            best = "" if value == NOTHING else f", validation {value} (best of {len(search.tuned.values)})"
            line = f"{result.cell.name}, {search.name}: {configuration_words(search.tuned.choice)}{best}"
            warned = " ".join(search_warnings(search.tuned, search.space))
            lines.append(f"{line}. {warned}" if warned else line)
    return lines


# Warnings


def search_warnings(tuned: TuningResult, space: Space) -> list[str]:
    """What to know before a search's choice is trusted, in sentences."""
    failed = sum(not math.isfinite(value) for value in tuned.values)
    if failed == len(tuned.values):
        return ["Every configuration failed on a seed: the first was taken, and nothing speaks for it."]
    found = []
    for key in tuned.space:
        edge = edge_of(key, tuned, space)
        if edge is not None:
            side = {"lowest": "lower", "highest": "higher"}[edge]
            where = "near the end of its range" if isinstance(space.get(key), Range) else f"the {edge} that was tried"
            sentence = f"The chosen {key}, {value_words(tuned.choice[key])}, is {where}: a {side} one may be better."
            if tuned.arm == VANILLA:
                sentence += " A vanilla below its best makes every gain over it look larger."
            found.append(sentence)
    trained = len(tuned.values) - tuned.known
    if tuned.known:
        found.append(
            f"The baseline's search had trained {tuned.known} of the {len(tuned.values)} configurations already: "
            f"{trained} {'is' if trained == 1 else 'are'} new."
        )
    if tuned.budget is not None and trained < tuned.budget:
        found.append(
            f"The search trained {trained} of {tuned.budget} configurations, and its space has no others: its budget "
            "was smaller than planned."
        )
    if failed:
        found.append(f"{failed} of {len(tuned.values)} configurations failed on a seed and could not be chosen.")
    return found


def edge_of(key: str, tuned: TuningResult, space: Space) -> str | None:
    """``"lowest"`` or ``"highest"`` where the chosen value of ``key`` has no neighbour on that side, else ``None``.

    Zero is no edge: below it there is no rate, decay or spread to try.
    """
    chosen, dimension = tuned.choice[key], space.get(key)
    if not _is_number(chosen) or chosen == 0:
        return None
    if isinstance(dimension, Range):
        low, high, at = (
            math.log(float(value)) if dimension.log else float(value)
            for value in (dimension.low, dimension.high, chosen)
        )
        share = (at - low) / (high - low)
        return "lowest" if share <= _EDGE else "highest" if share >= 1 - _EDGE else None
    tried = {configuration[key] for configuration in tuned.configurations}
    if len(tried) < 2 or not all(_is_number(value) for value in tried):
        return None
    values = [float(value) for value in tried]
    return "lowest" if chosen == min(values) else "highest" if chosen == max(values) else None


def _is_number(value: Value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def edges_by_cell(study: StudySpec, results: Iterable[CellResult]) -> dict[str, list[str]]:
    """By cell, the searches whose choice lies at an edge; cells without one are left out."""
    found = {}
    for result in results:
        names = [
            "the baseline" if search.tuned is result.baseline else search.name
            for search in searches_of(study, result)
            if any(edge_of(key, search.tuned, search.space) for key in search.tuned.space)
            and math.isfinite(search.tuned.values[search.tuned.chosen])
        ]
        if names:
            found[result.cell.name] = names
    return found


# Words


def validation_label(task: Task) -> str:
    """The metric that settings are chosen by, with its unit."""
    return labelled(task.validation_metric, task.unit)


def is_tuned(study: StudySpec) -> bool:
    """Whether the study searches anything."""
    return bool(study.tuning.baseline) or any(arm.space for arm in study.arms)


def tuning_words(study: StudySpec) -> str:
    """How settings are chosen, with the budget, in a few sentences."""
    if not is_tuned(study):
        return "Nothing is tuned: every arm runs with the task's settings and its own."
    tuning = study.tuning
    parts = []
    if tuning.baseline:
        size = tuning.baseline_trials or grid_size(tuning.baseline) or 1
        parts.append(f"First vanilla is tuned over {listing(tuning.baseline)}: {_how(study, size)}.")
    if any(arm.space for arm in study.arms):
        start = ", starting from that choice," if tuning.baseline else ""
        then = "Then every" if tuning.baseline else "Every"
        parts.append(
            f"{then} arm{start} searches a space of its own, all on one budget: {_how(study, study.trials_per_arm)}."
        )
    mean = "the mean over " if len(tuning.seeds) > 1 else ""
    parts.append(
        f"A configuration is judged by the final epoch on validation data, {mean}{seeds_words(tuning.seeds)}, which "
        f"{'are not among' if len(tuning.seeds) > 1 else 'is not one of'} those of the final runs."
    )
    parts.append("The test split is not read while tuning: a tuning trial is handed the data without it.")
    return " ".join(parts)


def seeds_words(seeds: Sequence[int]) -> str:
    """``"10 seeds (0 to 9)"``, ``"seed 1000"`` or ``"3 seeds (1, 5 and 8)"``."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    is_range = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    told = f"{seeds[0]} to {seeds[-1]}" if is_range else listing(map(str, seeds))
    return f"{len(seeds)} seeds ({told})"


def _how(study: StudySpec, size: int) -> str:
    tuning = study.tuning
    count = plural(size, "configuration")
    if tuning.sampler == "grid":
        return f"all {count} of a grid" if size > 1 else count
    if tuning.sampler == "random":
        return f"{count} drawn at random (sampler's seed {tuning.sampler_seed})"
    rounds = f"{tuning.round_size} at a time, sampler's seed {tuning.sampler_seed}"
    return f"{count} proposed by Optuna's tree-structured Parzen estimator ({rounds})"


def _dimension_words(dimension: Choices | Times | Range) -> str:
    """``"0.1, 0.05"``, ``"the baseline's × 0.5, 1, 2"`` or ``"0.001 to 0.1, on a logarithmic scale"``."""
    if isinstance(dimension, Choices):
        return ", ".join(map(value_words, dimension.values))
    if isinstance(dimension, Times):
        return f"the baseline's × {', '.join(map(value_words, dimension.times))}"
    scale = ", on a logarithmic scale" if dimension.log else ""
    return f"{value_words(dimension.low)} to {value_words(dimension.high)}{scale}"


def configuration_words(configuration: Configuration | Mapping[str, Value]) -> str:
    """``"learning_rate = 0.1 and sigma = 0.05"``; empty for a configuration that changes nothing."""
    return listing(f"{key} = {value_words(value)}" for key, value in configuration.items())


def value_words(value: object) -> str:
    """A setting's value as it stands in a study file; a computed number with six digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(value_words, value))}]"
    return str(value)


# Figures

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
    y = floats(tuned.values)
    places = [configuration[key] for configuration in tuned.configurations]
    is_number = all(map(_is_number, places))
    x: list[Any] = list(map(float, places)) if is_number else [escape(value_words(place)) for place in places]
    finite = [i for i in range(len(x)) if math.isfinite(y[i])]
    failed = [i for i in range(len(x)) if i not in finite]

    def add(name: str, shown: Sequence[int], heights: Array, hover: str, **look: Any) -> None:
        figure.add_scatter(
            x=[x[i] for i in shown],
            y=heights,
            name=name,
            customdata=[_told(tuned, i) for i in shown],
            hovertemplate=f"%{{customdata}}<br>{hover}<extra></extra>",
            **({"mode": "markers"} | look),
        )

    order = sorted(finite, key=lambda i: x[i]) if is_number else finite
    add(
        "tried",
        order,
        y[order],
        "%{y:.5~g}",
        mode="lines+markers" if joined else "markers",
        line={"color": TRIED, "width": 1.5},
        marker={"size": 8, "color": TRIED, "line": {"width": 0}},
    )
    if failed:
        # A cross at the height of the worst, which says that it failed.
        worst = (max if better == "lower" else min)(y[finite], default=0.0)
        add(
            "failed",
            failed,
            np.full(len(failed), worst),
            "failed on a seed",
            mode="markers+text",
            text=["failed"] * len(failed),
            textposition="bottom center",
            textfont={"size": 11},
            marker={"symbol": "x", "size": 9, "color": "#AA4499"},
            cliponaxis=False,
        )
    if tuned.chosen in finite:
        ring = {"symbol": "circle-open", "size": 17, "color": CHOSEN, "line": {"width": 3}}
        add("chosen", [tuned.chosen], y[[tuned.chosen]], "%{y:.5~g}, chosen", marker=ring)
    lay_out(figure, height=260, x=key, y=label, values=[y[finite]] if finite else [])
    axis: dict[str, Any] = value_axis([floats(x)]) if is_number else {"type": "category"}
    distinct = sorted(set(x))
    if is_number and len(distinct) <= _MOST_TICKS:
        axis |= {"tickmode": "array", "tickvals": distinct, "ticktext": list(map(value_words, distinct))}
    figure.update_xaxes(**axis)
    figure.update_layout(margin={"t": 20})
    return figure


def _told(tuned: TuningResult, index: int) -> str:
    return f"<b>{escape(configuration_words(tuned.configurations[index]))}</b>"


def _heatmap(tuned: TuningResult, label: str, better: Better) -> go.Figure:
    """A cell per configuration, coloured by its rank: one value that explodes would leave the others one colour."""
    across, down = tuned.space
    columns, rows = _distinct(tuned, across), _distinct(tuned, down)
    at = {(configuration[down], configuration[across]): i for i, configuration in enumerate(tuned.configurations)}
    index = np.array([[at[row, column] for column in columns] for row in rows])
    values = floats(tuned.values)
    ranks = np.full(len(values), np.nan)
    finite = np.flatnonzero(np.isfinite(values))
    sign = 1.0 if better == "lower" else -1.0
    ranks[finite[np.argsort(sign * values[finite], kind="stable")]] = np.linspace(0, 1, len(finite))
    texts = [number_of(value) for value in tuned.values]
    hovers = [f"{_told(tuned, i)}<br>{escape(label)} {text}" for i, text in enumerate(texts)]
    texts[tuned.chosen] = f"<b>{texts[tuned.chosen]}</b>"
    # A failed one has no colour; its text stands on the page itself.
    shown = [[texts[i] if np.isfinite(values[i]) else "" for i in row] for row in index]
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
            customdata=[[hovers[i] for i in row] for row in index],
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            xgap=2,
            ygap=2,
            name="tried",
        )
    )
    lay_out(figure, height=96 + 40 * len(rows), x=across, y=down)
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
    return sorted(found, key=float) if all(map(_is_number, found)) else found


# The page


def tuning_content(study: StudySpec, result: CellResult) -> dict[str, Any] | None:
    """What ``tuning.html.jinja`` asks for; ``None`` where nothing was searched."""
    searches = searches_of(study, result)
    found = [search for search in searches if search.tuned.space]
    if not found:
        return None
    task = get_task(result.cell.task)
    label, is_grid = validation_label(task), study.tuning.sampler == "grid"
    return {
        "words": tuning_words(study),
        "better": task.direction,
        "table": searches_table(searches, label),
        "figures": {s.name: search_figures(s.tuned, label, task.direction, is_grid=is_grid) for s in found},
        "configurations": {s.name: configurations_table(s.tuned, label) for s in found},
    }

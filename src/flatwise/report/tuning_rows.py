"""The searches of a cell in words: what was tried, what was chosen, and what a reader should be warned of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flatwise.report.rows import listing, number_of
from flatwise.study.arms import VANILLA
from flatwise.study.plan import TuningResult
from flatwise.study.results import CellResult
from flatwise.study.search import Configuration
from flatwise.study.spec import Choices, Range, Space, StudySpec, Times, Value

# A sampler never draws a range's very end: this share of the range counts as its edge.
_EDGE = 0.05


@dataclass(frozen=True, slots=True)
class SearchRow:
    """One search as text.

    Attributes:
        name: the arm, or ``"baseline"`` for the search that all arms start from.
        is_baseline: whether it is that.
        searched: the space in words; empty where nothing was searched.
        count: number of configurations.
        chosen: the chosen configuration in words.
        value: its validation value.
        warnings: sentences; may be empty.
        tuned: the search itself.
    """

    name: str
    is_baseline: bool
    searched: tuple[str, ...]
    count: int
    chosen: str
    value: str
    warnings: tuple[str, ...]
    tuned: TuningResult


def search_rows(study: StudySpec, result: CellResult) -> list[SearchRow]:
    """The searches of a cell, the baseline's first."""
    spaces = {arm.name: arm.space for arm in study.arms}
    found = [] if result.baseline is None else [_row(result.baseline, study.tuning.baseline, is_baseline=True)]
    return found + [_row(tuned, spaces[tuned.arm], is_baseline=False) for tuned in result.tuned]


def _row(tuned: TuningResult, space: Space, *, is_baseline: bool) -> SearchRow:
    return SearchRow(
        name="baseline" if is_baseline else tuned.arm,
        is_baseline=is_baseline,
        searched=tuple(f"{key}: {dimension_words(dimension)}" for key, dimension in space.items()),
        count=len(tuned.configurations) if tuned.space else 0,
        chosen=configuration_words(tuned.choice),
        value=number_of(tuned.values[tuned.chosen]),
        warnings=tuple(search_warnings(tuned, space)) if tuned.space else (),
        tuned=tuned,
    )


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
    spaces = {arm.name: arm.space for arm in study.arms}
    found: dict[str, list[str]] = {}
    for result in results:
        searches = [(tuned.arm, tuned, spaces[tuned.arm]) for tuned in result.tuned]
        if result.baseline is not None:
            searches.insert(0, ("the baseline", result.baseline, study.tuning.baseline))
        names = [
            name
            for name, tuned, space in searches
            if any(edge_of(key, tuned, space) for key in tuned.space) and math.isfinite(tuned.values[tuned.chosen])
        ]
        if names:
            found[result.cell.name] = names
    return found


def dimension_words(dimension: Choices | Times | Range) -> str:
    """``"0.1, 0.05"``, ``"the baseline's × 0.5, 1, 2"`` or ``"0.001 to 0.1, on a logarithmic scale"``."""
    if isinstance(dimension, Choices):
        return ", ".join(map(value_words, dimension.values))
    if isinstance(dimension, Times):
        return f"the baseline's × {', '.join(map(value_words, dimension.times))}"
    scale = ", on a logarithmic scale" if dimension.log else ""
    return f"{value_words(dimension.low)} to {value_words(dimension.high)}{scale}"


def configuration_words(configuration: Configuration | Mapping[str, Value]) -> str:
    """``"learning_rate = 0.1 and sigma = 0.05"``; empty for a configuration that changes nothing."""
    parts = [f"{key} = {value_words(value)}" for key, value in configuration.items()]
    return listing(parts) if parts else ""


def value_words(value: object) -> str:
    """A setting's value as it stands in a study file; a computed number with six digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(value_words, value))}]"
    return str(value)

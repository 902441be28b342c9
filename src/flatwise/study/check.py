"""All that can be known to be wrong with a study before its first trial."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from flatwise.study.arms import Arm, ArmError, arguments_of, with_controls
from flatwise.study.hints import did_you_mean
from flatwise.study.plan import arm_with
from flatwise.study.registry import UnknownTaskError, get_task
from flatwise.study.search import Configuration
from flatwise.study.spec import ArmSpec, CellSpec, Choices, Range, Space, StudyError, StudySpec, Times, Value
from flatwise.study.study_file import line_of
from flatwise.study.task import Settings, SettingsError, Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Location = tuple[int | str, ...]
# All of a grid is checked up to this size, a fraction of a second; of a larger one each value by itself.
_MOST_CONFIGURATIONS = 2000


def check_study(study: StudySpec, *, source: str | None = None, text: str | None = None) -> None:
    """Builds every task, arm and setting once, and the configurations of the search spaces as they would run.

    Of a grid with more than 2,000 configurations each value is tried once, the others at their first; of a range, its
    ends.

    Args:
        study: the study.
        source: what messages call the study's file; default: they name no file.
        text: its content, for the line of what is wrong; default: they name no line.

    Raises:
        StudyError: one of them cannot be built; the message says which, in which cell or arm, and on which line.
    """
    for cell in study.cells:
        place = _Place(f"study {study.name}, cell {cell.name!r}", _location_of(cell, text), source, text)
        task, settings = _built(study, cell, place)
        starts = _checked_baseline(study, task, settings, place)
        arms = [
            _checked_arm(
                arm, task, settings, starts, replace(place, what=f"{place.what}, arm {arm.name!r}", at=("arms", i))
            )
            for i, arm in enumerate(study.arms)
        ]
        # An arm that does the same as vanilla with one configuration may need a control with another.
        for chosen in zip(*arms, strict=True):
            _check_names(chosen, study, place)


@dataclass(frozen=True)
class _Place:
    """Where something stands, in words and in the file."""

    what: str
    at: Location
    source: str | None
    text: str | None

    def error(
        self, problem: object, candidates: Sequence[Location] = (), tried: Configuration | None = None
    ) -> StudyError:
        """The error with its line: that of the first candidate whose key the problem names, else the place's.

        What was tried together is told too where it is more than one value: each may be right by itself.
        """
        named = (each for each in candidates if re.search(rf"(?<!\w){re.escape(str(each[-1]))}(?!\w)", str(problem)))
        listed = ", ".join(f"{key} = {value!r}" for key, value in (tried or {}).items())
        more = f" (with {listed})" if tried and len(tried) > 1 else ""
        return StudyError(f"{self._front(next(named, self.at))}{self.what}: {problem}{more}")

    def _front(self, at: Location) -> str:
        if self.source is None or self.text is None:
            return ""
        line = line_of(self.text, at)
        return f"{self.source}: " if line is None else f"{self.source}, line {line}: "


def _location_of(cell: CellSpec, text: str | None) -> Location:
    """A cell's place in the file, by name: the study may be one of some of the file's cells."""
    cells = tomllib.loads(text).get("cells", []) if text is not None else []
    names = [each.get("name", each.get("task")) for each in cells]
    return ("cells", names.index(cell.name)) if cell.name in names else ("task",)


def _built(study: StudySpec, cell: CellSpec, place: _Place) -> tuple[Task, Settings]:
    """The task and its settings in a cell."""
    try:
        task = get_task(cell.task)
        settings = task.settings.updated({**study.settings, **cell.settings})
    except (UnknownTaskError, SettingsError) as error:
        own = _keys((*place.at, "settings"), cell.settings)
        raise place.error(error, (*own, *_keys(("settings",), study.settings))) from None
    if task.metric == task.validation_metric:
        raise place.error(f"the task {cell.task!r} tunes and judges by the same metric: it needs one for each")
    return task, settings


def _checked_baseline(study: StudySpec, task: Task, settings: Settings, place: _Place) -> list[Configuration]:
    """What vanilla's first search may choose, the configurations that arms start from."""
    space, at = study.tuning.baseline, ("tuning", "baseline")
    place = replace(place, what=f"{place.what}, tuning.baseline", at=at)
    _check_dimensions(space, task, (), place)
    starts = list(_configurations(space, settings.model_dump(), place))
    for start in starts:
        try:
            settings.updated(start)
        except SettingsError as error:
            raise place.error(error, _keys(at, space), start) from None
    return starts


def _checked_arm(
    arm: ArmSpec, task: Task, settings: Settings, starts: Sequence[Configuration], place: _Place
) -> tuple[Arm, Arm]:
    """Builds an arm in its configurations, from each of the baseline's where they are not too many.

    Returns:
        The arm in the first and in the last of them.
    """
    try:
        own = arguments_of(arm.method)
    except ArmError as error:
        raise replace(place, at=(*place.at, "method")).error(error) from None
    _check_dimensions(arm.space, task, tuple(own), place)
    tables: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("space", arm.space),
        ("settings", arm.settings),
        ("arguments", arm.arguments),
    )
    candidates = [key for table, fields in tables for key in _keys((*place.at, table), fields)]
    # What names no key, such as a method's own error, is most likely about what is tuned.
    place = replace(place, at=next(iter(candidates), place.at))
    built: list[Arm] = []
    for start, configuration in _joint(arm, settings, own, starts, place):
        try:
            made = arm_with(arm, start, configuration)
            settings.updated(made.settings)
        except (ArmError, SettingsError, OverflowError) as error:
            raise place.error(error, candidates, {**start, **configuration}) from None
        built = [built[0] if built else made, made]
    return built[0], built[1]


def _joint(
    arm: ArmSpec, settings: Settings, own: Mapping[str, float], starts: Sequence[Configuration], place: _Place
) -> Iterator[tuple[Configuration, Configuration]]:
    """An arm's configurations, each with the baseline's that it starts from; of too many, all from the first."""
    fixed = {**own, **arm.arguments}
    for number, start in enumerate(starts):
        base = {**settings.model_dump(), **start, **arm.settings, **fixed}
        configurations = list(_configurations(arm.space, base, place))
        if number and len(starts) * len(configurations) > _MOST_CONFIGURATIONS:
            configurations = configurations[:1]
        yield from ((start, configuration) for configuration in configurations)


def _configurations(space: Space, base: Mapping[str, Any], place: _Place) -> Iterator[Configuration]:
    """The whole grid, or of a large one each value on top of the first configuration; of no space, the empty one."""
    values = {key: _values(key, dimension, base, place) for key, dimension in space.items()}
    if math.prod(map(len, values.values())) <= _MOST_CONFIGURATIONS:
        yield from (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
        return
    first = {key: listed[0] for key, listed in values.items()}
    yield first
    yield from ({**first, key: value} for key, listed in values.items() for value in listed[1:])


def _values(key: str, dimension: Choices | Times | Range, base: Mapping[str, Any], place: _Place) -> list[Value]:
    if isinstance(dimension, Choices):
        return list(dimension.values)
    if isinstance(dimension, Range):
        return [dimension.low, dimension.high]
    if isinstance(base[key], bool) or not isinstance(base[key], (int, float)):
        raise place.error(f"{key} = {base[key]!r} is no number, so it cannot be multiplied: list its values")
    return [base[key] * factor for factor in dimension.times]


def _check_dimensions(space: Space, task: Task, own: tuple[str, ...], place: _Place) -> None:
    """What is tuned exists, and can have such values as its space has."""
    fields = type(task.settings).model_fields
    known = (*own, *fields)
    for key, dimension in space.items():
        where = (*place.at, key) if place.at[0] == "tuning" else (*place.at, "space", key)
        there = replace(place, at=where)
        if key not in known:
            hint = did_you_mean(key, known)
            raise there.error(f"there is nothing to tune called {key!r}: {hint}There are {', '.join(known)}")
        if key in own:
            _check_numbers(key, dimension, there)
        elif isinstance(dimension, Range) and _is_whole(fields[key].annotation):
            raise there.error(f"{key} cannot be a range, which is for real numbers: list its values")


def _check_numbers(key: str, dimension: Choices | Times | Range, place: _Place) -> None:
    """Methods compare and multiply their arguments: a text would be a TypeError from somewhere inside."""
    for value in dimension.values if isinstance(dimension, Choices) else ():
        if isinstance(value, (str, bool)):
            raise place.error(f"{key} = {value!r} is no number, and an argument of a method must be one")


def _is_whole(annotation: Any) -> bool:
    """Whether a setting is a whole number or a truth value, which a sampler of real numbers would not respect."""
    kinds = get_args(annotation) or (annotation,)
    return float not in kinds and (int in kinds or bool in kinds)


def _check_names(arms: Sequence[Arm], study: StudySpec, place: _Place) -> None:
    """The arms have names of their own, among the controls that are made for them."""
    try:
        with_controls(arms, controls=study.final.controls)
    except ArmError as error:
        at: list[Location] = [("arms", i, "name") for i, arm in enumerate(study.arms) if repr(arm.name) in str(error)]
        raise replace(place, at=next(iter(at), ("arms",))).error(error) from None


def _keys(table: Location, fields: Mapping[str, Any]) -> list[Location]:
    return [(*table, key) for key in fields]

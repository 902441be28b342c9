"""All that can be known to be wrong with a study before its first trial."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from flatter.study.arms import ArmError, arguments_of
from flatter.study.plan import arm_with
from flatter.study.search import Configuration
from flatter.study.spec import ArmSpec, CellSpec, Choices, Range, Space, StudyError, StudySpec, Times
from flatter.study.spec.space import Value
from flatter.study.tasks import SettingsError, Task, UnknownTaskError, get_task


def check_study(study: StudySpec) -> None:
    """Builds every task, arm and setting once, and every value of every search space.

    Raises:
        StudyError: one of them cannot be built; the message says which, in which cell or arm.
    """
    for cell in study.cells:
        try:
            task = get_task(cell.task)
            task.settings.updated({**study.settings, **cell.settings})
        except (UnknownTaskError, SettingsError) as error:
            raise StudyError(f"study {study.name}, cell {cell.name!r}: {error}") from None
        if task.metric == task.validation_metric:
            raise StudyError(f"the task {cell.task!r} tunes and judges by the same metric: it needs one for each")
        for key in study.tuning.baseline:
            _check_setting(f"study {study.name}, tuning.baseline", key, task, ())
        _check_values(study, cell, task, ArmSpec(method="vanilla"), study.tuning.baseline, "tuning.baseline")
        for arm in study.arms:
            _check_values(study, cell, task, arm, arm.space, f"arm {arm.name!r}")


def _check_values(study: StudySpec, cell: CellSpec, task: Task, arm: ArmSpec, space: Space, where: str) -> None:
    where = f"study {study.name}, cell {cell.name!r}, {where}"
    try:
        own = tuple(arguments_of(arm.method))
        base = task.settings.updated({**study.settings, **cell.settings, **arm.settings})
        for key in space:
            _check_setting(where, key, task, own)
        for configuration in _each_value(space, {**base.model_dump(), **arguments_of(arm.method), **arm.arguments}):
            built = arm_with(arm, {}, configuration)
            base.updated(built.settings)
    except (ArmError, SettingsError) as error:
        raise StudyError(f"{where}: {error}") from None


def _check_setting(where: str, key: str, task: Task, own: tuple[str, ...]) -> None:
    known = (*own, *type(task.settings).model_fields)
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise StudyError(f"{where}: there is nothing to tune called {key!r}: {hint}There are {', '.join(known)}")


def _each_value(space: Space, base: dict[str, Any]) -> Iterator[Configuration]:
    """Every value of every dimension once, the others left alone; without a space, the arm as it is."""
    yield {}
    for key, dimension in space.items():
        if isinstance(dimension, Choices):
            yield from ({key: value} for value in dimension.values)
        elif isinstance(dimension, Range):
            ends: list[Value] = [dimension.low, dimension.high]
            yield from ({key: value} for value in ends)
        elif isinstance(dimension, Times):
            if isinstance(base[key], bool) or not isinstance(base[key], (int, float)):
                raise SettingsError(f"{key} = {base[key]!r} is no number, so it cannot be multiplied: list its values")
            factors: list[Value] = [base[key] * factor for factor in dimension.times]
            yield from ({key: value} for value in factors)

"""What is trained and judged, from a task and its settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from flatter.study.comparison import Subject
from flatter.study.identify import identify, plain_data
from flatter.study.tasks import Settings, SettingsError, Task


def subject_of(task: Task, settings: Settings) -> Subject:
    """What a task's trials are known by: its settings, and the code of a task of the user's own.

    Raises:
        NotIdentifiableError: a task of the user's own that depends on what cannot be seen.
        SettingsError: settings that are not plain data.
    """
    values = plain_settings(task.name, settings)
    return Subject(task.name, task.metric, task.unit, task.better, values, code_of(task))


def plain_settings(task: str, settings: Settings) -> dict[str, Any]:
    """Settings as plain data, by name.

    Args:
        task: name of the task, for the message.
        settings: the settings.

    Raises:
        SettingsError: one of them is not plain data.
    """
    try:
        return {name: plain_data(value) for name, value in settings}
    except TypeError as error:
        raise SettingsError(
            f"the settings of {task} must be plain data, such as numbers, text, paths and dataclasses of these: {error}"
        ) from None


def trained_with(task: Task, values: Mapping[str, Any]) -> Settings:
    """The task's settings that :func:`plain_settings` gave these values of.

    What the task itself has is kept as it is: not everything can be read back from its plain form.

    Raises:
        SettingsError: a value that the task refuses.
    """
    known = plain_settings(task.name, task.settings)
    return task.settings.updated({name: value for name, value in values.items() if value != known.get(name, _NOTHING)})


def code_of(task: Task) -> str:
    """A text that changes with the code of a user's own task; empty for a built-in one, which has a version.

    It is found once, before the first trial of a study: what a training does to its own globals, such as a cache of
    its data, makes it no other.
    """
    if not task.is_own:
        return ""
    return _code_of(task.train, task.load)


@functools.lru_cache(maxsize=256)
def _code_of(train: Callable[..., Any], load: Callable[..., Any]) -> str:
    return f"{identify(train, stored=True)}, {identify(load, stored=True)}"


def look_at_code_again() -> None:
    """Forgets what tasks of the user's own are known by: a study starts, and their globals may have changed."""
    _code_of.cache_clear()


_NOTHING = object()

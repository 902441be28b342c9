"""What is trained and judged, from a task and its settings."""

from __future__ import annotations

import json

from flatter.study.comparison import Subject
from flatter.study.identify import identify
from flatter.study.tasks import Settings, SettingsError, Task


def subject_of(task: Task, settings: Settings) -> Subject:
    """What a task's trials are known by: its settings, and the source of a task of the user's own.

    Raises:
        NotIdentifiableError: a task of the user's own that depends on what cannot be seen.
        SettingsError: settings that are not plain data.
    """
    values = settings.model_dump()
    try:
        json.dumps(values)
    except (TypeError, ValueError) as error:
        raise SettingsError(
            f"the settings of {task.name} must be plain data, such as numbers and text: {error}"
        ) from None
    return Subject(task.name, task.metric, task.unit, task.direction, values, code_of(task))


def code_of(task: Task) -> str:
    """A text that changes with the source of a user's own task; empty for a built-in one, which has a version."""
    if not task.is_own:
        return ""
    return f"{identify(task.train, stored=True)}, {identify(task.load, stored=True)}"

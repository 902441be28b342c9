"""What is trained and judged, from a task and its settings."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import create_model
from typing_extensions import Self

from flatwise.stats import Better
from flatwise.study.arms import Arm
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.identify import identify, plain_data
from flatwise.study.provenance import versions
from flatwise.study.task import Settings, SettingsError, Task, TaskData
from flatwise.study.trial import Trial


@dataclass(frozen=True, slots=True)
class Subject:
    """What is trained and judged.

    Attributes:
        name: name of the task, or of the user's training function.
        metric: the reported metric that is judged, by its value after the final epoch, such as ``"test_error"``.
        unit: its unit, such as ``"%"``; may be empty.
        better: ``"lower"`` or ``"higher"``.
        settings: all that the training depends on besides arm and seed, as plain data.
        code: a text that changes with the training function, where that is the user's own; else empty.
    """

    name: str
    metric: str
    unit: str
    better: Better
    settings: Mapping[str, Any]
    code: str = ""

    @property
    def family(self) -> str:
        """Hash of what arms are judged on: those of one family of tests have it in common, whatever the versions."""
        content = [self.name, self.metric, dict(self.settings), self.code]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrialSpec:
    """What a trial is. Two with one key are the same trial, and it is run once.

    Attributes:
        subject: what is trained and judged.
        arm: the arm.
        seed: the seed.
        threads: torch's CPU threads where the study fixes them; ``None``: left as they are.
        tuning: whether it is run to choose settings, not to be judged; no part of what it is.
        flatness: what to measure of its final model; no part of what it is. Default: nothing.
    """

    subject: Subject
    arm: Arm
    seed: int
    threads: int | Literal["fair"] | None = None
    tuning: bool = False
    flatness: FlatnessSettings | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The subject's settings with the arm's changes."""
        return {**self.subject.settings, **self.arm.settings}

    def to_dict(self) -> dict[str, Any]:
        """All that decides the outcome, but for the versions, as plain data."""
        content = {
            "task": self.subject.name,
            "metric": self.subject.metric,
            "arm": self.arm.to_dict(),
            "seed": self.seed,
            "settings": self.settings,
        }
        if self.threads not in (None, 1):  # one thread is what the built-in tasks always had
            content["threads"] = self.threads
        if self.subject.code:
            content["code"] = self.subject.code
        return content

    @cached_property
    def key(self) -> str:
        """Hash of all that decides the outcome: the specification and the versions that it runs under."""
        content = [*self.to_dict().values(), versions()]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def subject_of(task: Task, settings: Settings) -> Subject:
    """What identifies a task's trials: its settings and, for a user's own task, its code.

    Raises:
        NotIdentifiableError: the user's own task depends on a value that cannot be identified.
        SettingsError: the settings are not plain data.
    """
    values = plain_settings(task.name, settings)
    return Subject(task.name, task.metric, task.unit, task.direction, values, code_of(task))


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
    """The settings whose :func:`plain_settings` are these values.

    A value equal to the task's own is taken from the task, because not everything can be read back from plain data.

    Raises:
        SettingsError: a value that the task refuses.
    """
    known = plain_settings(task.name, task.settings)
    return task.settings.updated({name: value for name, value in values.items() if value != known.get(name, _NOTHING)})


def describe(task: Task) -> dict[str, Any]:
    """A user's own task as plain data, without its functions; :func:`remembered_task` is the inverse."""
    fields = type(task.settings).model_fields
    kinds = {kind: name for name, kind in _KINDS.items()}
    return {
        "summary": task.summary,
        "metric": task.metric,
        "validation_metric": task.validation_metric,
        "unit": task.unit,
        "better": task.better,
        "code": code_of(task),
        "settings": plain_settings(task.name, task.settings),
        "kinds": {name: kinds.get(_plain_kind(field.annotation), "any") for name, field in fields.items()},
    }


def updated(task: Task, settings: Settings, changes: Mapping[str, Any], note: Note | None) -> Settings:
    """Settings with changes.

    Args:
        task: the task.
        settings: settings of the task.
        changes: by name.
        note: callback that keeps the result of a user's own task, whose validation may do anything; ``None``: none.

    Raises:
        SettingsError: a name or a value that the task refuses.
    """
    result = settings.updated(changes)
    if note is not None and task.is_own:
        note(task.name, _update_key(plain_settings(task.name, settings), changes), plain_settings(task.name, result))
    return result


def remembered_task(name: str, notes: Mapping[str, Any]) -> Task:
    """A user's own task restored from the store without its code: it can be planned, but not trained.

    Args:
        name: the task's name.
        notes: by key: the result of :func:`describe` under ``""``, and what :func:`updated` noted.
    """
    known = notes[""]
    fields: dict[str, Any] = {name: (_KINDS[known["kinds"][name]], value) for name, value in known["settings"].items()}
    kind = create_model("Settings", __base__=_RememberedSettings, **fields)
    kind._notes = notes
    return Task(
        name=name,
        summary=known["summary"],
        settings=kind.model_validate({}),
        load=_no_load,
        train=_no_train,
        metric=known["metric"],
        validation_metric=known["validation_metric"],
        unit=known["unit"],
        better=known["better"],
        is_own=True,
        code=known["code"],
    )


Note = Callable[[str, str, Any], None]
_KINDS: dict[str, Any] = {"float": float, "int": int, "bool": bool, "any": Any}


def _plain_kind(annotation: Any) -> Any:
    return annotation if annotation in (float, int, bool) else None


class _RememberedSettings(Settings):
    """Settings of a task that is not imported: without types, but with the results of earlier changes."""

    _notes: ClassVar[Mapping[str, Any]] = {}

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """See :meth:`Settings.updated`."""
        known = self._notes.get(_update_key(plain_settings("", self), changes))
        return super().updated(changes) if known is None else self.model_construct(**known)


def _update_key(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    return sha256(json.dumps([settings, plain_data(changes)], sort_keys=True).encode()).hexdigest()


def _no_load(data_dir: Path | None) -> TaskData:
    raise NotImplementedError("a task that was not imported has no data")


def _no_train(trial: Trial, settings: Any, data: Any) -> None:
    raise NotImplementedError("a task that was not imported cannot train")


def code_of(task: Task) -> str:
    """A text that changes with a task's code: of a user's own, what it names; of a plugin's, the package's version.

    It is computed once, before a study's first trial, so a training may change its own globals, such as a data cache.
    """
    if task.code is not None:
        return task.code
    if not task.is_own:
        return ""
    return _code_of(task.train, task.load)


@functools.lru_cache(maxsize=256)
def _code_of(train: Callable[..., Any], load: Callable[..., Any]) -> str:
    return f"{identify(train, stored=True)}, {identify(load, stored=True)}"


def look_at_code_again() -> None:
    """Forget the code of the user's own tasks, because their globals may have changed since the last study."""
    _code_of.cache_clear()


_NOTHING = object()

"""One trial from its specification alone: what an executor runs, in this process or on another machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from flatwise.study.machine import git_state, versions
from flatwise.study.records import Record
from flatwise.study.registry import get_task
from flatwise.study.runner import TrialSpec, Watcher, run_trial
from flatwise.study.spec import StudyError
from flatwise.study.subjects import code_of, trained_with
from flatwise.study.task import TaskData
from flatwise.study.tasks.classification import DataError
from flatwise.study.trial import Trial


@dataclass(frozen=True)
class Work:
    """Trains a trial of a built-in or importable task and returns its record. It travels: it is plain data.

    Attributes:
        data_dir: folder of data files, on the machine where the trial runs; default: ``FLATWISE_DATA``, else a cache.
        versions: those of the program that asks: a trial is not run under others.
        git: the state of the code, for the record.
    """

    data_dir: Path | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    git: Mapping[str, str] = field(default_factory=git_state)

    def __call__(self, spec: TrialSpec, watcher: Watcher | None = None) -> Record:
        """Runs the trial. What its training raises is its outcome.

        Raises:
            StudyError: this machine has other versions, or another source of the task, than the one that asks.
            SettingsError: the device is not there.
            DataError: the data are missing or corrupt, or a task of the user's own could not load them.
            TrialError: a task of the user's own does not use its trial as it must.
        """
        if versions() != self.versions:
            raise StudyError(
                f"a worker has other versions ({_listed(versions())}) than the study ({_listed(self.versions)}): "
                "install the same on every machine"
            )
        task = get_task(spec.subject.name)
        if code_of(task) != spec.subject.code:
            raise StudyError(
                f"the source of the task {task.name} is another here than where the study was started, or was changed "
                "since: start the study again, with the same source on every machine"
            )
        settings = trained_with(task, spec.settings)
        settings.check_device()
        data = _load(task.load, self.data_dir if task.reads_files else None)
        if spec.subject.metric == task.validation_metric:
            data = _without_test(data)  # what tuning cannot see it cannot choose on

        def train(trial: Trial) -> None:
            task.train(trial, settings, data)

        with _threads(spec.threads):
            record = run_trial(spec, train, watcher or _Nobody())
        return replace(record, environment={**(record.environment or {}), **self.git})


@functools.lru_cache(maxsize=8)
def _load(load: Callable[[Path | None], TaskData], data_dir: Path | None) -> TaskData:
    """The data stay in the process from one trial to the next, also where the trials of several cells take turns."""
    try:
        return load(data_dir)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"the task's data cannot be loaded: {type(error).__name__}: {error}") from error


def _without_test(data: TaskData) -> TaskData:
    try:
        return data.without_test()
    except AttributeError as error:
        raise DataError(f"what the task's load returns needs a method without_test(): {error}") from None


@contextmanager
def _threads(wanted: int | str | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if isinstance(wanted, int):
        torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Nobody:
    """A callback that does nothing; used on remote workers."""

    def started(self, spec: TrialSpec, number: int, total: int) -> None: ...

    def reported(self, spec: TrialSpec, epoch: int, metrics: Mapping[str, float]) -> None: ...

    def measuring(self, spec: TrialSpec, what: str, done: int, of: int) -> None: ...

    def ended(self, spec: TrialSpec, record: Record, number: int, total: int) -> None: ...


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())

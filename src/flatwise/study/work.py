"""One trial from its specification alone: what an executor runs, in this process or on another machine."""

from __future__ import annotations

import functools
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from flatwise.study.arms import VANILLA
from flatwise.study.identify import identify
from flatwise.study.provenance import environment, git_state, peak_memory, start_memory_count, versions
from flatwise.study.registry import get_task
from flatwise.study.spec import StudyError
from flatwise.study.store import Record
from flatwise.study.subjects import TrialSpec, code_of, trained_with
from flatwise.study.task import Task, TaskData
from flatwise.study.tasks.classification import DataError
from flatwise.study.trial import ShortTrialError, Trial, TrialError

TrainFunction = Callable[[Trial], None]
FUNCTION_SETTING = "training function"  # under this name a subject's settings have the identity of a user's function


@dataclass(frozen=True, slots=True)
class Round:
    """A round of trials, which can all run at once, before it starts.

    Attributes:
        missing: trials that are run now.
        planned: trials of the round, including those that the store holds.
        remeasured: those of the missing that are finished, but whose flatness was not measured as it is asked for.
        stored: trials in the store before the study was started, of this study and of others.
    """

    missing: int
    planned: int
    remeasured: int = 0
    stored: int = 0


class Callback:
    """Callback for progress events. This one does nothing; a subclass overrides what it needs.

    Nothing is reported from a trial that runs in another process: only that it ended.
    """

    def on_reused(self, spec: TrialSpec, record: Record) -> None:
        """A trial of the next round is in the store already; called once per trial."""

    def on_round_start(self, start: Round) -> None:
        """A round starts."""

    def on_trial_start(self, spec: TrialSpec) -> None:
        """A trial starts in this process."""

    def on_epoch(self, spec: TrialSpec, epoch: int, metrics: Mapping[str, float]) -> None:
        """It reported an epoch, from 0."""

    def on_measure(self, spec: TrialSpec, what: str, done: int, of: int) -> None:
        """Its final model is measured: ``done`` of at most ``of`` steps of one measure."""

    def on_trial_end(self, spec: TrialSpec, record: Record) -> None:
        """A trial ended, and its record is in the store."""


@dataclass(frozen=True)
class Work:
    """Trains a trial and returns its record. It is sent to workers: it is plain data, if ``train`` is.

    Attributes:
        data_dir: folder of data files, on the machine where the trial runs; default: ``FLATWISE_DATA``, else a cache.
        train: the training function of trials that belong to no task; default: the task that the trial names.
        raise_in_vanilla: whether what the training raises in the vanilla arm ends the run: without vanilla there is no
            comparison. Default: it is the trial's outcome, as in every other arm.
        versions: those of the program that asks: a trial is not run under others.
        git: the state of the code, for the record.
    """

    data_dir: Path | None = None
    train: TrainFunction | None = None
    raise_in_vanilla: bool = False
    versions: Mapping[str, str] = field(default_factory=versions)
    git: Mapping[str, str] = field(default_factory=git_state)
    _process: int = field(default_factory=os.getpid)

    def __call__(self, spec: TrialSpec, callback: Callback | None = None) -> Record:
        """Run the trial. What its training raises is its outcome.

        Args:
            spec: the trial.
            callback: is called with the trial's progress. Default: none.

        Raises:
            StudyError: this machine has other versions, or another source of the task or function, than the one that
                asks.
            SettingsError: the device is not there.
            DataError: the data are missing or corrupt, or a task of the user's own could not load them.
            TrialError: the training function does not use its trial as it must.
            Exception: what the training raised in the vanilla arm, with ``raise_in_vanilla``.
        """
        if versions() != self.versions:
            raise StudyError(
                f"a worker has other versions ({_listed(versions())}) than the study ({_listed(self.versions)}): "
                "install the same on every machine"
            )
        train = self._task_training(spec) if self.train is None else self._checked(self.train, spec)
        with _threads(spec.threads):
            record = run_trial(
                spec, train, callback or Callback(), failures=spec.arm.name != VANILLA or not self.raise_in_vanilla
            )
        return replace(record, environment={**(record.environment or {}), **self.git})

    def _checked(self, train: TrainFunction, spec: TrialSpec) -> TrainFunction:
        """The training function. In another process it must be the one that the trial's key names."""
        expected = spec.subject.settings[FUNCTION_SETTING]
        if os.getpid() != self._process and expected not in _CHECKED:
            if identify(train, stored=False) != expected:
                raise StudyError(
                    "the training function, or a value that it depends on, is another in a worker than in this "
                    "program: let it depend only on what its module defines when it is imported"
                )
            _CHECKED.add(expected)  # a training may change its own globals, such as a data cache
        return train

    def _task_training(self, spec: TrialSpec) -> TrainFunction:
        task = get_task(spec.subject.name)
        if code_of(task) != spec.subject.code:
            raise StudyError(
                f"the source of the task {task.name} is another here than where the study was started, or was changed "
                "since: start the study again, with the same source on every machine"
            )
        settings = trained_with(task, spec.settings)
        settings.check_device()
        data = load_data(task, self.data_dir if task.reads_files else None)
        if spec.subject.metric == task.validation_metric:
            data = _without_test(data)  # what tuning cannot see it cannot choose on
        return lambda trial: task.train(trial, settings, data)


_CHECKED: set[str] = set()  # identities of training functions that this process has compared with their functions


def load_data(task: Task, data_dir: Path | None) -> TaskData:
    """A task's data. They stay in the process, also where the trials of several cells take turns.

    They are loaded with one thread of torch, so that what is computed of them, such as a mean, does not depend on the
    number of cores.

    Raises:
        DataError: they are missing or corrupt, or a task of the user's own could not load them.
    """
    return _load(task.load, data_dir)


@functools.lru_cache(maxsize=8)
def _load(load: Callable[[Path | None], TaskData], data_dir: Path | None) -> TaskData:
    try:
        with _threads(1):
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


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def run_trial(spec: TrialSpec, train: TrainFunction, callback: Callback, *, failures: bool = True) -> Record:
    """Run one trial, whatever the store holds.

    Args:
        spec: the trial.
        train: the training function.
        callback: is called with its progress.
        failures: whether an exception in the training, and a training that ends before it said, is the trial's
            outcome (the default) or raised.

    Raises:
        TrialError: the training function does not use its trial as it must.
    """
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    clock = time.perf_counter()
    start_memory_count()
    trial = Trial(
        spec.arm,
        spec.seed,
        lambda epoch: callback.on_epoch(spec, len(trial.epochs) - 1, epoch),
        metric=spec.subject.metric,
        flatness=spec.flatness,
        on_measure=lambda what, done, of: callback.on_measure(spec, what, done, of),
    )
    callback.on_trial_start(spec)
    error: str | None = None
    where: str | None = None
    try:
        train(trial)
        trial.check_use()
        if spec.flatness is not None and trial.flatness is None:
            raise TrialError(
                "flatness is asked for, but the training function does not call trial.measure_flatness(model, loss, "
                "data) after its last report"
            )
    except TrialError as exception:
        if not failures or not isinstance(exception, ShortTrialError):
            raise
        error = f"{type(exception).__name__}: {exception}"
    except (Exception, SystemExit) as exception:
        if not failures:
            raise
        error = _as_text(f"{type(exception).__name__}: {exception}")
        where = _as_text("".join(traceback.format_exception(exception)))
    metric = spec.subject.metric
    if error is None and not math.isfinite(final := trial.epochs[-1].get(metric, math.nan)):
        error = f"final {metric} is {final}"
    return Record(
        key=spec.key,
        task=spec.subject.name,
        arm=spec.arm.name,
        seed=spec.seed,
        status="finished" if error is None else "failed",
        epochs=tuple(trial.epochs),
        error=error,
        versions=versions(),
        flatness=trial.flatness,
        spec=valid_json(spec.to_dict()),
        started=started,
        seconds=time.perf_counter() - clock,
        memory=peak_memory(),
        environment=environment(),
        traceback=where,
    )


def lost_trial(spec: TrialSpec, message: str) -> Record:
    """The record of a trial whose worker died: that is its outcome, since most often no memory was left.

    Args:
        spec: the trial.
        message: how the worker ended.
    """
    return Record(
        key=spec.key,
        task=spec.subject.name,
        arm=spec.arm.name,
        seed=spec.seed,
        status="failed",
        epochs=(),
        error=message,
        versions=versions(),
        spec=valid_json(spec.to_dict()),
    )


def _as_text(message: str) -> str:
    """A message may quote a file name that is no text: it must not keep the record from its store."""
    return message.encode(errors="backslashreplace").decode()


def valid_json(value: Any) -> Any:
    """Plain data in which a number that JSON lacks is text: SQLite's own functions read a record's specification."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: valid_json(item) for key, item in value.items()}
    return [valid_json(item) for item in value] if isinstance(value, (list, tuple)) else value

"""Runs the trials of a comparison one after the other and leaves a record of each."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal, Protocol

from flatwise.study.arms import VANILLA, Arm
from flatwise.study.comparison import Subject
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.machine import environment, peak_memory, start_memory_count, versions
from flatwise.study.records import Record, Status
from flatwise.study.store import Store
from flatwise.study.trial import ShortTrialError, Trial, TrialError

TrainFunction = Callable[[Trial], None]


@dataclass(frozen=True)
class TrialSpec:
    """What a trial is: two specifications that are equal are one trial, and it is run once.

    Attributes:
        subject: what is trained and judged.
        arm: the arm.
        seed: the seed.
        threads: torch's CPU threads where the study fixes them; ``None``: left as they are.
    """

    subject: Subject
    arm: Arm
    seed: int
    threads: int | Literal["fair"] | None = None

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


class Watcher(Protocol):
    """Who is told how the work goes."""

    def started(self, spec: TrialSpec, number: int, total: int) -> None:
        """A trial starts: ``number`` of ``total``, from 0."""

    def reported(self, spec: TrialSpec, epoch: int, metrics: Mapping[str, float]) -> None:
        """It reported an epoch, from 0."""

    def measuring(self, spec: TrialSpec, what: str, done: int, of: int) -> None:
        """Its final model is measured: ``done`` of at most ``of`` steps of one measure."""

    def ended(self, spec: TrialSpec, record: Record, number: int, total: int) -> None:
        """It ended, or was found in the store."""


def paired_trials(subject: Subject, arms: tuple[Arm, ...], seeds: tuple[int, ...]) -> list[TrialSpec]:
    """The trials in the order of their run.

    Seed by seed, so that arms share the machine's good and bad minutes, and each seed starts with another arm.
    """
    return [
        TrialSpec(subject, arms[(first + index) % len(arms)], seed)
        for first, seed in enumerate(seeds)
        for index in range(len(arms))
    ]


def run(
    specs: list[TrialSpec],
    train: TrainFunction,
    store: Store,
    watcher: Watcher,
    *,
    flatness: FlatnessSettings | None = None,
    retry_failed: bool = False,
) -> Iterator[Record]:
    """Runs every trial that the store does not hold yet, and yields the records of all.

    Args:
        specs: the trials.
        train: the training function.
        store: where records are kept.
        watcher: who is told.
        flatness: what to measure of the final models; default: nothing. A finished trial whose record lacks it, or
            has it by other settings, is run again, since models are not kept.
        retry_failed: run trials again that failed, or of whose flatness something could not be measured.

    Raises:
        TrialError: the training function does not use its trial as it must.
        StoreError: the store is damaged or cannot be written.
        Exception: whatever the training function raised in the vanilla arm: without it there is no comparison. In
            another arm it is a failed trial's outcome.
    """
    for number, spec in enumerate(specs):
        record = _reused(spec, store, flatness, retry_failed)
        if record is None:
            store.check_writable()
            watcher.started(spec, number, len(specs))
            record = run_trial(spec, train, watcher, flatness=flatness, failures=spec.arm.name != VANILLA)
            store.put(record)
        # The key says what was done; the arm may have gone by another name when it was done.
        record = replace(record, arm=spec.arm.name)
        watcher.ended(spec, record, number, len(specs))
        yield record


def reused(
    specs: list[TrialSpec], store: Store, *, flatness: FlatnessSettings | None = None, retry_failed: bool = False
) -> Iterator[Record]:
    """The records that :func:`run`, called with the same arguments, would take from the store."""
    found = (_reused(spec, store, flatness, retry_failed) for spec in specs)
    return (record for record in found if record is not None)


def _reused(spec: TrialSpec, store: Store, flatness: FlatnessSettings | None, retry_failed: bool) -> Record | None:
    record = store.get(spec.key)
    if record is None or _lacks_flatness(record, flatness) or (retry_failed and _failed(record, flatness)):
        return None
    return record


def lacking_flatness(specs: list[TrialSpec], store: Store, flatness: FlatnessSettings | None) -> int:
    """How many finished trials of the store will be run again because their flatness was not measured, or otherwise."""
    records = (store.get(spec.key) for spec in specs)
    return sum(record is not None and _lacks_flatness(record, flatness) for record in records)


def _lacks_flatness(record: Record, flatness: FlatnessSettings | None) -> bool:
    if flatness is None or record.status == "failed":
        return False
    return record.flatness is None or record.flatness.settings != flatness.to_dict()


def _failed(record: Record, flatness: FlatnessSettings | None) -> bool:
    return record.status == "failed" or (flatness is not None and bool(record.flatness and record.flatness.missing))


def run_trial(
    spec: TrialSpec,
    train: TrainFunction,
    watcher: Watcher,
    *,
    flatness: FlatnessSettings | None = None,
    failures: bool = True,
) -> Record:
    """Runs one trial, whatever the store holds.

    Args:
        spec: the trial.
        train: the training function.
        watcher: who is told of its epochs.
        flatness: what to measure of the final model; default: nothing.
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
        lambda epoch: watcher.reported(spec, len(trial.epochs) - 1, epoch),
        metric=spec.subject.metric,
        flatness=flatness,
        on_measure=lambda what, done, of: watcher.measuring(spec, what, done, of),
    )
    error: str | None = None
    where: str | None = None
    try:
        train(trial)
        trial.check_use()
        if flatness is not None and trial.flatness is None:
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
    status: Status = "finished" if error is None else "failed"
    return Record(
        key=spec.key,
        task=spec.subject.name,
        arm=spec.arm.name,
        seed=spec.seed,
        status=status,
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

"""Runs the trials of a comparison one after the other and leaves a record of each."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

import torch

from flatter.study.arms import VANILLA, Arm
from flatter.study.comparison import Subject
from flatter.study.records import Record, Status
from flatter.study.store import Store
from flatter.study.trial import Trial, TrialError
from flatter.version import __version__

TrainFunction = Callable[[Trial], None]


@dataclass(frozen=True)
class TrialSpec:
    """What a trial is: two specifications that are equal are one trial, and it is run once.

    Attributes:
        subject: what is trained and judged.
        arm: the arm.
        seed: the seed.
    """

    subject: Subject
    arm: Arm
    seed: int

    @property
    def key(self) -> str:
        """Hash of all that decides the outcome: the specification and the versions that it runs under."""
        subject = self.subject
        content = [subject.name, subject.metric, self.arm.to_dict(), self.seed, subject.settings, versions()]
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Watcher(Protocol):
    """Who is told how the work goes."""

    def started(self, spec: TrialSpec, number: int, total: int) -> None:
        """A trial starts: ``number`` of ``total``, from 0."""

    def reported(self, spec: TrialSpec, epoch: int, metrics: Mapping[str, float]) -> None:
        """It reported an epoch, from 0."""

    def ended(self, spec: TrialSpec, record: Record, number: int, total: int) -> None:
        """It ended, or was found in the store."""


def versions() -> dict[str, str]:
    """The versions that decide a trial's outcome."""
    return {"flatter": __version__, "torch": torch.__version__, "python": platform.python_version()}


def plan(subject: Subject, arms: tuple[Arm, ...], seeds: tuple[int, ...]) -> list[TrialSpec]:
    """The trials in the order of their run.

    Seed by seed, so that arms share the machine's good and bad minutes, and each seed starts with another arm.
    """
    return [
        TrialSpec(subject, arms[(first + index) % len(arms)], seed)
        for first, seed in enumerate(seeds)
        for index in range(len(arms))
    ]


def run(
    specs: list[TrialSpec], train: TrainFunction, store: Store, watcher: Watcher, *, retry_failed: bool = False
) -> Iterator[Record]:
    """Runs every trial that the store does not hold yet, and yields the records of all.

    Args:
        specs: the trials.
        train: the training function.
        store: where records are kept.
        watcher: who is told.
        retry_failed: run failed trials again.

    Raises:
        TrialError: the training function does not use its trial as it must.
        StoreError: the store is damaged or cannot be written.
        Exception: whatever the training function raised in the vanilla arm: without it there is no comparison. In
            another arm it is a failed trial's outcome.
    """
    for number, spec in enumerate(specs):
        record = store.get(spec.key)
        if record is None or (retry_failed and record.status == "failed"):
            watcher.started(spec, number, len(specs))
            record = _run_one(spec, train, watcher)
            store.put(record)
        # The key says what was done; the arm may have gone by another name when it was done.
        record = replace(record, arm=spec.arm.name)
        watcher.ended(spec, record, number, len(specs))
        yield record


def _run_one(spec: TrialSpec, train: TrainFunction, watcher: Watcher) -> Record:
    trial = Trial(spec.arm, spec.seed, lambda epoch: watcher.reported(spec, len(trial.epochs) - 1, epoch))
    error: str | None = None
    try:
        train(trial)
        _check_use(trial, spec)
    except TrialError:
        raise
    except Exception as exception:
        if spec.arm.name == VANILLA:
            raise
        error = f"{type(exception).__name__}: {exception}"
    metric = spec.subject.metric
    if error is None and not math.isfinite(trial.epochs[-1][metric]):
        error = f"final {metric} is {trial.epochs[-1][metric]}"
    status: Status = "finished" if error is None else "failed"
    return Record(spec.key, spec.subject.name, spec.arm.name, spec.seed, status, tuple(trial.epochs), error, versions())


def _check_use(trial: Trial, spec: TrialSpec) -> None:
    if not trial.epochs:
        raise TrialError("the training function returned without a single trial.report(...)")
    if spec.subject.metric not in trial.epochs[-1]:
        reported = ", ".join(
            name for name in trial.epochs[-1] if name not in ("scheduled_lr", "effective_lr", "seconds")
        )
        raise TrialError(f"the training function reports {reported}, but the comparison judges {spec.subject.metric!r}")

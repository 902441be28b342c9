"""Runs a study: asks the plan for trials, has them run, keeps their records, and tells the plan what came out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from flatwise.study.analysis import look_of
from flatwise.study.executors import Executor, Lost
from flatwise.study.machine import versions
from flatwise.study.plan import PlayedCell, plan_study
from flatwise.study.records import Record
from flatwise.study.registry import get_task
from flatwise.study.results import CellResult, result_of, values_of
from flatwise.study.runner import TrialSpec, valid_json
from flatwise.study.spec import StudySpec
from flatwise.study.store import Store
from flatwise.study.subjects import describe, look_at_code_again
from flatwise.study.work import Work


class StudyWatcher(Protocol):
    """Who is told how a study goes."""

    def reused(self, record: Record) -> None:
        """A trial of the round that starts next was in the store before the study was started; said once."""

    def round_starts(self, missing: int, planned: int) -> None:
        """So many trials are to be run now, of so many that this round has."""

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """A trial ended."""


def drive(
    study: StudySpec,
    store: Store,
    executor: Executor,
    work: Work,
    watcher: StudyWatcher,
    *,
    retry_failed: bool = False,
) -> list[CellResult]:
    """Runs what the store does not hold yet, and returns every cell's result.

    Args:
        study: a study that :func:`check_study` has passed.
        store: where records are kept. This function alone writes to it.
        executor: where trials run.
        work: how a trial runs.
        watcher: who is told.
        retry_failed: run trials again that failed, once.

    Raises:
        StoreError, DataError, TrialError, StudyError, ExecutorError: see there. What ended before is kept.
    """
    look_at_code_again()
    known: set[str] = set()  # what the watcher was told of; a trial that was retried is not in a later round again
    _remember_tasks(study, store)
    plan = plan_study(study, store.remember_task if store.is_writable else None)
    try:
        specs = next(plan)
        while True:
            _run_round(specs, store, executor, work, watcher, known, retry_failed)
            specs = plan.send(values_of(specs, store))
    except StopIteration as end:
        played: list[PlayedCell] = end.value
    results = [result_of(cell, store, study.final.level) for cell in played]
    for cell, result in zip(played, results, strict=True):
        if result.comparison is not None and store.is_writable:
            subject = replace(cell.subject, name=cell.cell.name)
            store.remember_look(subject.family, look_of(cell.trials, cell.arms, result.comparison.seeds))
    return results


def _remember_tasks(study: StudySpec, store: Store) -> None:
    """Keeps what commands that read only need of the user's own tasks: they do not import them."""
    for cell in study.cells:
        task = get_task(cell.task)
        if task.is_own and store.is_writable:
            store.remember_task(task.name, "", describe(task))


def _run_round(
    specs: Sequence[TrialSpec],
    store: Store,
    executor: Executor,
    work: Work,
    watcher: StudyWatcher,
    known: set[str],
    retry_failed: bool,
) -> None:
    unique = {spec.key: spec for spec in specs}
    missing = []
    for spec in unique.values():
        kept = _kept(spec, store, known, retry_failed)
        if kept is None:
            missing.append(spec)
        elif spec.key not in known:
            known.add(spec.key)
            watcher.reused(kept)
    if missing:
        store.check_writable()
    watcher.round_starts(len(missing), len(unique))
    for spec, outcome in executor.run(work, missing):
        record = _lost(spec, outcome) if isinstance(outcome, Lost) else outcome
        store.put(record)
        known.add(spec.key)
        watcher.ended(spec, record)


def _kept(spec: TrialSpec, store: Store, known: set[str], retry_failed: bool) -> Record | None:
    """The record of a trial that need not be run."""
    record = store.get(spec.key)
    if record is not None and retry_failed and record.status == "failed" and spec.key not in known:
        return None
    return record


def _lost(spec: TrialSpec, lost: Lost) -> Record:
    """A worker that died is the outcome of the trial that it ran: most often it had no memory left."""
    return Record(
        key=spec.key,
        task=spec.subject.name,
        arm=spec.arm.name,
        seed=spec.seed,
        status="failed",
        epochs=(),
        error=lost.message,
        versions=versions(),
        spec=valid_json(spec.to_dict()),
    )

"""Runs a study: asks the plan for trials, has them run, keeps their records, and tells the plan what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from flatter.study.analysis import analyse
from flatter.study.comparison import Comparison
from flatter.study.executors import Executor, Lost
from flatter.study.machine import versions
from flatter.study.plan import PlayedCell, Tuned, Values, plan_cell, plan_study
from flatter.study.records import Record
from flatter.study.runner import TrialSpec
from flatter.study.spec import CellSpec, StudySpec
from flatter.study.store import Store
from flatter.study.tasks import get_task
from flatter.study.work import Work


class StudyWatcher(Protocol):
    """Who is told how a study goes."""

    def round_starts(self, missing: int, planned: int) -> None:
        """So many trials are to be run now, of so many that this round has."""

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """A trial ended."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """What is known of a cell.

    Attributes:
        cell: the cell.
        baseline, tuned: what the searches tried and chose; see :class:`Tuned`. ``()`` before the tuning is done.
        comparison: the comparison on the test set, of the seeds that all arms have; ``None`` where there is none yet.
    """

    cell: CellSpec
    baseline: Tuned | None
    tuned: tuple[Tuned, ...]
    comparison: Comparison | None


@dataclass(frozen=True, slots=True)
class CellStatus:
    """How far a cell is.

    Attributes:
        name: the cell's.
        stage: what it is at: ``"tuning"``, ``"final runs"`` or ``"done"``.
        ended: trials of this stage and before that are in the store.
        planned: trials that are planned up to the end of this stage; of later stages nothing is known before.
        failed: how many of the ended ones failed.
    """

    name: str
    stage: Literal["tuning", "final runs", "done"]
    ended: int
    planned: int
    failed: int


def run_study_in(
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
    again: set[str] = set()  # what was retried is not retried once more in a later round
    plan = plan_study(study)
    try:
        specs = next(plan)
        while True:
            _run_round(specs, store, executor, work, watcher, again if retry_failed else None)
            specs = plan.send(_values(specs, store))
    except StopIteration as end:
        played: list[PlayedCell] = end.value
    return [_result(cell, store, study.final.level) for cell in played]


def study_results(study: StudySpec, store: Store) -> list[CellResult]:
    """The results of every cell as far as the store has them; nothing is run."""
    results = []
    for cell in study.cells:
        played, _ = _play(study, cell, store)
        known = None if played is None else _result(played, store, study.final.level)
        results.append(known or CellResult(cell, None, (), None))
    return results


def study_status(study: StudySpec, store: Store) -> list[CellStatus]:
    """How far every cell is; nothing is run."""
    found = []
    for cell in study.cells:
        played, rounds = _play(study, cell, store)
        specs = {spec.key: spec for specs in rounds for spec in specs}
        records = [record for key in specs if (record := store.get(key)) is not None]
        stage: Literal["tuning", "final runs", "done"] = "tuning"
        if played is not None:
            stage = "done" if all(spec.key in store for spec in played.trials) else "final runs"
        found.append(
            CellStatus(
                name=cell.name,
                stage=stage,
                ended=len(records),
                planned=len(specs),
                failed=sum(record.status == "failed" for record in records),
            )
        )
    return found


def _run_round(
    specs: Sequence[TrialSpec],
    store: Store,
    executor: Executor,
    work: Work,
    watcher: StudyWatcher,
    again: set[str] | None,
) -> None:
    unique = {spec.key: spec for spec in specs}
    missing = [spec for spec in unique.values() if _is_missing(spec, store, again)]
    watcher.round_starts(len(missing), len(unique))
    for spec, outcome in executor.run(work, missing):
        record = _lost(spec, outcome) if isinstance(outcome, Lost) else outcome
        store.put(record)
        if again is not None:
            again.add(spec.key)
        watcher.ended(spec, record)


def _is_missing(spec: TrialSpec, store: Store, again: set[str] | None) -> bool:
    record = store.get(spec.key)
    return record is None or (again is not None and record.status == "failed" and spec.key not in again)


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
        spec=spec.to_dict(),
    )


def _values(specs: Sequence[TrialSpec], store: Store) -> Values:
    """What the plan is told: numbers alone, so that no record stays in memory."""
    values: dict[str, float] = {}
    for spec in specs:
        record = store.get(spec.key)
        values[spec.key] = math.nan if record is None else record.final(spec.subject.metric)
    return values


def _play(study: StudySpec, cell: CellSpec, store: Store) -> tuple[PlayedCell | None, list[list[TrialSpec]]]:
    """Plays a cell's plan as far as the store goes.

    Returns:
        The cell, or ``None`` where its tuning is not done yet; and the rounds up to there.
    """
    judged = get_task(cell.task).metric
    plan = plan_cell(study, cell)
    rounds: list[list[TrialSpec]] = []
    try:
        rounds.append(next(plan))
        # The final runs, the last round, may be on their way: the plan asks nothing of them.
        while rounds[-1][0].subject.metric == judged or all(spec.key in store for spec in rounds[-1]):
            rounds.append(plan.send(_values(rounds[-1], store)))
    except StopIteration as end:
        return end.value, rounds
    return None, rounds


def _result(played: PlayedCell, store: Store, level: float) -> CellResult:
    """A tuned cell, compared over the seeds that all arms have."""
    found = [(spec, store.get(spec.key)) for spec in played.trials]
    lacking = {spec.seed for spec, record in found if record is None}
    seeds = [seed for seed in dict.fromkeys(spec.seed for spec in played.trials) if seed not in lacking]
    comparison = None
    if seeds:
        # The key says what was done; the arm may have gone by another name when it was done.
        records = [
            replace(record, arm=spec.arm.name)
            for spec, record in found
            if record is not None and spec.seed not in lacking
        ]
        subject = replace(played.subject, name=played.cell.name)
        comparison = analyse(subject, records, played.arms, seeds, level=level)
    return CellResult(played.cell, played.baseline, played.tuned, comparison)

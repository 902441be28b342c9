"""The one loop that runs trials: asks the plan for a round, has it run, keeps the records, tells the plan the results.

A comparison and a study differ in their plans only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from flatwise.study.analysis import judged_comparison
from flatwise.study.executors import Executor, LocalExecutor, Lost, ProcessExecutor, visible_cores
from flatwise.study.flatness import is_measured
from flatwise.study.plan import TrialRounds, TunedCell, plan_study
from flatwise.study.ray_executor import RayExecutor
from flatwise.study.registry import get_task
from flatwise.study.results import CellResult, result_of
from flatwise.study.spec import StudyError, StudySpec
from flatwise.study.store import Record, Store
from flatwise.study.subjects import TrialSpec, describe, look_at_code_again
from flatwise.study.work import Callback, Round, Work, lost_trial

ExecutorName = Literal["local", "processes", "ray"]


_OPTIONS = {
    "local": (),
    "processes": ("workers",),
    "ray": ("address", "cpus_per_trial", "gpus_per_trial", "retries"),
}


@dataclass(frozen=True, slots=True)
class ExecutorChoice:
    """Where trials run, and how many at once.

    Attributes:
        name: ``"local"``: in this process, one after the other; ``"processes"``: in worker processes of this machine;
            ``"ray"``: on a Ray cluster.
        workers: of ``"processes"``: how many; default: one per core.
        address: of ``"ray"``: the cluster's, ``"host:port"`` or ``"auto"``; default: a Ray of its own on this machine.
        cpus_per_trial, gpus_per_trial: of ``"ray"``: what a trial takes of a node; 0.25 lets four share a GPU.
        retries: of ``"ray"``: how often a trial is run again whose node was lost.
    """

    name: ExecutorName = "local"
    workers: int | None = None
    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    retries: int | None = None

    def open(self) -> Executor:
        """The executor, to be used in a ``with`` block.

        Raises:
            StudyError: an option that this executor does not have.
            ExecutorError: a number that makes no sense.
        """
        if self.name not in _OPTIONS:
            raise StudyError(f"there is no executor {self.name!r}: there are {', '.join(_OPTIONS)}")
        options = _OPTIONS[self.name]
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        given = {option: value for option, value in given.items() if value is not None}
        for option in given:
            if option not in options:
                has = ", ".join(options) or "none"
                raise StudyError(f"the executor '{self.name}' has no option {option}: it has {has}")
        if self.name == "local":
            return LocalExecutor()
        if self.name == "processes":
            return ProcessExecutor(visible_cores() if self.workers is None else self.workers)
        return RayExecutor(**given)


def drive(
    study: StudySpec,
    store: Store,
    executor: Executor,
    work: Work,
    callback: Callback,
    *,
    retry_failed: bool = False,
) -> list[CellResult]:
    """Run what the store does not hold yet, and return every cell's result.

    Args:
        study: a study that :func:`check_study` has passed.
        store, executor, work, callback, retry_failed: as for :func:`run_plan`.

    Raises:
        StoreError, DataError, TrialError, StudyError, ExecutorError: see there. What ended before is kept.
    """
    look_at_code_again()
    _remember_tasks(study, store)
    plan = plan_study(study, store.remember_task if store.is_writable else None)
    return run_plan(plan, store, executor, work, callback, level=study.final.level, retry_failed=retry_failed)


def run_plan(
    plan: TrialRounds[list[TunedCell]],
    store: Store,
    executor: Executor,
    work: Work,
    callback: Callback,
    *,
    level: float,
    retry_failed: bool = False,
) -> list[CellResult]:
    """Run the trials of a plan that the store does not hold yet, and judge every cell.

    Args:
        plan: yields rounds of trials, is sent their values, and returns the cells.
        store: where records are kept. This function alone writes to it.
        executor: where trials run.
        work: how a trial runs.
        callback: progress events.
        level: family-wise level of the tests.
        retry_failed: run trials again that failed, or of whose flatness something could not be measured; once.

    Raises:
        StoreError, DataError, TrialError, StudyError, ExecutorError: see there. What ended before is kept.
        Exception: what the training raised in the vanilla arm, where ``work`` raises it.
    """
    run = _Run(store, executor, work, callback, retry_failed)
    try:
        specs = next(plan)
        while True:
            run.round(specs)
            specs = plan.send(run.values)
    except StopIteration as end:
        cells: list[TunedCell] = end.value
    results = [result_of(cell, run.records.get, store, level) for cell in cells]
    for cell, result in zip(cells, results, strict=True):
        if result.comparison is not None and store.is_writable:
            store.remember_judged(
                cell.named_subject.family, judged_comparison(cell.trials, cell.arms, result.comparison.seeds)
            )
    return results


@dataclass
class _Run:
    """One walk through a plan.

    Attributes:
        store, executor, work, callback, retry_failed: as for :func:`run_plan`.
        values: the final metric of every trial that ended or was in the store, by key; NaN for a failed one.
        records: those of the final runs, which the results need whole. Of a tuning trial the value is enough.
    """

    store: Store
    executor: Executor
    work: Work
    callback: Callback
    retry_failed: bool
    values: dict[str, float] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stored = self.store.keys()

    def round(self, specs: Sequence[TrialSpec]) -> None:
        """Run a round's trials, each once, but for those that the store holds."""
        unique: dict[str, TrialSpec] = {}
        for spec in specs:
            unique.setdefault(spec.key, spec)
        missing: list[TrialSpec] = []
        remeasured = 0
        for key, spec in unique.items():
            if key in self.values:
                continue
            record = self.store.get(key) if key in self._stored else None
            if record is None or (self.retry_failed and _failed(record, spec)):
                missing.append(spec)
            elif not is_measured(record, spec.flatness):
                remeasured += 1
                missing.append(spec)
            else:
                self._keep(spec, record)
                self.callback.on_reused(spec, record)
        if missing:
            self.store.check_writable()
        self.callback.on_round_start(Round(len(missing), len(unique), remeasured, len(self._stored)))
        run: Callable[[TrialSpec], Record] = self.work
        if self.executor.in_process:
            run = functools.partial(self.work, callback=self.callback)
        for spec, outcome in self.executor.run(run, missing):
            record = lost_trial(spec, outcome.message) if isinstance(outcome, Lost) else outcome
            self.store.put(record)
            self._keep(spec, record)
            self.callback.on_trial_end(spec, record)

    def _keep(self, spec: TrialSpec, record: Record) -> None:
        self.values[spec.key] = record.final(spec.subject.metric)
        if not spec.tuning:
            self.records[spec.key] = record


def _failed(record: Record, spec: TrialSpec) -> bool:
    return record.status == "failed" or (
        spec.flatness is not None and record.flatness is not None and bool(record.flatness.missing)
    )


def _remember_tasks(study: StudySpec, store: Store) -> None:
    """Keep what commands that read only need of the user's own tasks: they do not import them."""
    for cell in study.cells:
        task = get_task(cell.task)
        if task.is_own and store.is_writable:
            store.remember_task(task.name, "", describe(task))

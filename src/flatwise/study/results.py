"""What a store says of a study: how far every cell is, what its searches chose, what the comparison shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from flatwise.study.analysis import analyse
from flatwise.study.comparison import Comparison
from flatwise.study.plan import PlayedCell, Tuned, Values, plan_cell
from flatwise.study.registry import get_task
from flatwise.study.runner import TrialSpec
from flatwise.study.spec import CellSpec, StudySpec
from flatwise.study.store import Store


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


def study_results(study: StudySpec, store: Store) -> list[CellResult]:
    """The results of every cell as far as the store has them; nothing is run."""
    results = []
    for cell in study.cells:
        played, _ = _play(study, cell, store)
        known = None if played is None else result_of(played, store, study.final.level)
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


def values_of(specs: Sequence[TrialSpec], store: Store) -> Values:
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
            rounds.append(plan.send(values_of(rounds[-1], store)))
    except StopIteration as end:
        return end.value, rounds
    return None, rounds


def result_of(played: PlayedCell, store: Store, level: float) -> CellResult:
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
        comparison = analyse(subject, records, played.arms, seeds, level=level, store=store)
    return CellResult(played.cell, played.baseline, played.tuned, comparison)

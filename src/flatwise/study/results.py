"""What a store says of a study: how far every cell is, what its searches chose, what the comparison shows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from flatwise.study.analysis import analyse
from flatwise.study.comparison import Comparison
from flatwise.study.flatness import is_measured
from flatwise.study.plan import TunedCell, TuningResult, plan_cell
from flatwise.study.spec import CellSpec, StudySpec
from flatwise.study.store import Outcome, Record, Store


@dataclass(frozen=True, slots=True)
class CellResult:
    """What is known of a cell.

    Attributes:
        cell: the cell.
        baseline, tuned: what the searches tried and chose; see :class:`TuningResult`. ``()`` before the tuning is done.
        comparison: the comparison on the test set, of the seeds that all arms have; ``None`` where there is none yet.
    """

    cell: CellSpec
    baseline: TuningResult | None
    tuned: tuple[TuningResult, ...]
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
        tuned, _ = _replay(study, cell, store)
        known = None if tuned is None else result_of(tuned, store.get, store, study.final.level)
        results.append(known or CellResult(cell, None, (), None))
    return results


def study_status(study: StudySpec, store: Store) -> list[CellStatus]:
    """How far every cell is; nothing is run."""
    found = []
    for cell in study.cells:
        tuned, outcomes = _replay(study, cell, store)
        ended = [outcome for outcome in outcomes.values() if outcome is not None]
        stage: Literal["tuning", "final runs", "done"] = "tuning"
        if tuned is not None:  # then every tuning trial has ended
            stage = "done" if len(ended) == len(outcomes) else "final runs"
        found.append(
            CellStatus(
                name=cell.name,
                stage=stage,
                ended=len(ended),
                planned=len(outcomes),
                failed=sum(status == "failed" for status, _ in ended),
            )
        )
    return found


def _replay(study: StudySpec, cell: CellSpec, store: Store) -> tuple[TunedCell | None, dict[str, Outcome | None]]:
    """Replay a cell's plan as far as the store has results.

    Returns:
        The cell, or ``None`` where its tuning is not done yet; and the outcome of every trial up to there, by key.
    """
    plan = plan_cell(study, cell)
    outcomes: dict[str, Outcome | None] = {}
    try:
        specs = next(plan)
        # The final runs, the last round, may be on their way: the plan asks nothing of them.
        while True:
            found = {spec.key: store.outcome(spec.key) for spec in specs}
            outcomes |= found
            if specs[0].tuning and None in found.values():
                return None, outcomes
            specs = plan.send({key: math.nan if each is None else each[1] for key, each in found.items()})
    except StopIteration as end:
        return end.value, outcomes


def result_of(tuned: TunedCell, find: Callable[[str], Record | None], store: Store, level: float) -> CellResult:
    """A tuned cell, compared over the seeds that all arms have.

    Args:
        tuned: the cell.
        find: gives the record of a trial by its key.
        store: remembers the comparisons judged before.
        level: family-wise level of the tests.
    """
    found = [(spec, find(spec.key)) for spec in tuned.trials]
    lacking = {spec.seed for spec, record in found if record is None}
    seeds = [seed for seed in dict.fromkeys(spec.seed for spec in tuned.trials) if seed not in lacking]
    comparison = None
    if seeds:
        # The key says what was done; the arm may have gone by another name when it was done.
        records = [
            replace(record, arm=spec.arm.name)
            for spec, record in found
            if record is not None and spec.seed not in lacking
        ]
        flatness = tuned.trials[0].flatness
        if not all(is_measured(record, flatness) for record in records):
            flatness = None  # not yet, or not all with these settings
        comparison = analyse(
            tuned.named_subject, records, tuned.arms, seeds, level=level, flatness=flatness, store=store
        )
    return CellResult(tuned.cell, tuned.baseline, tuned.tuned, comparison)

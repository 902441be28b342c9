"""What a study runs, and in which order: tuning of the baseline, tuning of the arms, the runs that are judged.

A plan is a generator that yields rounds of trials and is sent the value of each. It holds no state of its own: played
again with what the store holds, it comes to where it was. So a study goes on after any death, and ``status`` and
``report`` ask the same plan as ``run``.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

from flatter.study.arms import VANILLA, Arm, arguments_of, make_arm, with_controls
from flatter.study.comparison import Subject
from flatter.study.runner import TrialSpec, paired_trials
from flatter.study.search import Configuration, best, search
from flatter.study.spec import ArmSpec, CellSpec, Space, StudySpec
from flatter.study.subjects import plain_settings, subject_of
from flatter.study.tasks import Settings, get_task

R = TypeVar("R")
Values = Mapping[str, float]  # by the trial's key: the final epoch's metric, NaN for a failed trial
Plan = Generator[list[TrialSpec], Values, R]


@dataclass(frozen=True, slots=True)
class Tuned:
    """One search: what was tried and what was chosen.

    Attributes:
        arm: name of the arm.
        space: names of what was tuned, in order; empty where nothing was.
        configurations: what was tried.
        values: the validation metric of each, the mean over the tuning seeds; NaN where a seed failed.
        chosen: position of the chosen one.
    """

    arm: str
    space: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    values: tuple[float, ...]
    chosen: int

    @property
    def choice(self) -> Configuration:
        """The chosen configuration."""
        return self.configurations[self.chosen]


@dataclass(frozen=True, slots=True)
class PlayedCell:
    """A cell whose tuning is done.

    Attributes:
        cell: the cell.
        subject: what is trained and judged, on the test set.
        baseline: the search of the baseline; ``None`` where there was none.
        tuned: the search of every arm.
        arms: the arms of the final runs, vanilla first, controls among them.
        trials: the final runs.
    """

    cell: CellSpec
    subject: Subject
    baseline: Tuned | None
    tuned: tuple[Tuned, ...]
    arms: tuple[Arm, ...]
    trials: tuple[TrialSpec, ...]


def plan_study(study: StudySpec) -> Plan[list[PlayedCell]]:
    """The plan of a whole study: all cells at once."""
    return together([plan_cell(study, cell) for cell in study.cells])


def plan_cell(study: StudySpec, cell: CellSpec) -> Plan[PlayedCell]:
    """The plan of one cell."""
    task = get_task(cell.task)
    settings = task.settings.updated({**study.settings, **cell.settings})
    judged = subject_of(task, settings)
    tuned_on = replace(judged, metric=task.validation_metric)
    tuning = study.tuning
    baseline = None
    start: Mapping[str, Any] = {}
    if tuning.baseline:
        vanilla = ArmSpec(method=VANILLA)
        baseline = yield from _tune(study, tuned_on, settings, vanilla, tuning.baseline, tuning.baseline_trials, {})
        start = baseline.choice
    searches = [_tune(study, tuned_on, settings, arm, arm.space, tuning.trials, start) for arm in study.arms]
    tuned = yield from together(searches)
    chosen = [
        normalised(arm_with(arm, start, search.choice), settings) for arm, search in zip(study.arms, tuned, strict=True)
    ]
    arms = with_controls(chosen, controls=study.final.controls)
    trials = [replace(spec, threads=study.threads) for spec in paired_trials(judged, arms, study.final.seeds)]
    yield trials
    return PlayedCell(cell, judged, baseline, tuple(tuned), arms, tuple(trials))


def together(plans: Sequence[Plan[R]]) -> Plan[list[R]]:
    """Several plans as one: every round holds the rounds of all that are not at their end."""
    results: dict[int, R] = {}
    waiting: dict[int, list[TrialSpec]] = {}

    def advance(index: int, values: Values | None) -> None:
        try:
            waiting[index] = next(plans[index]) if values is None else plans[index].send(values)
        except StopIteration as end:
            waiting.pop(index, None)
            results[index] = end.value

    for index in range(len(plans)):
        advance(index, None)
    while waiting:
        values = yield [spec for specs in waiting.values() for spec in specs]
        for index in list(waiting):
            advance(index, values)
    return [results[index] for index in range(len(plans))]


def arm_with(arm: ArmSpec, start: Mapping[str, Any], configuration: Configuration) -> Arm:
    """An arm as it runs: the baseline's choice, then the arm's own settings, then the configuration."""
    own = arguments_of(arm.method)
    arguments = {**arm.arguments, **{key: value for key, value in configuration.items() if key in own}}
    rest = {key: value for key, value in configuration.items() if key not in own}
    return make_arm(arm.method, arguments, name=arm.name, settings={**start, **arm.settings, **rest})  # type: ignore[arg-type]


def normalised(arm: Arm, settings: Settings) -> Arm:
    """The arm with the settings that differ from the cell's, as they are trained with.

    So that two ways to say one thing are one trial, and an arm that says what vanilla does is known as vanilla.
    """
    own = plain_settings(arm.name, settings.updated(arm.settings))
    common = plain_settings(arm.name, settings)
    differing = {name: value for name, value in own.items() if value != common[name]}
    return replace(arm, settings=differing, description="")


def _tune(
    study: StudySpec,
    subject: Subject,
    settings: Settings,
    arm: ArmSpec,
    space: Space,
    trials: int | None,
    start: Mapping[str, Any],
) -> Plan[Tuned]:
    base = {**subject.settings, **start, **arm.settings, **arguments_of(arm.method), **arm.arguments}
    seeds = study.tuning.seeds
    configurations: list[Configuration] = []
    means: list[float] = []
    if not space:
        return Tuned(arm.name, (), ({},), (math.nan,), 0)
    proposals = search(space, study.tuning, trials, base, subject.better)
    asked = next(proposals)
    while True:
        arms = [normalised(arm_with(arm, start, configuration), settings) for configuration in asked]
        specs = [TrialSpec(subject, each, seed, study.threads) for each in arms for seed in seeds]
        values = yield specs
        found = [values[spec.key] for spec in specs]
        told = [fmean(found[i : i + len(seeds)]) for i in range(0, len(found), len(seeds))]
        configurations += asked
        means += told
        try:
            asked = proposals.send(told)
        except StopIteration:
            break
    chosen = best(means, subject.better)
    return Tuned(arm.name, tuple(space), tuple(configurations), tuple(means), chosen)

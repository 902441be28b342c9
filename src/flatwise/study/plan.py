"""What a study runs, and in which order: tuning of the baseline, tuning of the arms, the runs that are judged.

A plan is a generator that yields rounds of trials and is sent the value of each. It keeps no state: replayed with the
stored values, it reaches the same point. So a killed study resumes, and ``status`` and ``report`` ask the same plan as
``run``.
"""

from __future__ import annotations

import math
from collections.abc import Container, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, TypeVar

from flatwise.study.arms import VANILLA, Arm, arguments_of, make_arm, with_controls
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.registry import get_task
from flatwise.study.search import Configuration, best
from flatwise.study.search import search as propose
from flatwise.study.spec import ArmSpec, CellSpec, Space, StudySpec
from flatwise.study.subjects import Note, Subject, TrialSpec, plain_settings, subject_of, updated
from flatwise.study.task import Settings, Task

R = TypeVar("R")
Values = Mapping[str, float]  # by the trial's key: the final epoch's metric, NaN for a failed trial
TrialRounds = Generator[list[TrialSpec], Values, R]


@dataclass(frozen=True, slots=True)
class TuningResult:
    """One search: what was tried and what was chosen.

    Attributes:
        arm: name of the arm.
        space: names of what was tuned, in order; empty where nothing was.
        configurations: what was tried.
        values: the validation metric of each, the mean over the tuning seeds; NaN where a seed failed.
        chosen: position of the chosen one.
        known: how many of the configurations the baseline's search had trained already.
        budget: with the samplers random and tpe, how many others were to be trained; ``None`` for a grid. Fewer were
            where the space has no more.
    """

    arm: str
    space: tuple[str, ...]
    configurations: tuple[Configuration, ...]
    values: tuple[float, ...]
    chosen: int
    known: int = 0
    budget: int | None = None

    @property
    def choice(self) -> Configuration:
        """The chosen configuration."""
        return self.configurations[self.chosen]


@dataclass(frozen=True, slots=True)
class TunedCell:
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
    baseline: TuningResult | None
    tuned: tuple[TuningResult, ...]
    arms: tuple[Arm, ...]
    trials: tuple[TrialSpec, ...]

    @property
    def named_subject(self) -> Subject:
        """The subject under the cell's name, as the comparison has it."""
        return replace(self.subject, name=self.cell.name)


def plan_study(study: StudySpec, note: Note | None = None) -> TrialRounds[list[TunedCell]]:
    """The plan of a whole study: all cells at once. For ``note`` see :func:`plan_cell`."""
    return together([plan_cell(study, cell, note) for cell in study.cells])


def plan_cell(study: StudySpec, cell: CellSpec, note: Note | None = None) -> TrialRounds[TunedCell]:
    """The plan of one cell.

    Args:
        study: the study.
        cell: the cell.
        note: see :func:`flatwise.study.subjects.updated`.
    """
    task = get_task(cell.task)
    settings = updated(task, task.settings, {**study.settings, **cell.settings}, note)
    judged = subject_of(task, settings)
    tuned_on = replace(judged, metric=task.validation_metric)
    tuning = study.tuning
    baseline = None
    start: Mapping[str, Any] = {}
    trained: frozenset[str] = frozenset()
    if tuning.baseline:
        vanilla = ArmSpec(method=VANILLA)
        search = _Search(study, tuned_on, task, settings, vanilla, tuning.baseline, {}, f"{cell.name}\nbaseline", note)
        baseline = yield from _tune(search, tuning.baseline_trials)
        start = baseline.choice
        trained = frozenset(map(search.key, baseline.configurations))
    searches = [
        _tune(
            _Search(study, tuned_on, task, settings, arm, arm.space, start, f"{cell.name}\narm\n{arm.name}", note),
            tuning.trials,
            trained,
        )
        for arm in study.arms
    ]
    tuned = yield from together(searches)
    chosen = [
        normalised_arm(arm_with(arm, start, each.choice), task, settings, note)
        for arm, each in zip(study.arms, tuned, strict=True)
    ]
    arms = with_controls(chosen, controls=study.final.controls)
    trials = paired_trials(judged, arms, study.final.seeds, study.threads, study.final.flatness)
    yield trials
    return TunedCell(cell, judged, baseline, tuple(tuned), arms, tuple(trials))


def plan_comparison(
    subject: Subject,
    arms: tuple[Arm, ...],
    seeds: tuple[int, ...],
    threads: int | None = None,
    flatness: FlatnessSettings | None = None,
) -> TrialRounds[list[TunedCell]]:
    """The plan of a comparison: a study of one cell in which nothing is tuned. For the arguments see
    :func:`paired_trials`.
    """
    trials = paired_trials(subject, arms, seeds, threads, flatness)
    yield trials
    return [TunedCell(CellSpec(task=subject.name), subject, None, (), arms, tuple(trials))]


def together(plans: Sequence[TrialRounds[R]]) -> TrialRounds[list[R]]:
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


def normalised_arm(arm: Arm, task: Task, settings: Settings, note: Note | None = None) -> Arm:
    """The arm with the settings that differ from the cell's, as they are trained with.

    So that two ways to say one thing are one trial, and an arm that says what vanilla does is known as vanilla.
    """
    own = plain_settings(task.name, updated(task, settings, arm.settings, note))
    common = plain_settings(task.name, settings)
    differing = {name: value for name, value in own.items() if value != common[name]}
    return replace(arm, settings=differing, description="")


@dataclass(frozen=True, slots=True)
class _Search:
    """What one search trains.

    Attributes:
        study: the study.
        subject: what is trained, judged on validation data.
        task: the cell's task.
        settings: its settings there.
        arm: the arm.
        space: what is tuned.
        start: the baseline's choice.
        stream: what tells the search from the study's others.
        note: see :func:`plan_cell`.
    """

    study: StudySpec
    subject: Subject
    task: Task
    settings: Settings
    arm: ArmSpec
    space: Space
    start: Mapping[str, Any]
    stream: str
    note: Note | None

    def trials(self, configuration: Configuration) -> list[TrialSpec]:
        """The trials of one configuration, one per tuning seed."""
        arm = normalised_arm(arm_with(self.arm, self.start, configuration), self.task, self.settings, self.note)
        threads = self.study.threads
        return [TrialSpec(self.subject, arm, seed, threads, tuning=True) for seed in self.study.tuning.seeds]

    def key(self, configuration: Configuration) -> str:
        """What tells trained configurations apart, also those of different searches."""
        return self.trials(configuration)[0].key


def _tune(search: _Search, trials: int | None, trained: Container[str] = ()) -> TrialRounds[TuningResult]:
    """Run a search.

    Args:
        search: what it trains.
        trials: with the samplers random and tpe, how many configurations to train.
        trained: keys of the configurations that were trained before.
    """
    arm, start, better = search.arm, search.start, search.subject.better
    tuning = search.study.tuning
    if not search.space:
        return TuningResult(arm.name, (), ({},), (math.nan,), 0)
    base = {**search.subject.settings, **start, **arm.settings, **arguments_of(arm.method), **arm.arguments}
    configurations: list[Configuration] = []
    means: list[float] = []
    proposals = propose(
        search.space,
        tuning,
        trials,
        base,
        better,
        stream=search.stream,
        is_known=lambda configuration: search.key(configuration) in trained,
    )
    asked = next(proposals)
    while True:
        specs = [search.trials(configuration) for configuration in asked]
        values = yield [spec for each in specs for spec in each]
        told = [fmean(values[spec.key] for spec in each) for each in specs]
        configurations += asked
        means += told
        try:
            asked = proposals.send(told)
        except StopIteration:
            break
    return TuningResult(
        arm.name,
        tuple(search.space),
        tuple(configurations),
        tuple(means),
        best(means, better),
        known=sum(search.key(configuration) in trained for configuration in configurations),
        budget=None if tuning.sampler == "grid" else trials,
    )


def paired_trials(
    subject: Subject,
    arms: tuple[Arm, ...],
    seeds: tuple[int, ...],
    threads: int | Literal["fair"] | None = None,
    flatness: FlatnessSettings | None = None,
) -> list[TrialSpec]:
    """The trials that are judged, in the order of their run.

    Seed by seed, so that arms share the machine's good and bad minutes, and each seed starts with another arm.

    Args:
        subject: what is trained and judged.
        arms: the arms, vanilla first.
        seeds: the seeds.
        threads: torch's CPU threads; default: as they are.
        flatness: what to measure of the final models; default: nothing.
    """
    return [
        TrialSpec(subject, arms[(first + index) % len(arms)], seed, threads, flatness=flatness)
        for first, seed in enumerate(seeds)
        for index in range(len(arms))
    ]

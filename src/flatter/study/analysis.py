"""From records to a comparison: pairing by seed, and the statistics of every pair of arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev

from flatter.stats import Better, Judgement, judge
from flatter.study.arms import VANILLA, Arm
from flatter.study.comparison import ArmSummary, Comparison, Subject
from flatter.study.flatness import FlatnessSettings
from flatter.study.flatness_analysis import summarise_flatness
from flatter.study.records import Record


def analyse(
    subject: Subject,
    records: Sequence[Record],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    level: float = 0.05,
    flatness: FlatnessSettings | None = None,
) -> Comparison:
    """Compares arms by the final epoch's metric, paired by seed.

    Two questions are asked, each a family of tests of its own (Holm): does an arm differ from vanilla, and does a
    method differ from the control that has its mean rate?

    Args:
        subject: what was trained and is judged.
        records: one per arm and seed.
        arms: the arms, vanilla first.
        seeds: the seeds, in the order of the pairs.
        level: family-wise level of the tests; default 0.05.
        flatness: what was measured of the final models; default: nothing.
    """
    metric, better = subject.metric, subject.better
    by_trial = {(record.arm, record.seed): record for record in records}
    of_arm = {arm.name: [by_trial[arm.name, seed] for seed in seeds] for arm in arms}
    # A failed trial is NaN, which makes the pair's verdict "failed".
    final = {name: [record.final(metric) for record in own] for name, own in of_arm.items()}
    against_vanilla = {arm.name: (final[arm.name], final[VANILLA]) for arm in arms if arm.name != VANILLA}
    against_control = {
        arm.name: (final[arm.name], final[arm.control]) for arm in arms if arm.control not in (None, VANILLA)
    }
    helps = judge(against_vanilla, better=better, level=level)
    noise = judge(against_control, better=better, level=level)
    summaries = tuple(_summary(arm, of_arm, metric, better, helps.get(arm.name), noise.get(arm.name)) for arm in arms)
    return Comparison(
        task=subject.name,
        metric=metric,
        unit=subject.unit,
        better=better,
        level=level,
        seeds=tuple(seeds),
        settings=dict(subject.settings),
        arms=summaries,
        records=tuple(records),
        flatness=None if flatness is None else summarise_flatness(of_arm, arms, final, flatness, level),
    )


def _summary(
    arm: Arm,
    of_arm: Mapping[str, Sequence[Record]],
    metric: str,
    better: Better,
    vs_vanilla: Judgement | None,
    vs_control: Judgement | None,
) -> ArmSummary:
    records = of_arm[arm.name]
    finished = [record for record in records if record.status == "finished"]
    values = [record.final(metric) for record in finished]
    return ArmSummary(
        name=arm.name,
        description=arm.description,
        control=arm.control,
        is_control=arm.is_control,
        n=len(finished),
        failed=len(records) - len(finished),
        mean=fmean(values) if values else math.nan,
        sd=stdev(values) if len(values) > 1 else math.nan,
        best_mean=fmean(_best(record, metric, better) for record in finished) if finished else math.nan,
        vs_vanilla=vs_vanilla,
        vs_control=vs_control,
        time_ratio=_time_ratio(records, of_arm[VANILLA]),
    )


def _best(record: Record, metric: str, better: Better) -> float:
    values = [float(epoch[metric]) for epoch in record.epochs if math.isfinite(epoch.get(metric, math.nan))]
    return min(values) if better == "lower" else max(values)


def _time_ratio(records: Sequence[Record], vanilla: Sequence[Record]) -> float:
    """Median over seeds of the ratio of the median epoch times: pairs were run side by side."""
    ratios = [
        _epoch_time(own) / _epoch_time(base)
        for own, base in zip(records, vanilla, strict=True)
        if own.status == base.status == "finished" and _epoch_time(base) > 0
    ]
    return median(ratios) if ratios else math.nan


def _epoch_time(record: Record) -> float:
    return median(float(epoch["seconds"]) for epoch in record.epochs)

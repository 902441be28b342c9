"""From records to the flatness of a comparison: paired by seed, and held against the metric and the learning rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median, stdev

from flatwise.stats import Correlation, Verdict, rank_correlation
from flatwise.study.arms import Arm, judge_arms
from flatwise.study.flatness import FlatnessSettings, judged_measures
from flatwise.study.flatness_summary import ArmFlatness, FlatnessSummary, Measure
from flatwise.study.records import FlatnessRecord, Record

Values = Mapping[str, Sequence[float]]  # of each arm, by seed


def summarise_flatness(
    records: Mapping[str, Sequence[Record]],
    arms: Sequence[Arm],
    metric: Values,
    settings: FlatnessSettings,
    level: float,
    barred: Mapping[tuple[str, str], Verdict],
) -> FlatnessSummary:
    """Compares the arms' flatness as their metric is compared.

    Every measure is judged in a family of tests of its own, as the metric is: see :func:`judge_arms`.

    Args:
        records: of each arm, one per seed in the same order.
        arms: the arms, vanilla first.
        metric: the final metric of each arm by seed; NaN for a failed trial.
        settings: what was measured.
        level: family-wise level of the tests.
        barred: by arm and baseline, comparisons that must not be tested.
    """
    labels = judged_measures(settings.to_dict())
    values = {key: {name: [_value(record, key) for record in own] for name, own in records.items()} for key in labels}
    everything = [metric, *values.values()]
    complete = [arm.name for arm in arms if all(map(math.isfinite, (v for of in everything for v in of[arm.name])))]
    rate = {name: _mean(list(map(_mean_rate, own))) for name, own in records.items()}
    measured = [record.flatness for own in records.values() for record in own if record.flatness is not None]
    return FlatnessSummary(
        settings=settings.to_dict(),
        measures=tuple(
            _measure(key, labels[key], values[key], arms, metric, rate, complete, level, barred) for key in labels
        ),
        loss={name: _mean([_value(record, "loss") for record in own]) for name, own in records.items()},
        rate=rate,
        complete=tuple(complete),
        rate_with_metric=_over_arms(rate, {name: fmean(metric[name]) for name in complete}, complete),
        missing=tuple(_missing(record) for own in records.values() for record in own if _missing(record)[2]),
        trace_error=_trace_error(measured),
        unconverged=Counter(name for flatness in measured for name in flatness.unconverged),
        seconds=median(flatness.seconds for flatness in measured) if measured else math.nan,
    )


def _measure(
    key: str,
    label: str,
    values: Values,
    arms: Sequence[Arm],
    metric: Values,
    rate: Mapping[str, float],
    complete: Sequence[str],
    level: float,
    barred: Mapping[tuple[str, str], Verdict],
) -> Measure:
    vs_vanilla, vs_control = judge_arms(values, arms, better="lower", level=level, barred=barred)
    means = {name: _mean(values[name]) for name in values}
    metric_means = {name: fmean(metric[name]) for name in complete}
    return Measure(
        key=key,
        label=label,
        arms=tuple(
            ArmFlatness(
                arm=arm.name,
                values=tuple(values[arm.name]),
                missing=len(values[arm.name]) - len(_finite(values[arm.name])),
                mean=means[arm.name],
                sd=_sd(values[arm.name]),
                vs_vanilla=vs_vanilla.get(arm.name),
                vs_control=vs_control.get(arm.name),
            )
            for arm in arms
        ),
        with_metric=_over_arms(means, metric_means, complete),
        with_rate=_over_arms(means, rate, complete),
        beyond_rate=_over_arms(means, metric_means, complete, given=rate),
    )


def _over_arms(
    x: Mapping[str, float], y: Mapping[str, float], arms: Sequence[str], given: Mapping[str, float] | None = None
) -> Correlation:
    if not arms:
        return Correlation(math.nan, math.nan, math.nan, 0)
    return rank_correlation(
        [x[arm] for arm in arms], [y[arm] for arm in arms], None if given is None else [given[arm] for arm in arms]
    )


def _value(record: Record, key: str) -> float:
    return math.nan if record.flatness is None else float(record.flatness.values.get(key, math.nan))


def _mean_rate(record: Record) -> float:
    """Mean over the epochs of the effective rate at their last step."""
    return fmean(float(epoch["effective_lr"]) for epoch in record.epochs) if record.epochs else math.nan


def _missing(record: Record) -> tuple[str, int, str]:
    if record.flatness is None:
        return record.arm, record.seed, f"nothing was measured: the trial failed ({record.error})"
    by_reason: dict[str, list[str]] = {}
    for name, reason in record.flatness.missing.items():
        by_reason.setdefault(reason, []).append(name)
    return record.arm, record.seed, "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())


def _trace_error(measured: Sequence[FlatnessRecord]) -> float:
    values = [
        flatness.values for flatness in measured if flatness.values.get("trace") and "trace_error" in flatness.values
    ]
    return median(of["trace_error"] / abs(of["trace"]) for of in values) if values else math.nan


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _mean(values: Sequence[float]) -> float:
    return fmean(_finite(values)) if _finite(values) else math.nan


def _sd(values: Sequence[float]) -> float:
    return stdev(_finite(values)) if len(_finite(values)) > 1 else math.nan

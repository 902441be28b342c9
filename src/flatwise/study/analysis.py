"""From records to a comparison: pairing by seed, and the statistics of every pair of arms."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from statistics import fmean, median, stdev

import numpy as np

from flatwise.stats import Better, Correlation, Judgement, Verdict, rank_correlation
from flatwise.study.arms import VANILLA, Arm, judge_arms
from flatwise.study.comparison import ArmFlatness, ArmSummary, Comparison, FlatnessSummary, Measure
from flatwise.study.flatness import FlatnessSettings, judged_measures
from flatwise.study.provenance import versions
from flatwise.study.store import FlatnessRecord, JudgedArm, JudgedComparison, Record, Store
from flatwise.study.subjects import Subject, TrialSpec


def analyse(
    subject: Subject,
    records: Sequence[Record],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    *,
    level: float = 0.05,
    flatness: FlatnessSettings | None = None,
    store: Store | None = None,
) -> Comparison:
    """Compare arms by the final epoch's metric, paired by seed.

    The methods against vanilla are one family of tests; a method and its control, and that control and vanilla, are
    tested behind the method's verdict: see :func:`judge_arms`. Methods that the store has judged on this subject before
    stay in the family.

    Nothing is tested where seeds are not independent (two trainings of an arm are the same in all metrics of all
    epochs), or where the epochs of two arms differ in number.

    Args:
        subject: what was trained and is judged.
        records: one per arm and seed.
        arms: the arms, vanilla first.
        seeds: the seeds, in the order of the pairs.
        level: family-wise level of the tests; default 0.05.
        flatness: the settings by which the final models' flatness was measured; default: it was not.
        store: the store, which remembers the comparisons judged before; default: none.
    """
    metric, better = subject.metric, subject.better
    by_trial = {(record.arm, record.seed): record for record in records}
    of_arm = {arm.name: [by_trial[arm.name, seed] for seed in seeds] for arm in arms}
    judged = [] if store is None else store.judged(subject.family)
    others, of_others, absent = ([], {}, []) if store is None else _earlier(judged, arms, seeds, store)
    everything, of_all = [*arms, *others], {**of_arm, **of_others}
    # A failed trial is NaN, which makes the pair's verdict "failed".
    final = {name: [record.final(metric) for record in own] for name, own in of_all.items()}
    repeats = {name: repeated_seeds(own) for name, own in of_all.items()}
    barred = _barred(everything, of_all, repeats)
    helps, noise = judge_arms(final, everything, better=better, level=level, barred=barred, absent=len(absent))
    summaries = tuple(
        _summary(arm, of_arm, metric, better, helps.get(arm.name), noise.get(arm.name), repeats[arm.name])
        for arm in arms
    )
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
        flatness=None if flatness is None else summarise_flatness(of_arm, arms, final, flatness, level, barred),
        earlier_arms=tuple([arm.description for arm in others if not arm.is_control] + absent),
        earlier_seeds=tuple(dict.fromkeys(each.seeds for each in judged if set(each.seeds) != set(seeds))),
    )


def judged_comparison(specs: Sequence[TrialSpec], arms: Sequence[Arm], seeds: Sequence[int]) -> JudgedComparison:
    """What a store remembers of a comparison that was judged."""
    keys: dict[str, dict[int, str]] = {arm.name: {} for arm in arms}
    for spec in specs:
        if spec.seed in seeds:
            keys[spec.arm.name][spec.seed] = spec.key
    return JudgedComparison(
        seeds=tuple(seeds),
        arms=tuple(
            JudgedArm(arm.name, arm.control, arm.is_control, _identity(arm), keys[arm.name])
            for arm in arms
            if arm.name != VANILLA
        ),
    )


def _identity(arm: Arm) -> str:
    return json.dumps([arm.to_dict(), dict(arm.settings)], sort_keys=True)


def _earlier(
    judged: Sequence[JudgedComparison], arms: Sequence[Arm], seeds: Sequence[int], store: Store
) -> tuple[list[Arm], dict[str, list[Record]], list[str]]:
    """Methods that were judged before and are not asked for now.

    Returns:
        As arms, under names that no other arm has, and their records; and the names of those that have no records of
        these seeds and versions.
    """
    known = {_identity(arm) for arm in arms}
    found: list[Arm] = []
    records: dict[str, list[Record]] = {}
    absent: list[str] = []
    for comparison in reversed(judged):
        controls = {arm.name: arm for arm in comparison.arms if arm.is_control}
        for arm in comparison.arms:
            if arm.is_control or arm.identity in known:
                continue
            known.add(arm.identity)
            own = _records(arm, seeds, store)
            if own is None:
                absent.append(arm.name)
                continue
            name = f"\n{len(found)}"
            control = controls.get(arm.control or "")
            of_control = None if control is None else _records(control, seeds, store)
            if of_control is not None:
                found.append(Arm(f"{name} (control)", is_control=True))
                records[found[-1].name] = of_control
            found.append(Arm(name, description=arm.name, control=None if of_control is None else f"{name} (control)"))
            records[name] = own
    return found, records, absent


def _records(arm: JudgedArm, seeds: Sequence[int], store: Store) -> list[Record] | None:
    found = [store.get(arm.keys.get(seed, "")) for seed in seeds]
    whole = [record for record in found if record is not None and record.versions == versions()]
    return whole if len(whole) == len(found) else None


def _barred(
    arms: Sequence[Arm], of_arm: Mapping[str, Sequence[Record]], repeats: Mapping[str, Sequence[int]]
) -> dict[tuple[str, str], Verdict]:
    barred: dict[tuple[str, str], Verdict] = {}
    for arm in arms:
        for baseline in {VANILLA, arm.control or VANILLA} - {arm.name}:
            own, other = of_arm[arm.name], of_arm[baseline]
            pairs = [(a, b) for a, b in zip(own, other, strict=True) if a.status == b.status == "finished"]
            if repeats[arm.name] or repeats[baseline]:
                barred[arm.name, baseline] = "not independent"
            elif any(len(a.epochs) != len(b.epochs) for a, b in pairs):
                barred[arm.name, baseline] = "not comparable"
            elif pairs and all(a.same_metrics(b) for a, b in pairs) and _says_enough([a for a, _ in pairs]):
                barred[arm.name, baseline] = "does nothing"
    return barred


def repeated_seeds(records: Sequence[Record]) -> tuple[int, ...]:
    """The seeds whose training is the same as an earlier one's: in all metrics of all epochs, to the bit.

    Different trainings can tie in a discrete metric, and if they collapse or are perfect in all epochs. So trainings
    count as the same only if their metrics are detailed enough to tell trainings apart; see ``_says_enough``.
    """
    groups: dict[object, list[Record]] = {}
    for record in records:
        if record.status == "finished":
            groups.setdefault(tuple(record.metrics()), []).append(record)
    return tuple(record.seed for group in groups.values() if _says_enough(group) for record in group[1:])


def _says_enough(records: Sequence[Record]) -> bool:
    """Whether records that agree in all metrics must come from one training.

    This holds if some metric takes at least two values that are not simple fractions, as a loss does (that of a
    collapsed model is constant), or at least eight different values, as an error rate over ten epochs may. With a
    single epoch it takes two values that are not simple fractions, or one if three or more records agree.
    """
    values: dict[str, set[float]] = {}
    for record in records:
        for epoch in record.metrics():
            for name, value in epoch:
                if value is not None and math.isfinite(value):
                    values.setdefault(name, set()).add(value)
    fine = {name: sum(not _is_simple(value) for value in found) for name, found in values.items()}
    if max(len(record.epochs) for record in records) == 1:
        return sum(fine.values()) >= (1 if len(records) > 2 else 2)
    return any(fine[name] >= 2 or len(found) >= 8 for name, found in values.items())


def _is_simple(value: float) -> bool:
    """Whether a number is a fraction with a small denominator, as error rates and counts are, in either precision."""
    size = max(1.0, abs(value))

    def near(most: float, unit: float) -> bool:
        fraction = Fraction(value).limit_denominator(max(1, int(most / size)))
        return abs(float(fraction) - value) <= 2 * unit * size

    return near(1e5, 2.0**-52) or (float(np.float32(value)) == value and near(1e3, 2.0**-24))


def _summary(
    arm: Arm,
    of_arm: Mapping[str, Sequence[Record]],
    metric: str,
    better: Better,
    vs_vanilla: Judgement | None,
    vs_control: Judgement | None,
    repeats: tuple[int, ...],
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
        repeats=repeats,
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

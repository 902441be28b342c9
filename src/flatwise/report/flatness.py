"""The flatness of a comparison's models in words: its tables, and what they say in plain language, and no more.

Two questions are answered. Does a method's model lie flatter than vanilla's, and is that more than its mean rate does?
(Judged as the metric is, measure by measure.) And over all arms: does flatness go along with the metric, or with the
learning rate? (Rank correlations. They describe these arms; "not shown" is never read as "none".)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from flatwise.report import figures
from flatwise.report.comparison import (
    ARM,
    arm_rows,
    decimals,
    difference_unit,
    final_value,
    methods,
    metric_label,
    verdict_of,
)
from flatwise.report.table import (
    NOTHING,
    Cell,
    Column,
    Table,
    cell,
    decimals_of,
    interval,
    labelled,
    listing,
    mean_and_sd,
    number,
    p_equals,
)
from flatwise.stats import UNTESTED, Correlation, Judgement, Verdict
from flatwise.study.comparison import ArmFlatness, ArmSummary, Comparison, FlatnessSummary, Measure

# With fewer points a partial rank correlation has no interval.
FEWEST_ARMS = 5
INCREASE = "loss increase at radius "

# A lower curvature is flatter; whether that is better, only the metric tells.
_WORDS: dict[Verdict, str] = {
    "helps": "lower",
    "hurts": "higher",
    "does nothing": "inconclusive",
    "failed": "missing",
}


def verdict_on(judgement: Judgement | None) -> str:
    """``"lower"``, ``"higher"``, or why there is no such verdict; empty where nothing is compared."""
    return "" if judgement is None else _WORDS.get(judgement.verdict, judgement.verdict)


# Tables


def against_vanilla(comparison: Comparison, flatness: FlatnessSummary) -> Table:
    """Every arm: the judged metric, the loss, and the measures with their paired differences from vanilla's."""
    losses = [loss for loss in flatness.loss.values() if math.isfinite(loss) and loss > 0]
    places = min(8, max(0, 2 - math.floor(math.log10(min(losses))))) if losses else 4

    def cells(arm: ArmSummary) -> Iterable[Cell]:
        verdict = "" if arm.vs_vanilla is None else arm.vs_vanilla.verdict
        yield cell(final_value(comparison, arm), (verdict, "dim"))
        yield cell(number(flatness.loss[arm.name], places))
        yield from _measure_cells(flatness, arm)

    columns = (ARM, Column(f"{metric_label(comparison)}\nmean ± sd"), Column("training\nloss"))
    return Table((*columns, *_measure_columns(flatness)), arm_rows(comparison, comparison.arms, cells))


def against_controls(comparison: Comparison, flatness: FlatnessSummary) -> Table:
    """The methods that have a control of their own: the paired differences from it."""

    def cells(arm: ArmSummary) -> Iterable[Cell]:
        places = decimals(comparison)
        if arm.vs_control is not None:
            difference = number(arm.vs_control.mean, places, signed=True)
            bounds = interval(arm.vs_control.low, arm.vs_control.high, places)
            yield cell(f"{difference} ({bounds})" if bounds else difference, (arm.vs_control.verdict, "dim"))
        yield from _measure_cells(flatness, arm, control=True)

    columns = (ARM, Column(labelled(comparison.metric, difference_unit(comparison), "\n")))
    controlled = [arm for arm in comparison.arms if arm.vs_control is not None]
    return Table((*columns, *_measure_columns(flatness)), arm_rows(comparison, controlled, cells))


class Scale(NamedTuple):
    """How a measure's numbers are written: times a power of ten, with so many decimals."""

    power: int
    places: int


def scale_of(measure: Measure) -> Scale:
    """The measure's scale: numbers with more than three decimals are written in thousandths."""
    places = decimals_of(of.sd for of in measure.arms)
    return Scale(3, places - 3) if places > 3 else Scale(0, places)


def _measure_columns(flatness: FlatnessSummary) -> list[Column]:
    return [
        Column(m.label.replace(" at ", "\nat ") + ("\n(× 10⁻³)" if scale_of(m).power else ""))
        for m in flatness.measures
    ]


def _measure_cells(flatness: FlatnessSummary, arm: ArmSummary, *, control: bool = False) -> Iterable[Cell]:
    """Each measure of an arm with its difference from vanilla's, or its difference from the control's alone."""
    for measure in flatness.measures:
        power, places = scale_of(measure)
        factor = 10.0**power
        of = _of(measure, arm.name)
        judgement = of.vs_control if control else of.vs_vanilla
        lines = [] if control else [mean_and_sd(of.mean * factor, of.sd * factor, places)]
        verdict, is_shown, note = verdict_on(judgement), verdict_on(judgement) in ("lower", "higher"), ""
        if judgement is not None and verdict != "missing":
            lines.append(number(judgement.mean * factor, places, signed=True))
            lines.append(interval(judgement.low * factor, judgement.high * factor, places))
            note = p_equals(judgement.p_corrected) if is_shown else ""
        if of.missing:
            note = f"missing on {of.missing} of {len(of.values)} seeds"
        arrow = {"lower": "↓ ", "higher": "↑ "}.get(verdict, "")
        last = f"{arrow}{', '.join(filter(None, (verdict, note)))}"
        yield cell(*lines, (last, "strong" if is_shown else "dim"))


# Sentences


def flatness_headline(comparison: Comparison, flatness: FlatnessSummary) -> str:
    """Whether, in this study, flatness goes along with the metric or with the learning rate."""
    arms = len(flatness.complete)
    measures = [m for m in flatness.measures if m.with_rate.n >= FEWEST_ARMS]
    if not measures:
        return (
            f"{arms} {'arm has' if arms == 1 else 'arms have'} all measures on all seeds: too few to say what flatness "
            f"goes along with. It takes {FEWEST_ARMS}."
        )
    with_rate = sum(m.with_rate.shown for m in measures)
    with_metric = [m for m in measures if m.with_metric.shown]
    text = (
        f"Over the {arms} arms, {with_rate or 'none'} of the {len(measures)} measures of flatness "
        f"{'were' if with_rate > 1 else 'was'} shown to go along with the mean learning rate, and "
        f"{len(with_metric) or 'none'} with {comparison.metric}"
    )
    if not with_metric:
        return f"{text}."
    better = sum((m.with_metric.value > 0) == (comparison.better == "lower") for m in with_metric)
    if better == len(with_metric):
        text += ", the flatter arms having the better one"
    elif better == 0:
        text += ", the flatter arms having the worse one"
    else:
        text += f": the flatter arms have the better one by {better} of these, the worse by {len(with_metric) - better}"
    if not with_rate:
        return f"{text}."
    beyond = sum(m.beyond_rate.shown for m in with_metric)
    return f"{text}; with the rate held fixed, {beyond or 'none'} of the latter still {'do' if beyond > 1 else 'does'}."


def correlation_lines(comparison: Comparison, flatness: FlatnessSummary) -> list[tuple[str, str]]:
    """For every measure its name and a sentence: what it goes along with over the arms."""
    return [(m.label, _correlations(comparison, m)) for m in flatness.measures if m.with_rate.n >= FEWEST_ARMS]


def _correlations(comparison: Comparison, m: Measure) -> str:
    name = comparison.metric
    numbers = (
        f"rank correlation with the mean learning rate {coefficient(m.with_rate)}, with {name} "
        f"{coefficient(m.with_metric)}: "
    )
    with_rate = f"arms with the higher rate have the {'higher' if m.with_rate.value > 0 else 'lower'} one"
    with_metric = f"arms with the lower one have the {'lower' if m.with_metric.value > 0 else 'higher'} {name}"
    if not m.with_rate.shown and not m.with_metric.shown:
        return f"{numbers}neither relation was shown."
    if not m.with_metric.shown:
        return f"{numbers}{with_rate}; a relation with {name} was not shown."
    if not m.with_rate.shown:
        return f"{numbers}{with_metric}; a relation with the rate was not shown."
    left = "something is left" if m.beyond_rate.shown else "nothing is left that was shown"
    return (
        f"{numbers}{with_rate}, and {with_metric}. With the rate held fixed the correlation with {name} is "
        f"{coefficient(m.beyond_rate)}: {left}."
    )


def coefficient(correlation: Correlation) -> str:
    """``"−0.92 (−0.98 to −0.70)"``; ``"unknown"`` where there is none."""
    value, low, high = (number(x, 2, signed=True) for x in (correlation.value, correlation.low, correlation.high))
    return "unknown" if value == NOTHING else f"{value} ({low} to {high})"


def method_lines(comparison: Comparison, flatness: FlatnessSummary) -> list[tuple[str, str]]:
    """For every method its name and a few sentences: the metric's verdict, then the measures'."""
    return [(arm.name, _method(comparison, flatness, arm)) for arm in methods(comparison)]


def _method(comparison: Comparison, flatness: FlatnessSummary, arm: ArmSummary) -> str:
    verdict = "not tested" if verdict_of(arm.vs_vanilla) in UNTESTED else verdict_of(arm.vs_vanilla)
    by_verdict: dict[str, list[str]] = {}
    for m in flatness.measures:
        by_verdict.setdefault(verdict_on(_of(m, arm.name).vs_vanilla), []).append(m.label)
    text = f"on {comparison.metric} {verdict}. Against vanilla {_listed(by_verdict)}."
    if arm.control in [other.name for other in comparison.arms[1:]]:
        return " ".join([text, *_against_control(flatness, arm)])
    if not {"lower", "higher"} & set(by_verdict):
        return text
    if arm.control == comparison.arms[0].name:
        return f"{text} Its mean rate is vanilla's own, so this is not the mean rate's."
    return f"{text} No control at the same mean rate was compared: this may be the mean rate's."


def _listed(by_verdict: dict[str, list[str]]) -> str:
    clauses = [f"{word} in {_names(by_verdict[word])}" for word in ("lower", "higher") if word in by_verdict]
    same = by_verdict.get("inconclusive", []) + by_verdict.get("skewed", [])
    if same:
        clauses.append(f"not shown to differ in {_names(same) if clauses else 'any measure'}")
    for word, cause in (
        ("missing", "for missing values"),
        ("not independent", "because seeds are not independent"),
        ("not comparable", "because the numbers of epochs differ"),
    ):
        if word in by_verdict:
            clauses.append(f"not tested, {cause}, in {_names(by_verdict[word])}")
    return "; ".join(clauses)


def _names(labels: Sequence[str]) -> str:
    """The labels as a list, the loss increases in one: ``"trace and loss increase at radii 0.1 and 0.2"``."""
    radii = [label.removeprefix(INCREASE) for label in labels if label.startswith(INCREASE)]
    names = [label for label in labels if not label.startswith(INCREASE)]
    if radii:
        names.append(f"{INCREASE}{radii[0]}" if len(radii) == 1 else f"loss increase at radii {listing(radii)}")
    return listing(names)


def _against_control(flatness: FlatnessSummary, arm: ArmSummary) -> list[str]:
    """What the control at the same mean rate says of each measure that differs from vanilla's or from its own."""
    found: dict[str, list[str]] = {key: [] for key in _CONTROL_SAYS}
    for m in flatness.measures:
        of = _of(m, arm.name)
        method, direct = verdict_on(of.vs_vanilla), verdict_on(of.vs_control)
        control = verdict_on(_of(m, str(arm.control)).vs_vanilla)
        if method not in ("lower", "higher"):
            key = direct
        elif direct in ("lower", "higher"):
            key = "own" if direct == method else "opposed"
        else:
            key = "enough" if direct in ("inconclusive", "skewed") and control == method else "open"
        if key in found:
            found[key].append(m.label)
    return [_CONTROL_SAYS[key].format(_names(labels)) for key, labels in found.items() if labels]


def _of(measure: Measure, arm: str) -> ArmFlatness:
    return next(of for of in measure.arms if of.arm == arm)


_CONTROL_SAYS = {
    "own": "It differs from its control at the same mean rate in the same direction in {}: more than the mean rate's.",
    "enough": "In {} its control differs from vanilla likewise, and no difference between the two was shown: the mean "
    "rate is enough to explain it.",
    "opposed": "In {} its control goes further in the same direction than the method does.",
    "open": "In {} whether it is more than the mean rate's is open.",
    "lower": "It is lower than its control in {}.",
    "higher": "It is higher than its control in {}.",
}


# The page


def flatness_content(comparison: Comparison) -> dict[str, Any] | None:
    """What ``flatness.html.jinja`` asks for; ``None`` where flatness was not measured."""
    flatness = comparison.flatness
    if flatness is None:
        return None
    return {
        "summary": flatness,
        "headline": flatness_headline(comparison, flatness),
        "lines": method_lines(comparison, flatness),
        "vanilla": against_vanilla(comparison, flatness),
        "controls": against_controls(comparison, flatness),
        "correlations": correlation_lines(comparison, flatness),
        "rate_with_metric": coefficient(flatness.rate_with_metric),
        "strips": figures.arm_beside_arm(comparison, flatness),
        "scatters": figures.against_metric_and_rate(comparison, flatness),
    }

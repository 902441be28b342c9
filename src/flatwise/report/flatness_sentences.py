"""What the flatness measures say, in plain language, and no more than that.

Two questions are answered. Does a method's model lie flatter than vanilla's, and is that more than its mean rate does?
(Judged as the metric is, measure by measure.) And over all arms: does flatness go along with the metric, or with the
learning rate? (Rank correlations. They describe these arms; "not shown" is never read as "none".)
"""

from __future__ import annotations

from collections.abc import Sequence

from flatwise.report.flatness_rows import verdict_on
from flatwise.report.rows import NOTHING, listing, number
from flatwise.stats import UNTESTED, Correlation
from flatwise.study.comparison import ArmSummary, Comparison, FlatnessSummary, Measure

# With fewer points a partial rank correlation has no interval.
FEWEST_ARMS = 5
INCREASE = "loss increase at radius "


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
        text += ", the flatwise arms having the better one"
    elif better == 0:
        text += ", the flatwise arms having the worse one"
    else:
        text += (
            f": the flatwise arms have the better one by {better} of these, the worse by {len(with_metric) - better}"
        )
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
    if m.with_rate.shown and not m.with_metric.shown:
        return f"{numbers}{with_rate}; a relation with {name} was not shown."
    if m.with_metric.shown and not m.with_rate.shown:
        return f"{numbers}{with_metric}; a relation with the rate was not shown."
    if not m.with_metric.shown:
        return f"{numbers}neither relation was shown."
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
    return [
        (arm.name, _method(comparison, flatness, arm, index))
        for index, arm in enumerate(comparison.arms)
        if index > 0 and not arm.is_control
    ]


def _method(comparison: Comparison, flatness: FlatnessSummary, arm: ArmSummary, index: int) -> str:
    verdict = "not tested" if arm.vs_vanilla is None or arm.vs_vanilla.verdict in UNTESTED else arm.vs_vanilla.verdict
    by_verdict: dict[str, list[str]] = {}
    for m in flatness.measures:
        by_verdict.setdefault(verdict_on(m.arms[index].vs_vanilla), []).append(m.label)
    parts = [f"on {comparison.metric} {verdict}. Against vanilla {_listed(by_verdict)}."]
    control = next((i for i, other in enumerate(comparison.arms) if other.name == arm.control), None)
    moved = bool(by_verdict.get("lower") or by_verdict.get("higher"))
    if control == 0:
        parts += ["Its mean rate is vanilla's own, so this is not the mean rate's."] if moved else []
    elif control is None:
        parts += ["No control at the same mean rate was compared: this may be the mean rate's."] if moved else []
    else:
        parts += _against_control(flatness, index, control)
    return " ".join(parts)


def _listed(by_verdict: dict[str, list[str]]) -> str:
    clauses = [f"{word} in {_names(by_verdict[word])}" for word in ("lower", "higher") if word in by_verdict]
    same = by_verdict.get("inconclusive", []) + by_verdict.get("skewed", [])
    if same:
        clauses.append(f"not shown to differ in {_names(same) if clauses else 'any measure'}")
    if "missing" in by_verdict:
        clauses.append(f"not tested, for missing values, in {_names(by_verdict['missing'])}")
    for word, cause in (
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


def _against_control(flatness: FlatnessSummary, index: int, control: int) -> list[str]:
    """What the control at the same mean rate says of each measure that differs from vanilla's or from its own."""
    found: dict[str, list[str]] = {key: [] for key in _CONTROL_SAYS}
    for m in flatness.measures:
        method, direct = verdict_on(m.arms[index].vs_vanilla), verdict_on(m.arms[index].vs_control)
        of_control = verdict_on(m.arms[control].vs_vanilla)
        differs = method in ("lower", "higher")
        if differs and direct == method:
            key = "own"
        elif differs and direct in ("lower", "higher"):
            key = "opposed"
        elif differs:
            key = "enough" if direct in ("inconclusive", "skewed") and of_control == method else "open"
        elif direct in ("lower", "higher"):
            key = direct
        else:
            continue
        found[key].append(m.label)
    return [_CONTROL_SAYS[key].format(_names(labels)) for key, labels in found.items() if labels]


_CONTROL_SAYS = {
    "own": "It differs from its control at the same mean rate in the same direction in {}: more than the mean rate's.",
    "enough": "In {} its control differs from vanilla likewise, and no difference between the two was shown: the mean "
    "rate is enough to explain it.",
    "opposed": "In {} its control goes further in the same direction than the method does.",
    "open": "In {} whether it is more than the mean rate's is open.",
    "lower": "It is lower than its control in {}.",
    "higher": "It is higher than its control in {}.",
}

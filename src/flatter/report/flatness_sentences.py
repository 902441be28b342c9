"""What the flatness measures say, in plain language, and no more than that.

Two questions are answered. Does a method's model lie flatter than vanilla's, and is that more than its mean rate does?
(Judged as the metric is, measure by measure.) And over all arms: does flatness go along with the metric, or with the
learning rate? (Rank correlations. They describe these arms; "not shown" is never read as "none".)
"""

from __future__ import annotations

from flatter.report.flatness_rows import verdict_on
from flatter.report.rows import NOTHING, listing, number
from flatter.stats import Correlation
from flatter.study.comparison import ArmSummary, Comparison
from flatter.study.flatness_summary import FlatnessSummary, Measure

# With fewer points a partial rank correlation has no interval.
FEWEST_ARMS = 5


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
        f"{'goes' if with_rate == 1 else 'go'} along with the mean learning rate, and {len(with_metric) or 'none'} "
        f"with {comparison.metric}"
    )
    if not with_metric or not with_rate:
        return f"{text}."
    beyond = sum(m.beyond_rate.shown for m in with_metric)
    return f"{text}; with the rate held fixed, {beyond or 'none'} of the latter still {'does' if beyond < 2 else 'do'}."


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
    verdict = "not tested" if arm.vs_vanilla is None or arm.vs_vanilla.verdict == "failed" else arm.vs_vanilla.verdict
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
    rest = {"inconclusive": "not shown to differ in", "missing": "not tested, for missing values, in"}
    clauses = [f"{word} in {listing(by_verdict[word])}" for word in ("lower", "higher") if word in by_verdict]
    for word, clause in rest.items():
        if word in by_verdict:
            only = len(by_verdict) == 1 and len(by_verdict[word]) > 1
            clauses.append(f"{clause} {'any measure' if only else listing(by_verdict[word])}")
    return "; ".join(clauses)


def _against_control(flatness: FlatnessSummary, index: int, control: int) -> list[str]:
    """What the control at the same mean rate says of each measure that differs from vanilla's or from its own."""
    enough, own, opposed, undecided, only = [], [], [], [], []
    for m in flatness.measures:
        method, direct = verdict_on(m.arms[index].vs_vanilla), verdict_on(m.arms[index].vs_control)
        of_control = verdict_on(m.arms[control].vs_vanilla)
        if method not in ("lower", "higher"):
            if direct in ("lower", "higher"):
                only.append(f"{direct} in {m.label}")
        elif direct == method:
            own.append(m.label)
        elif direct in ("lower", "higher"):
            opposed.append(m.label)
        elif direct == "inconclusive" and of_control == method:
            enough.append(m.label)
        else:
            undecided.append(m.label)
    parts = []
    if enough:
        parts.append(
            f"In {listing(enough)} its control at the same mean rate differs from vanilla likewise, and no difference "
            "between the two was shown: the mean rate is enough to explain it."
        )
    if own:
        parts.append(f"In {listing(own)} it differs from its control too, in the same direction: more than the rate's.")
    if opposed:
        parts.append(f"In {listing(opposed)} its control goes further in the same direction than the method does.")
    if undecided:
        parts.append(f"In {listing(undecided)} whether it is more than the mean rate's is open.")
    if only:
        parts.append(f"Against its control at the same mean rate it is {listing(only)}.")
    return parts

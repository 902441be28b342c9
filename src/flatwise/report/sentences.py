"""The verdicts in plain language: one sentence for the whole comparison, and a line or two for each method.

A method is held against vanilla (does it help?) and against its control, an arm with the same mean rate and nothing
else (is it more than the rate?). What the two say together also depends on how the control does against vanilla, so
every combination has its own words in `EXPLANATIONS`. Both are only tested where the method has a verdict against
vanilla. "Inconclusive" is never read as "equal".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flatwise.report.rows import decimals, difference_unit, judged, listing, number, p_value, with_unit
from flatwise.stats import UNTESTED, Judgement
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.hints import settle_words

Outcome = Literal["helps", "hurts", "inconclusive"]

_CONTRADICTION = (
    "Vanilla, the method and its control at the same mean rate are each shown to beat the next in a circle, "
    "which cannot be: look at the differences seed by seed."
)

EXPLANATIONS: dict[tuple[Outcome, Outcome, Outcome], str] = {
    # (the method against vanilla, the method against its control, the control against vanilla)
    ("helps", "helps", "helps"): (
        "Its control at the same mean rate helps too, but less: the mean rate explains part of the gain, not all of it."
    ),
    ("helps", "helps", "inconclusive"): (
        "It also beats its control at the same mean rate: the gain is more than the mean rate's."
    ),
    ("helps", "helps", "hurts"): (
        "Its control at the same mean rate hurts: the gain is the method's own, in spite of the rate."
    ),
    ("helps", "inconclusive", "helps"): (
        "Its control at the same mean rate helps too, and no difference between the two was shown: "
        "the mean rate is enough to explain the gain."
    ),
    ("helps", "inconclusive", "inconclusive"): (
        "Its control at the same mean rate was not shown to differ from it, nor from vanilla: "
        "whether the gain is more than the mean rate's is open."
    ),
    ("helps", "inconclusive", "hurts"): (
        "Its control at the same mean rate hurts, so the mean rate does not explain the gain, "
        "though the direct comparison of the two is inconclusive."
    ),
    ("helps", "hurts", "helps"): (
        "Its control at the same mean rate does better still: "
        "the gain is the mean rate's, and the method loses part of it."
    ),
    ("helps", "hurts", "inconclusive"): (
        "It does worse than its control at the same mean rate: the gain is not the method's own."
    ),
    ("helps", "hurts", "hurts"): _CONTRADICTION,
    ("hurts", "hurts", "hurts"): (
        "Its control at the same mean rate hurts too, but less: the mean rate explains part of the harm, not all of it."
    ),
    ("hurts", "hurts", "inconclusive"): (
        "It also does worse than its control at the same mean rate: the harm is more than the mean rate's."
    ),
    ("hurts", "hurts", "helps"): (
        "Its control at the same mean rate helps: the harm is the method's own, in spite of the rate."
    ),
    ("hurts", "inconclusive", "hurts"): (
        "Its control at the same mean rate hurts too, and no difference between the two was shown: "
        "the mean rate is enough to explain the harm."
    ),
    ("hurts", "inconclusive", "inconclusive"): (
        "Its control at the same mean rate was not shown to differ from it, nor from vanilla: "
        "whether the harm is more than the mean rate's is open."
    ),
    ("hurts", "inconclusive", "helps"): (
        "Its control at the same mean rate helps, so the mean rate does not explain the harm, "
        "though the direct comparison of the two is inconclusive."
    ),
    ("hurts", "helps", "hurts"): (
        "Its control at the same mean rate hurts more: the harm is the mean rate's, and the method undoes part of it."
    ),
    ("hurts", "helps", "inconclusive"): (
        "It does better than its control at the same mean rate: the harm is not the method's own."
    ),
    ("hurts", "helps", "helps"): _CONTRADICTION,
}


def headline(comparison: Comparison) -> str:
    """The whole comparison in one sentence: which methods help, hurt or are undecided, and whose the gain is."""
    methods = _methods(comparison)
    if not methods:
        return "Only vanilla was run: there is nothing to compare."
    clauses = []
    for verdict, one, several in (
        ("helps", "helps", "help"),
        ("hurts", "hurts", "hurt"),
        ("inconclusive", "is inconclusive", "are inconclusive"),
        ("skewed", "is too skewed to judge", "are too skewed to judge"),
        ("does nothing", "does nothing", "do nothing"),
        ("not independent", "was not tested because its seeds repeat", "were not tested because their seeds repeat"),
        ("not comparable", "trained another number of epochs", "trained another number of epochs"),
        ("failed", "could not be tested", "could not be tested"),
    ):
        names = [arm.name for arm in methods if _verdict(arm.vs_vanilla) == verdict]
        if names:
            clauses.append(f"{listing(names)} {several if len(names) > 1 else one}")
    helping = [arm for arm in methods if _verdict(arm.vs_vanilla) == "helps"]
    if not helping:
        return f"No method was shown to help: {'; '.join(clauses)}."
    clauses[0] += _whose_gain(comparison, helping)
    return f"Against vanilla, {'; '.join(clauses)}."


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before the verdicts: repeated seeds, earlier looks, earlier arms."""
    lines = []
    for arm in comparison.arms:
        if arm.repeats:
            lines.append(
                f"Seeds are not independent: in {arm.name}, {_seeds(arm.repeats)} gave the same metrics as an earlier "
                "seed in every epoch, to the last bit. One training counted several times shows nothing: let the "
                "training function take its initial weights and its batches from trial.seed."
            )
    if comparison.earlier_seeds:
        counts = [str(len(seeds)) for seeds in comparison.earlier_seeds]
        lines.append(
            f"This is not the first look: these trainings were judged before with {listing(counts)} seeds. Verdicts "
            "that come from looking again with more seeds are more often false than the level says: with a look after "
            "every 10 seeds up to 100, in about 17 % of comparisons without any effect, instead of 5 %. Choose the "
            "number of seeds in advance."
        )
    if comparison.earlier_arms:
        names = listing(comparison.earlier_arms)
        is_one = len(comparison.earlier_arms) == 1
        lines.append(
            f"The correction counts {names} too: {'it was' if is_one else 'they were'} judged on this task before, and "
            f"leaving {'it' if is_one else 'them'} out now does not make the other verdicts more certain."
        )
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {listing(map(str, seeds))}"


def summary_lines(comparison: Comparison) -> list[str]:
    """One line of plain language per method (not per control), in the comparison's order."""
    return [_line(comparison, arm) for arm in _methods(comparison)]


def _methods(comparison: Comparison) -> list[ArmSummary]:
    return [arm for arm in comparison.arms[1:] if not arm.is_control]


def _verdict(judgement: Judgement | None) -> str:
    return "failed" if judgement is None else judgement.verdict


def _whose_gain(comparison: Comparison, helping: list[ArmSummary]) -> str:
    own = [arm.name for arm in helping if gain_is_own(comparison, arm)]
    if not own:
        return ", but nothing shows that the gain is more than the mean rate's"
    if len(own) == len(helping):
        return ", and by more than the mean rate explains"
    return f" (only {listing(own)} by more than the mean rate explains)"


def gain_is_own(comparison: Comparison, arm: ArmSummary) -> bool:
    """Whether a helping arm's gain is shown to be more than its mean rate's."""
    if arm.control == comparison.arms[0].name:
        return True
    against_control = _verdict(arm.vs_control)
    control_hurts = _verdict(_control_against_vanilla(comparison, arm)) == "hurts"
    return against_control == "helps" or (against_control == "inconclusive" and control_hurts)


def _control_of(comparison: Comparison, arm: ArmSummary) -> ArmSummary | None:
    return next((other for other in comparison.arms if other.name == arm.control), None)


def _control_against_vanilla(comparison: Comparison, arm: ArmSummary) -> Judgement | None:
    control = _control_of(comparison, arm)
    return None if control is None else control.vs_vanilla


def _line(comparison: Comparison, arm: ArmSummary) -> str:
    parts = [_against_vanilla(comparison, arm)]
    verdict = _verdict(arm.vs_vanilla)
    if arm.vs_control is not None:
        parts.append(_against_control(comparison, arm, arm.vs_control))
    elif verdict in ("helps", "hurts"):
        change = "gain" if verdict == "helps" else "harm"
        if arm.control == comparison.arms[0].name:
            parts.append(f"Its mean rate is vanilla's own, so the {change} is not the mean rate's.")
        else:
            parts.append(f"No control at the same mean rate was compared: the {change} may be the mean rate's.")
    return " ".join(part for part in parts if part)


def _against_vanilla(comparison: Comparison, arm: ArmSummary) -> str:
    judgement, vanilla = arm.vs_vanilla, comparison.arms[0]
    if judgement is None or judgement.verdict in UNTESTED:
        return f"{arm.name}: not tested against vanilla, because {_why_untested(arm, vanilla, judgement)}."
    if judgement.verdict == "does nothing":
        return f"{arm.name} does nothing: on every seed all metrics of all epochs are {vanilla.name}'s to the bit."
    places, unit = decimals(comparison), difference_unit(comparison)
    text = judged(judgement, places)
    # One pair has no interval.
    interval = [f"95 % interval {text.interval}"] if text.interval else []
    if judgement.verdict == "inconclusive":
        aside = f" ({interval[0]})" if interval else ""
        difference = with_unit(text.difference, unit)
        return f"{arm.name}: inconclusive. {difference} against vanilla{aside}; {_settle(judgement)}."
    if judgement.verdict == "skewed":
        p_values = f"sign-flip p = {p_value(judgement.p)}, adjusted for skewness {p_value(judgement.p_skewness)}"
        return (
            f"{arm.name}: no verdict, the differences are too skewed. {with_unit(text.difference, unit)} against "
            f"vanilla ({', '.join([p_values, *interval])}): with so few seeds and such asymmetric differences the "
            "sign-flip test errs too often. Look at them seed by seed, or decide on more seeds and run those."
        )
    amount = with_unit(number(abs(judgement.mean), places), unit)
    side = "lower" if judgement.mean < 0 else "higher"
    p = f"corrected p {text.p if text.p.startswith('<') else f'= {text.p}'}"
    return (
        f"{arm.name} {judgement.verdict}: {comparison.metric} {amount} {side} than vanilla's "
        f"({', '.join([*interval, p])})."
    )


def _settle(judgement: Judgement) -> str:
    if judgement.n < 2:
        return "one seed says nothing of the spread: run more"
    return settle_words(judgement.seeds_range)


def _against_control(comparison: Comparison, arm: ArmSummary, judgement: Judgement) -> str:
    control = _control_of(comparison, arm)
    first, second = _outcome(arm.vs_vanilla), _outcome(judgement)
    # Without a verdict against vanilla nothing is asked of the control; the first part of the line says why.
    if control is None or first is None or first == "inconclusive":
        return ""
    if judgement.verdict == "does nothing":
        change = "gain" if first == "helps" else "harm"
        return f"It is identical to its control at the same mean rate, to the bit: the {change} is the mean rate's."
    if second is None:
        return (
            f"Not tested against its control at the same mean rate, because {_why_untested(arm, control, judgement)}."
        )
    # A control that was never held against vanilla was not shown to differ from it.
    third = _outcome(_control_against_vanilla(comparison, arm)) or "inconclusive"
    explanation = EXPLANATIONS[first, second, third]
    if second == "inconclusive":
        settle = _settle(judgement).replace("settle it", "settle the comparison with the control")
        skewed = "The differences from the control are too skewed for a verdict"
        settle = skewed if judgement.verdict == "skewed" else f"{settle[0].upper()}{settle[1:]}"
        explanation += f" {settle}."
    return explanation


def _outcome(judgement: Judgement | None) -> Outcome | None:
    """The verdict of a comparison that was tested, else ``None``; one that is skewed or none has shown nothing."""
    if judgement is None or judgement.verdict in UNTESTED:
        return None
    return judgement.verdict if judgement.verdict in ("helps", "hurts") else "inconclusive"


def _why_untested(arm: ArmSummary, baseline: ArmSummary, judgement: Judgement | None) -> str:
    if judgement is not None and judgement.verdict == "not independent":
        which = [each.name for each in (arm, baseline) if each.repeats]
        return f"the seeds of {listing(which)} are not independent"
    if judgement is not None and judgement.verdict == "not comparable":
        return f"{arm.name} and {baseline.name} trained different numbers of epochs"
    causes = [
        f"{each.name} failed on {each.failed} of {each.n + each.failed} seeds"
        for each in (arm, baseline)
        if each.failed
    ]
    return listing(causes) if causes else "some seeds have no result"

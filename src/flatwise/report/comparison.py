"""A comparison in words: its tables, and the verdicts in plain language.

A method is held against vanilla (does it help?) and against its control, an arm with the same mean rate and nothing
else (is it more than the rate?). What the two say together also depends on how the control does against vanilla, so
every combination has its own words in `EXPLANATIONS`. Both are only tested where the method has a verdict against
vanilla. "Inconclusive" is never read as "equal".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from flatwise.report.table import (
    NOTHING,
    ArmStyle,
    Cell,
    Column,
    Row,
    Table,
    cell,
    decimals_of,
    interval,
    labelled,
    listing,
    mean_and_sd,
    number,
    p_equals,
    p_value,
    row,
    with_unit,
)
from flatwise.stats import UNTESTED, Judgement, Verdict
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.hints import seeds_range_words, settle_words

ARM = Column("arm", "name")


def decimals(comparison: Comparison) -> int:
    """Decimals of the judged metric, one number for all arms: see :func:`decimals_of`."""
    return decimals_of(arm.sd for arm in comparison.arms)


def metric_label(comparison: Comparison, metric: str | None = None) -> str:
    """A metric's name with its unit, for headers and axes: ``"test_error (%)"``.

    Only the judged metric's unit is known: every other ``metric`` is named without one.
    """
    return labelled(comparison.metric, comparison.unit) if metric in (None, comparison.metric) else metric


def difference_unit(comparison: Comparison) -> str:
    """The unit of a difference: ``"points"`` for percentages, so that nobody reads it as a relative change."""
    return "points" if comparison.unit == "%" else comparison.unit


# How an arm is drawn

NEUTRAL = "#7d8590"
# Okabe and Ito's colours, told apart by colour-blind readers, without their black and yellow (each is lost on a light
# or a dark page), their blue lighter for the dark page's sake, and with two of Paul Tol's.
PALETTE = ("#1F83C4", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999933", "#AA4499")


def arm_styles(comparison: Comparison) -> dict[str, ArmStyle]:
    """A style for each arm's name: vanilla grey, a colour per method, its control dashed in the same colour.

    Methods beyond the palette's eight start again, in dash-dotted lines.
    """
    styles = {comparison.arms[0].name: ArmStyle(NEUTRAL, "solid")}
    for index, method in enumerate(methods(comparison)):
        color = PALETTE[index % len(PALETTE)]
        styles[method.name] = ArmStyle(color, "solid" if index < len(PALETTE) else "dashdot")
        if method.control is not None:
            styles.setdefault(method.control, ArmStyle(color, "dash"))
    for arm in comparison.arms:  # a control whose method is not in the comparison
        styles.setdefault(arm.name, ArmStyle(NEUTRAL, "dash"))
    return styles


# Tables


def tables(comparison: Comparison) -> list[Table]:
    """Every arm against vanilla and, if any has one, against its control."""
    has_controls = any(arm.control is not None for arm in comparison.arms)
    return [comparison_table(comparison), *([control_table(comparison)] if has_controls else [])]


def comparison_table(comparison: Comparison) -> Table:
    """The table "Does it help?": every arm against vanilla.

    Two lines per row keep it within 80 columns: the interval stands under the difference, the best epoch's metric,
    which is chosen on test data, dim under the final epoch's, and the number of seeds under the time.
    """

    def cells(arm: ArmSummary) -> Iterable[Cell]:
        yield cell(final_value(comparison, arm), (f"best {number(arm.best_mean, decimals(comparison))}", "dim"))
        yield from judged_cells(comparison, arm)
        time = f"{arm.time_ratio:.2f}×" if math.isfinite(arm.time_ratio) else NOTHING
        yield cell(time, (f"{arm.n} of {arm.n + arm.failed}", "alert") if arm.failed else (str(arm.n), "dim"))

    metric = Column(f"{metric_label(comparison)}\nbest epoch", label=comparison.metric)
    time = Column("time\nn", label="time, n")
    return Table(
        (ARM, metric, *judged_columns("minus vanilla", difference_unit(comparison)), time),
        arm_rows(comparison, comparison.arms, cells),
        title="Does it help?",
        note="Final epoch, mean ± sd over seeds. Dim: the best epoch, chosen on test data, so optimistic and never "
        "judged. Differences are paired by seed, with their 95 % interval. p: sign-flip and skewness-adjusted t test, "
        "the larger of the two, corrected (Holm). Time: per epoch, ÷ vanilla's. n: seeds that finished.",
        spaced=True,
    )


def control_table(comparison: Comparison) -> Table:
    """The table "Is it the noise, or the mean rate?": every method against the control at its own mean rate."""
    return Table(
        (ARM, *judged_columns("minus its control", difference_unit(comparison))),
        arm_rows(comparison, methods(comparison), lambda arm: judged_cells(comparison, arm, control=True)),
        title="Is it the noise, or the mean rate?",
        note="A control has the method's mean rate and no randomness. A gain over vanilla that the control has too is "
        "the rate's. Tested where there is a verdict against vanilla.",
        spaced=True,
    )


def arm_rows(
    comparison: Comparison,
    arms: Iterable[ArmSummary],
    cells: Callable[[ArmSummary], Iterable[Cell]],
    indent: str = "",
) -> list[Row]:
    """A row for each of ``arms``: its name, and what ``cells`` says of it."""
    styles = arm_styles(comparison)
    rows = []
    for arm in arms:
        kind = "vanilla" if arm is comparison.arms[0] else "control" if arm.is_control else "method"
        name = cell((indent + arm.name, _KIND_LOOKS[kind]))
        rows.append(row(name, *cells(arm), kind=kind, style=styles[arm.name]))
    return rows


_KIND_LOOKS = {"vanilla": "", "method": "strong", "control": "dim"}


def final_value(comparison: Comparison, arm: ArmSummary) -> str:
    """Mean ± standard deviation of the judged metric after the final epoch."""
    return mean_and_sd(arm.mean, arm.sd, decimals(comparison))


def judged_columns(against: str, unit: str) -> list[Column]:
    """The columns of :func:`judged_cells`."""
    difference = Column(labelled(against, unit, "\n"), label=against)
    return [difference, Column("p", label="corrected p"), Column("verdict", "verdict")]


def judged_cells(comparison: Comparison, arm: ArmSummary, *, control: bool = False) -> tuple[Cell, Cell, Cell]:
    """An arm against vanilla, or against its control: difference and interval, p, verdict, or why there is none."""
    judgement = arm.vs_control if control else arm.vs_vanilla
    if judgement is None:
        otherwise = _why_no_control(comparison, arm) if control else _why_no_vanilla(comparison, arm)
        return cell(NOTHING), cell(NOTHING), cell((otherwise, "dim"))
    places, note = decimals(comparison), verdict_note(judgement)
    bounds = interval(judgement.low, judgement.high, places)
    return (
        cell(number(judgement.mean, places, signed=True), (bounds, "dim")),
        cell(p_value(judgement.p_corrected)),
        cell((judgement.verdict, judgement.verdict), (f"({note})" if note else "", "note")),
    )


def _why_no_vanilla(comparison: Comparison, arm: ArmSummary) -> str:
    return "the baseline" if arm is comparison.arms[0] else "not compared"


def _why_no_control(comparison: Comparison, arm: ArmSummary) -> str:
    if arm is comparison.arms[0] or arm.is_control:
        return ""
    if arm.control is None:
        return "no control"
    return "control is vanilla" if arm.control == comparison.arms[0].name else "not compared"


# Why there is no "helps" or "hurts", in few enough words for a table.
_NOTES: dict[Verdict, str] = {
    "skewed": "too asymmetric for a test",
    "does nothing": "identical on all seeds",
    "not independent": "seeds repeat a training",
    "not comparable": "different numbers of epochs",
    "not tested": "no verdict against vanilla",
}


def verdict_note(judgement: Judgement) -> str:
    """What to add to a verdict: how many seeds an inconclusive comparison needs, or why nothing was concluded."""
    if judgement.verdict != "inconclusive":
        return _NOTES.get(judgement.verdict, "")
    if judgement.n < 2:
        return "one seed says nothing"
    return "" if judgement.seeds_range is None else f"needs {seeds_range_words(judgement.seeds_range)}"


# Sentences

# A verdict against vanilla as the verb of one method and of several.
VERBS: dict[str, tuple[str, str]] = {
    "helps": ("helps", "help"),
    "hurts": ("hurts", "hurt"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
    "skewed": ("is too skewed to judge", "are too skewed to judge"),
    "does nothing": ("does nothing", "do nothing"),
    "not independent": (
        "was not tested because its seeds repeat",
        "were not tested because their seeds repeat",
    ),
    "not comparable": ("trained another number of epochs", "trained another number of epochs"),
    "failed": ("could not be tested", "could not be tested"),
}

# What is said of a method that helps, and in its place of one that hurts.
_MIRROR = {
    "helps": "hurts",
    "hurts": "helps",
    "inconclusive": "inconclusive",
    "gain": "harm",
    "beats": "does worse than",
    "does better still": "hurts more",
    "loses": "undoes",
    "worse": "better",
}
_CONTROL_SAYS: dict[tuple[str, str], str] = {
    # (a helping method against its control, the control against vanilla); the words in braces are mirrored.
    ("helps", "helps"): "Its control at the same mean rate {helps} too, but less: the mean rate explains part of the "
    "{gain}, not all of it.",
    ("helps", "inconclusive"): "It also {beats} its control at the same mean rate: the {gain} is more than the mean "
    "rate's.",
    ("helps", "hurts"): "Its control at the same mean rate {hurts}: the {gain} is the method's own, in spite of the "
    "rate.",
    ("inconclusive", "helps"): "Its control at the same mean rate {helps} too, and no difference between the two was "
    "shown: the mean rate is enough to explain the {gain}.",
    ("inconclusive", "inconclusive"): "Its control at the same mean rate was not shown to differ from it, nor from "
    "vanilla: whether the {gain} is more than the mean rate's is open.",
    ("inconclusive", "hurts"): "Its control at the same mean rate {hurts}, so the mean rate does not explain the "
    "{gain}, though the direct comparison of the two is inconclusive.",
    ("hurts", "helps"): "Its control at the same mean rate {does better still}: the {gain} is the mean rate's, and "
    "the method {loses} part of it.",
    ("hurts", "inconclusive"): "It does {worse} than its control at the same mean rate: the {gain} is not the "
    "method's own.",
    ("hurts", "hurts"): "Vanilla, the method and its control at the same mean rate are each shown to beat the next in "
    "a circle, which cannot be: look at the differences seed by seed.",
}

# By (the method against vanilla, the method against its control, the control against vanilla).
EXPLANATIONS: dict[tuple[str, str, str], str] = {
    ("helps", *key): text.format_map(dict(zip(_MIRROR, _MIRROR, strict=True))) for key, text in _CONTROL_SAYS.items()
} | {
    ("hurts", _MIRROR[direct], _MIRROR[control]): text.format_map(_MIRROR)
    for (direct, control), text in _CONTROL_SAYS.items()
}


def headline(comparison: Comparison) -> str:
    """The whole comparison in one sentence: which methods help, hurt or are undecided, and whose the gain is."""
    found = methods(comparison)
    if not found:
        return "Only vanilla was run: there is nothing to compare."
    clauses = []
    for verdict, verbs in VERBS.items():
        names = [arm.name for arm in found if verdict_of(arm.vs_vanilla) == verdict]
        if names:
            clauses.append(f"{listing(names)} {verbs[len(names) > 1]}")
    helping = [arm for arm in found if verdict_of(arm.vs_vanilla) == "helps"]
    if not helping:
        return f"No method was shown to help: {'; '.join(clauses)}."
    own = [arm.name for arm in helping if gain_is_own(comparison, arm)]
    clauses[0] += whose_gain(own, len(helping), ", and", "only")
    return f"Against vanilla, {'; '.join(clauses)}."


def whose_gain(own: Sequence[str], count: int, everywhere: str, only: str) -> str:
    """Whether gains are more than the mean rate's, as the end of a sentence.

    Args:
        own: of the ``count`` that help, those whose gain is.
        count: how many help.
        everywhere, only: words before that of all, and of some.
    """
    if not own:
        return ", but nothing shows that the gain is more than the mean rate's"
    more = "by more than the mean rate explains"
    return f"{everywhere} {more}" if len(own) == count else f" ({only} {listing(own)} {more})"


def warnings(comparison: Comparison) -> list[str]:
    """What a reader must know before the verdicts: repeated seeds, earlier looks, earlier arms."""
    lines = [
        f"Seeds are not independent: in {arm.name}, seed{'s' if len(arm.repeats) > 1 else ''} "
        f"{listing(map(str, arm.repeats))} gave the same metrics as an earlier seed in every epoch, to the last bit. "
        "One training counted several times shows nothing: let the training function take its initial weights and its "
        "batches from trial.seed."
        for arm in comparison.arms
        if arm.repeats
    ]
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
        was, it = ("it was", "it") if len(comparison.earlier_arms) == 1 else ("they were", "them")
        lines.append(
            f"The correction counts {names} too: {was} judged on this task before, and leaving {it} out now does not "
            "make the other verdicts more certain."
        )
    return lines


def method_lines(comparison: Comparison) -> list[tuple[str, str]]:
    """For every method (not for controls) its name, and how a line of plain language goes on after it."""
    return [
        (arm.name, " ".join(filter(None, (_against_vanilla(comparison, arm), _against_control(comparison, arm)))))
        for arm in methods(comparison)
    ]


def methods(comparison: Comparison) -> list[ArmSummary]:
    """The arms that are neither vanilla nor a control."""
    return [arm for arm in comparison.arms[1:] if not arm.is_control]


def verdict_of(judgement: Judgement | None) -> Verdict:
    """The verdict; ``"failed"`` where there is no judgement."""
    return "failed" if judgement is None else judgement.verdict


def gain_is_own(comparison: Comparison, arm: ArmSummary) -> bool:
    """Whether a helping arm's gain is shown to be more than its mean rate's."""
    if arm.control == comparison.arms[0].name:
        return True
    direct, control = verdict_of(arm.vs_control), _control_of(comparison, arm)
    control_hurts = control is not None and verdict_of(control.vs_vanilla) == "hurts"
    return direct == "helps" or (direct == "inconclusive" and control_hurts)


def _control_of(comparison: Comparison, arm: ArmSummary) -> ArmSummary | None:
    return next((other for other in comparison.arms if other.name == arm.control), None)


def _against_vanilla(comparison: Comparison, arm: ArmSummary) -> str:
    judgement, vanilla = arm.vs_vanilla, comparison.arms[0]
    if judgement is None or judgement.verdict in UNTESTED:
        return f": not tested against vanilla, because {_why_untested(arm, vanilla, judgement)}."
    if judgement.verdict == "does nothing":
        return f" does nothing: on every seed all metrics of all epochs are {vanilla.name}'s to the bit."
    places, unit = decimals(comparison), difference_unit(comparison)
    difference = with_unit(number(judgement.mean, places, signed=True), unit)
    bounds = interval(judgement.low, judgement.high, places)  # one pair has none
    asides = [f"95 % interval {bounds}"] if bounds else []
    if judgement.verdict == "inconclusive":
        aside = f" ({asides[0]})" if asides else ""
        return f": inconclusive. {difference} against vanilla{aside}; {_settle(judgement)}."
    if judgement.verdict == "skewed":
        p_values = f"sign-flip p = {p_value(judgement.p)}, adjusted for skewness {p_value(judgement.p_skewness)}"
        return (
            f": no verdict, the differences are too skewed. {difference} against vanilla "
            f"({', '.join([p_values, *asides])}): with so few seeds and such asymmetric differences the sign-flip test "
            "errs too often. Look at them seed by seed, or decide on more seeds and run those."
        )
    asides.append(f"corrected {p_equals(judgement.p_corrected)}")
    amount = with_unit(number(abs(judgement.mean), places), unit)
    side = "lower" if judgement.mean < 0 else "higher"
    return f" {judgement.verdict}: {comparison.metric} {amount} {side} than vanilla's ({', '.join(asides)})."


def _settle(judgement: Judgement) -> str:
    if judgement.n < 2:
        return "one seed says nothing of the spread: run more"
    return settle_words(judgement.seeds_range)


def _against_control(comparison: Comparison, arm: ArmSummary) -> str:
    first, judgement, control = _outcome(arm.vs_vanilla), arm.vs_control, _control_of(comparison, arm)
    # Without a verdict against vanilla nothing is asked of the control; the first part of the line says why.
    if first is None or first == "inconclusive":
        return ""
    change = "gain" if first == "helps" else "harm"
    if judgement is None:
        if arm.control == comparison.arms[0].name:
            return f"Its mean rate is vanilla's own, so the {change} is not the mean rate's."
        return f"No control at the same mean rate was compared: the {change} may be the mean rate's."
    if control is None:
        return ""
    if judgement.verdict == "does nothing":
        return f"It is identical to its control at the same mean rate, to the bit: the {change} is the mean rate's."
    second = _outcome(judgement)
    if second is None:
        return (
            f"Not tested against its control at the same mean rate, because {_why_untested(arm, control, judgement)}."
        )
    # A control that was never held against vanilla was not shown to differ from it.
    explanation = EXPLANATIONS[first, second, _outcome(control.vs_vanilla) or "inconclusive"]
    if second != "inconclusive":
        return explanation
    if judgement.verdict == "skewed":
        return f"{explanation} The differences from the control are too skewed for a verdict."
    settle = _settle(judgement).replace("settle it", "settle the comparison with the control")
    return f"{explanation} {settle[0].upper()}{settle[1:]}."


def _outcome(judgement: Judgement | None) -> str | None:
    """The verdict of a comparison that was tested, else ``None``; one that is skewed or none has shown nothing."""
    if judgement is None or judgement.verdict in UNTESTED:
        return None
    return judgement.verdict if judgement.verdict in ("helps", "hurts") else "inconclusive"


def _why_untested(arm: ArmSummary, baseline: ArmSummary, judgement: Judgement | None) -> str:
    verdict = verdict_of(judgement)
    if verdict == "not independent":
        return f"the seeds of {listing(each.name for each in (arm, baseline) if each.repeats)} are not independent"
    if verdict == "not comparable":
        return f"{arm.name} and {baseline.name} trained different numbers of epochs"
    causes = [
        f"{each.name} failed on {each.failed} of {each.n + each.failed} seeds"
        for each in (arm, baseline)
        if each.failed
    ]
    return listing(causes) or "some seeds have no result"

"""A study in plain language: what came out over all cells, and what it was allowed to spend on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from flatwise.report.rows import listing, plural
from flatwise.report.sentences import gain_is_own, headline, summary_lines
from flatwise.report.tuning_rows import configuration_words
from flatwise.stats import UNTESTED
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.results import CellResult
from flatwise.study.spec import StudySpec, grid_size
from flatwise.study.task import Task

_VERBS = {
    "helps": "helps",
    "hurts": "hurts",
    "inconclusive": "is inconclusive",
    "skewed": "is too skewed to judge",
    "does nothing": "does nothing",
    "not independent": "was not tested because its seeds repeat",
    "not comparable": "trained another number of epochs",
    "failed": "could not be tested",
}


def study_headline(results: Sequence[CellResult]) -> str:
    """The whole study in one sentence: which methods help or hurt, and in how many cells."""
    judged = _judged(results)
    if not judged:
        return "Nothing is judged yet: no cell has a seed that all its arms have run."
    if len(results) == 1:
        return headline(judged[0])
    verdicts = {name: Counter(_verdict(arm) for _, arm in found) for name, found in _by_method(judged).items()}
    if not verdicts:
        return "Only vanilla was run: there is nothing to compare."
    total = sum(verdicts.values(), Counter())
    where = f"of {plural(len(judged), 'cell')}"
    clauses = [clause for verdict in ("helps", "hurts") if (clause := _clause(verdicts, verdict, where))]
    if total["inconclusive"]:
        rest = "the other " if total["inconclusive"] < total.total() else "all "
        clauses.append(f"{rest}{_comparisons(total['inconclusive'])} inconclusive")
    untested = sum(total[verdict] for verdict in UNTESTED)
    if total["skewed"]:
        clauses.append(f"{plural(total['skewed'], 'comparison')} {'is' if total['skewed'] == 1 else 'are'} too skewed")
    if total["does nothing"]:
        clauses.append(f"{plural(total['does nothing'], 'comparison')} showed that nothing is done")
    if untested:
        clauses.append(f"{plural(untested, 'comparison')} could not be tested")
    if total["helps"]:
        return f"Against vanilla, {'; '.join(clauses)}."
    return f"No method was shown to help in any {where}: {'; '.join(clauses)}."


def _comparisons(count: int) -> str:
    return "comparison is" if count == 1 else f"{count} comparisons are"


def _clause(verdicts: dict[str, Counter[str]], verdict: str, where: str) -> str:
    """``"leap helps in 2 of 3 cells and ralr in 1"``; empty where no method has the verdict."""
    found = [(name, counts[verdict]) for name, counts in verdicts.items() if counts[verdict]]
    if not found:
        return ""
    (name, count), *others = found
    first = f"{name} {verdict} in {count} {where}"
    return listing([first, *(f"{name} in {count}" for name, count in others)])


def method_lines(results: Sequence[CellResult]) -> list[tuple[str, str]]:
    """For every method its name and a line that says in which cells it does what."""
    judged = _judged(results)
    if len(results) == 1:
        methods = [arm.name for comparison in judged for arm in comparison.arms[1:] if not arm.is_control]
        lines = [line for comparison in judged for line in summary_lines(comparison)]
        return [(name, line.removeprefix(name)) for name, line in zip(methods, lines, strict=True)]
    return [(name, f" {_line(found)}.") for name, found in _by_method(judged).items()]


def _line(found: list[tuple[Comparison, ArmSummary]]) -> str:
    parts = []
    for verdict, verb in _VERBS.items():
        cells = [comparison.task for comparison, arm in found if _verdict(arm) == verdict]
        if not cells:
            continue
        everywhere = len(cells) == len(found) > 1
        text = f"{verb} in {f'all {len(cells)} cells' if everywhere else listing(cells)}"
        if verdict == "helps":
            own = [
                comparison.task
                for comparison, arm in found
                if _verdict(arm) == verdict and gain_is_own(comparison, arm)
            ]
            text += _whose_gain(own, len(cells))
        parts.append(text)
    return "; ".join(parts)


def _whose_gain(own: list[str], cells: int) -> str:
    if not own:
        return ", but nothing shows that the gain is more than the mean rate's"
    if len(own) == cells:
        return ", by more than the mean rate explains"
    return f" (only in {listing(own)} by more than the mean rate explains)"


def _judged(results: Sequence[CellResult]) -> list[Comparison]:
    return [result.comparison for result in results if result.comparison is not None]


def _by_method(judged: Sequence[Comparison]) -> dict[str, list[tuple[Comparison, ArmSummary]]]:
    found: dict[str, list[tuple[Comparison, ArmSummary]]] = {}
    for comparison in judged:
        for arm in comparison.arms[1:]:
            if not arm.is_control:
                found.setdefault(arm.name, []).append((comparison, arm))
    return found


def _verdict(arm: ArmSummary) -> str:
    return "failed" if arm.vs_vanilla is None else arm.vs_vanilla.verdict


def what_is_known(result: CellResult) -> str:
    """What is known of a cell that has no comparison yet, in a sentence."""
    if not result.tuned:
        return "Its tuning is not finished."
    choices = [f"{tuned.arm} {configuration_words(tuned.choice)}" for tuned in result.tuned if tuned.space]
    if result.baseline is not None:
        choices.insert(0, f"the baseline {configuration_words(result.baseline.choice)}")
    chosen = f"Its tuning is done: {'; '.join(choices)}. " if choices else ""
    return f"{chosen}No seed of its final runs is complete."


# What was spent


def validation_label(task: Task) -> str:
    """The metric that settings are chosen by, with its unit."""
    return f"{task.validation_metric} ({task.unit})" if task.unit else task.validation_metric


def is_tuned(study: StudySpec) -> bool:
    """Whether the study searches anything."""
    return bool(study.tuning.baseline) or any(arm.space for arm in study.arms)


def tuning_words(study: StudySpec) -> str:
    """How settings are chosen, with the budget, in a few sentences."""
    if not is_tuned(study):
        return "Nothing is tuned: every arm runs with the task's settings and its own."
    tuning = study.tuning
    parts = []
    if tuning.baseline:
        size = tuning.baseline_trials or grid_size(tuning.baseline) or 1
        parts.append(f"First vanilla is tuned over {listing(tuning.baseline)}: {_how(study, size)}.")
    if any(arm.space for arm in study.arms):
        start = ", starting from that choice," if tuning.baseline else ""
        then = "Then every" if tuning.baseline else "Every"
        parts.append(
            f"{then} arm{start} searches a space of its own, all on one budget: {_how(study, study.trials_per_arm)}."
        )
    mean = "the mean over " if len(tuning.seeds) > 1 else ""
    parts.append(
        f"A configuration is judged by the final epoch on validation data, {mean}{seeds_words(tuning.seeds)}, which "
        f"{'are not among' if len(tuning.seeds) > 1 else 'is not one of'} those of the final runs."
    )
    parts.append("The test split is not read while tuning: a tuning trial is handed the data without it.")
    return " ".join(parts)


def final_words(study: StudySpec) -> str:
    """What the runs are that are judged, in a sentence or two."""
    controls = (
        " So is a control for each method: its settings and mean rate, without noise (vanilla, where that is the same)."
        if study.final.controls
        else " There are no controls at the same mean rate."
    )
    chosen = " with its chosen settings" if is_tuned(study) else ""
    return (
        f"Every arm{chosen} is run on {seeds_words(study.final.seeds)}, paired, and judged on the test split after the "
        f"last epoch.{controls}"
    )


def seeds_words(seeds: Sequence[int]) -> str:
    """``"10 seeds (0 to 9)"``, ``"seed 1000"`` or ``"3 seeds (1, 5 and 8)"``."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    is_range = list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    told = f"{seeds[0]} to {seeds[-1]}" if is_range else listing(map(str, seeds))
    return f"{len(seeds)} seeds ({told})"


def _how(study: StudySpec, size: int) -> str:
    tuning = study.tuning
    count = plural(size, "configuration")
    if tuning.sampler == "grid":
        return f"all {count} of a grid" if size > 1 else count
    if tuning.sampler == "random":
        return f"{count} drawn at random (sampler's seed {tuning.sampler_seed})"
    rounds = f"{tuning.round_size} at a time, sampler's seed {tuning.sampler_seed}"
    return f"{count} proposed by Optuna's tree-structured Parzen estimator ({rounds})"

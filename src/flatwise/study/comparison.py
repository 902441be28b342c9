"""The results of a comparison as data: what the table prints and the page draws."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatwise.stats import Better, Correlation, Judgement, Verdict
from flatwise.study.store import Record


@dataclass(frozen=True, slots=True)
class ArmFlatness:
    """One measure of one arm over its seeds.

    Attributes:
        arm: the arm's name.
        values: the measure by seed, in the comparison's order of seeds; NaN where it is missing.
        missing: number of seeds without it.
        mean, sd: mean and standard deviation (n − 1) over the others.
        vs_vanilla: paired by seed with vanilla, as the metric is: ``"helps"`` means lower, ``"hurts"`` higher; ``None``
            for vanilla itself.
        vs_control: paired with the control at the same mean rate; ``None`` where there is none or it is vanilla.
    """

    arm: str
    values: tuple[float, ...]
    missing: int
    mean: float
    sd: float
    vs_vanilla: Judgement | None
    vs_control: Judgement | None


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of flatness over all arms.

    The correlations are over arms, each arm one point: its means over the seeds. They say what goes together among
    these arms in this study, and nothing of causes.

    Attributes:
        key: its name in the records, such as ``"eigenvalue_1"``.
        label: its name in words, such as ``"top eigenvalue"``.
        arms: one entry per arm, in the comparison's order.
        with_metric: rank correlation with the judged metric after the final epoch.
        with_rate: rank correlation with the mean effective learning rate.
        beyond_rate: that with the metric, the mean rate held fixed.
    """

    key: str
    label: str
    arms: tuple[ArmFlatness, ...]
    with_metric: Correlation
    with_rate: Correlation
    beyond_rate: Correlation


@dataclass(frozen=True, slots=True)
class FlatnessSummary:
    """The flatness of a comparison's final models.

    Attributes:
        settings: what was measured, within which bounds: :meth:`flatwise.FlatnessSettings.to_dict`.
        measures: the measures that are compared.
        loss: mean over seeds, by arm, of the loss at the final weights, on the data that were measured on.
        rate: mean over seeds and epochs, by arm, of the effective learning rate at the end of each epoch.
        complete: names of the arms that the correlations are over: those with all measures on every seed.
        rate_with_metric: rank correlation over arms of the mean rate with the metric: where it is strong, a measure
            that goes along with one goes along with the other.
        missing: arm, seed and reason of each trial with something missing.
        trace_error: median over trials of the trace's 95 % error bar, as a share of the trace.
        unconverged: of how many trials each eigenvalue, or the trace, was not within its tolerance, by its name in the
            records.
        seconds: median over trials of what the measurements took.
    """

    settings: Mapping[str, Any]
    measures: tuple[Measure, ...]
    loss: Mapping[str, float]
    rate: Mapping[str, float]
    complete: tuple[str, ...]
    rate_with_metric: Correlation
    missing: tuple[tuple[str, int, str], ...]
    trace_error: float
    unconverged: Mapping[str, int]
    seconds: float


_LOWER = (
    "loss error err errors mse rmse mae mape smape nll bce ce perplexity ppl bpc bpd wer cer fid kid brier ece mce "
    "divergence kl regret deviance distance entropy crossentropy lpips misclassification"
)
_HIGHER = (
    "accuracy acc accuracies auc auroc auprc auprg roc prauc f1 f2 fbeta bleu sacrebleu rouge meteor chrf map ap iou "
    "miou dice jaccard r2 precision recall sensitivity specificity reward rewards return returns psnr ssim mrr ndcg "
    "likelihood elbo kappa mcc correlation pearson spearman winrate"
)
_DIRECTIONS: dict[str, Better] = {
    **dict.fromkeys(_LOWER.split(), "lower"),
    **dict.fromkeys(_HIGHER.split(), "higher"),
}
# They say something only where no other word does: a Brier score and a top-5 error are better if lower.
_WEAK = ("score", "top", "hit", "hits")
# They turn a metric into another one: its difference, its spread, the time it takes to reach a value.
_UNCLEAR = (
    "minus not non no inverse inv inverted reciprocal complement "
    "drop gap reduction decrease decline degradation increase improvement gain change delta diff difference "
    "disparity penalty forgetting std stdev stddev sd sem var variance variation spread range iqr "
    "to until till threshold fpr fnr"
)


def known_direction(metric: str) -> Better | None:
    """Whether lower or higher values of a metric are better, by its name; ``None`` where the name does not say so.

    The last word that is known decides (``"top5_error"`` is an error), and ``neg`` or ``negative`` before it turns it
    round, as in scikit-learn's ``neg_mean_squared_error``. Names of what is derived from a metric say nothing:
    ``"accuracy_gap"``, ``"one_minus_accuracy"``, ``"time_to_accuracy"``, ``"loss_std"``.
    """
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", metric)
    words = [word.lower() for word in re.findall(r"[A-Za-z]+[12]?", text)]
    if any(word.rstrip("12") in _UNCLEAR.split() for word in words) or re.search(
        r"(?<![A-Za-z0-9])1\s*[-\u2212/]", metric
    ):
        return None
    known = [(i, _DIRECTIONS[name]) for i, word in enumerate(words) if (name := _in_list(word)) is not None]
    if not known:
        return "higher" if any(word.rstrip("12") in _WEAK for word in words) else None
    position, direction = known[-1]
    if any(word in ("neg", "negative") for word in words[:position]):
        return "lower" if direction == "higher" else "higher"
    return direction


def _in_list(word: str) -> str | None:
    return next((name for name in (word, word.rstrip("12")) if name in _DIRECTIONS), None)


def direction_of(metric: str, better: Better | None) -> Better:
    """What is better of a metric: as it is said, else as its name says.

    Raises:
        ValueError: nothing is said and the name is not known, or ``better`` is neither ``"lower"`` nor ``"higher"``.
    """
    if better not in (None, "lower", "higher"):
        raise ValueError(f"better must be 'lower' or 'higher'; got {better!r}")
    known = known_direction(metric)
    if better is None and known is None:
        raise ValueError(
            f"the name of the metric {metric!r} does not say whether lower or higher values are better: "
            "pass better='lower' or better='higher'"
        )
    if better is not None and known is not None and better != known:
        warnings.warn(
            f"better={better!r} is taken as it is given, but of a metric called {metric!r} {known} values are usually "
            "better",
            stacklevel=3,
        )
    return better or known or "lower"


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm over all its seeds.

    Attributes:
        name: the arm's name, such as ``"leap"`` or ``"ralr (control)"``.
        description: one line that says what the arm does to the learning rate.
        control: name of the arm that has the same mean rate and no randomness; ``None`` for vanilla and for controls.
            It is ``"vanilla"`` for a method whose mean factor is 1.
        is_control: whether this arm is such a control.
        n: number of seeds that finished.
        failed: number of seeds that did not (crashed, or ended in a metric that is not finite).
        mean: mean over the finished seeds of the metric after the final epoch.
        sd: its standard deviation over seeds (n − 1).
        best_mean: mean over seeds of the best epoch's metric: chosen on test data, so optimistic; never judged.
        vs_vanilla: the paired comparison with vanilla; ``None`` for vanilla itself.
        vs_control: the paired comparison with the control; ``None`` where there is none or it is vanilla.
        time_ratio: time per epoch against vanilla: median over seeds of the ratio of the median epoch times.
        repeats: seeds whose training is the same as that of an earlier seed of this arm, in all metrics of all epochs:
            they are not independent, and nothing is concluded from them.
    """

    name: str
    description: str
    control: str | None
    is_control: bool
    n: int
    failed: int
    mean: float
    sd: float
    best_mean: float
    vs_vanilla: Judgement | None
    vs_control: Judgement | None
    time_ratio: float
    repeats: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A finished (or interrupted) comparison.

    Attributes:
        task: name of the task.
        metric: name of the metric that is judged, such as ``"test_error"``.
        unit: its unit for axis labels, such as ``"%"``; may be empty.
        better: ``"lower"`` or ``"higher"``.
        level: the family-wise level of the tests, 0.05 by default.
        seeds: the seeds, in order.
        settings: the task's settings, as plain data.
        arms: one summary per arm, vanilla first, each method followed by its control.
        records: every trial's record.
        flatness: how flat the final models are, arm by arm; ``None`` where it was not asked for.
        earlier_arms: methods that the store judged on this subject before and that are not among ``arms``: the
            correction for the number of comparisons counts them.
        earlier_seeds: other sets of seeds that the store judged on this subject before. A verdict that comes after
            other looks at the data is more often false than ``level`` says.
    """

    task: str
    metric: str
    unit: str
    better: Better
    level: float
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]
    arms: tuple[ArmSummary, ...]
    records: tuple[Record, ...]
    flatness: FlatnessSummary | None = None
    earlier_arms: tuple[str, ...] = ()
    earlier_seeds: tuple[tuple[int, ...], ...] = ()

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Every arm's verdict against vanilla, by the arm's name; vanilla itself has none."""
        return {arm.name: arm.vs_vanilla.verdict for arm in self.arms if arm.vs_vanilla is not None}

"""How flat the arms' final models are, as data: what the page's section on flatness shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatwise.stats import Correlation, Judgement


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

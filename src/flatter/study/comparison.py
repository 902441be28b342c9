"""The outcome of a comparison, as data: what the table prints and the page draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flatter.stats import Better, Judgement, Verdict
from flatter.study.flatness_summary import FlatnessSummary
from flatter.study.records import Record


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


@dataclass(frozen=True, slots=True)
class Subject:
    """What is trained and judged.

    Attributes:
        name: name of the task, or of the user's training function.
        metric: the reported metric that is judged, by its value after the final epoch, such as ``"test_error"``.
        unit: its unit, such as ``"%"``; may be empty.
        better: ``"lower"`` or ``"higher"``.
        settings: all that the training depends on besides arm and seed, as plain data.
        code: a text that changes with the training function, where that is the user's own; else empty.
    """

    name: str
    metric: str
    unit: str
    better: Better
    settings: Mapping[str, Any]
    code: str = ""


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

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Every arm's verdict against vanilla, by the arm's name; vanilla itself has none."""
        return {arm.name: arm.vs_vanilla.verdict for arm in self.arms if arm.vs_vanilla is not None}

"""The ledger of a replication: every claim, what we measured, and the verdict. Plain data for the report."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

from flatwise.study.arms import VANILLA
from flatwise.study.comparison import ArmSummary, Comparison
from flatwise.study.spec import StudyError, StudySpec
from flatwise_papers.replication.claims import Claim, find_claims
from flatwise_papers.replication.rules import (
    BaselineCheck,
    Credit,
    Measured,
    Outcome,
    check_baseline,
    credit_gain,
    expected_difference,
    explain,
    judge_claim,
    seeds_to_settle,
)

Verdict = Literal["reproduced", "not reproduced", "inconclusive", "baseline differs", "failed", "not run"]

# Tasks on data that only look like a paper's.
OTHER_DATA = {"cifar10-jpeg": "the JPEG copy of CIFAR-10"}


class LedgerError(StudyError):
    """Results that cannot be held against a paper's. The message is one line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One claim and what became of it. Errors are in percent, differences in points; NaN where there is none.

    Attributes:
        claim: the paper's.
        task: our task.
        outcome: of the claim itself, whatever the baseline.
        check: our vanilla against the paper's; ``None`` where the cell was not run.
        baseline, result: our vanilla and arm after the final epoch; ``None`` where they have no result.
        difference: our arm − our vanilla, paired by seed.
        low, high: its 95 % interval.
        p: of the paired test, corrected over the cell's arms.
        expected: the difference that the paper's relative gain means from our vanilla.
        credit: whose a reproduced gain is; ``None`` where there is none, or no control.
        seeds_range: how many seeds would settle an inconclusive claim, the fewest and the most; see
            :func:`flatwise_papers.replication.rules.seeds_to_settle`.
        explanation: the reasons, in sentences.
    """

    claim: Claim
    task: str
    outcome: Outcome
    explanation: str
    check: BaselineCheck | None = None
    baseline: Measured | None = None
    result: Measured | None = None
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    expected: float = math.nan
    credit: Credit | None = None
    seeds_range: tuple[int, int | None] | None = None

    @property
    def verdict(self) -> Verdict:
        """The outcome, or that the baseline differs, which comes first."""
        has_result = self.outcome not in ("failed", "not run")
        return "baseline differs" if has_result and self.check is not None and self.check.differs else self.outcome


@dataclass(frozen=True, slots=True)
class Ledger:
    """All claims of a study.

    Attributes:
        study: the study's name.
        title: its title.
        level: family-wise level of the tests, over the arms of a cell.
        entries: one per claim, cell by cell.
    """

    study: str
    title: str
    level: float
    entries: tuple[Entry, ...]


def build_ledger(study: StudySpec, comparisons: Mapping[str, Comparison]) -> Ledger:
    """Judge every claim of a study.

    Args:
        study: the study.
        comparisons: by cell name, the outcome of its final runs; a cell without one counts as not run.

    Raises:
        PaperTableError: as for :func:`flatwise_papers.replication.claims.find_claims`.
        LedgerError: a comparison is of no cell of the study, or not of an error in percent.
    """
    tasks = {cell.name: cell.task for cell in study.cells}
    for name, comparison in comparisons.items():
        if name not in tasks:
            raise LedgerError(f"study {study.name!r} has no cell {name!r}: it has {', '.join(tasks)}")
        if (comparison.better, comparison.unit) != ("lower", "%"):
            raise LedgerError(
                f"cell {name!r}: the papers' errors are in percent, but {comparison.metric} is in {comparison.unit!r}, "
                f"and {comparison.better} is better"
            )
    entries = tuple(_entry(claim, tasks[claim.cell], comparisons.get(claim.cell)) for claim in find_claims(study))
    return Ledger(study.name, study.title, study.final.level, entries)


def _entry(claim: Claim, task: str, comparison: Comparison | None) -> Entry:
    arms = {} if comparison is None else {arm.name: arm for arm in comparison.arms}
    vanilla, arm = arms.get(VANILLA), arms.get(claim.arm)
    if comparison is None or vanilla is None or arm is None or arm.vs_vanilla is None:
        return Entry(claim, task, "not run", explain(claim, "not run"))
    judgement = arm.vs_vanilla
    other_data = next((words for start, words in OTHER_DATA.items() if task.startswith(start)), None)
    check = check_baseline(claim, _vanilla_at(claim, comparison, vanilla), comparable=other_data is None)
    outcome = judge_claim(claim, vanilla.mean, judgement)
    credit = _credit(arm, arms) if outcome == "reproduced" else None
    seeds = seeds_to_settle(claim, vanilla.mean, judgement) if outcome == "inconclusive" else None
    return Entry(
        claim=claim,
        task=task,
        outcome=outcome,
        check=check,
        baseline=_measured(vanilla),
        result=_measured(arm),
        difference=judgement.mean,
        low=judgement.low,
        high=judgement.high,
        p=judgement.p_corrected,
        expected=expected_difference(claim, vanilla.mean),
        credit=credit,
        seeds_range=seeds,
        explanation=explain(
            claim,
            outcome,
            check=check,
            judgement=judgement,
            vanilla=vanilla.mean,
            credit=credit,
            seeds=seeds,
            other_data=other_data,
            failures=(arm.failed, vanilla.failed),
        ),
    )


def _credit(arm: ArmSummary, arms: Mapping[str, ArmSummary]) -> Credit | None:
    assert arm.vs_vanilla is not None
    control = arms.get(arm.control or "")
    return credit_gain(
        arm.vs_vanilla,
        control_is_vanilla=arm.control == VANILLA,
        vs_control=arm.vs_control,
        control=None if control is None else control.vs_vanilla,
    )


def _measured(arm: ArmSummary) -> Measured | None:
    return Measured(arm.mean, arm.sd, arm.n) if arm.n else None


def _vanilla_at(claim: Claim, comparison: Comparison, vanilla: ArmSummary) -> Measured:
    """Vanilla at the epoch that the paper reports; the last, where the paper does not say."""
    if claim.epoch != "best":
        return Measured(vanilla.mean, vanilla.sd, vanilla.n)
    best = []
    for record in comparison.records:
        if record.arm == VANILLA and record.status == "finished":
            values = [float(epoch[comparison.metric]) for epoch in record.epochs]
            best.append(min(value for value in values if math.isfinite(value)))
    return Measured(fmean(best) if best else math.nan, stdev(best) if len(best) > 1 else math.nan, len(best))


def write_ledger_csv(ledger: Ledger, path: Path) -> None:
    """Writes one line per claim, with all its numbers; missing values are left empty."""
    rows = [_flat(ledger, entry) for entry in ledger.entries]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


_FIELDS = (
    *("study", "cell", "task", "arm", "paper", "table", "dataset", "model", "optimizer", "schedule"),
    *("paper_baseline_mean", "paper_baseline_sd", "paper_baseline_runs"),
    *("paper_arm_mean", "paper_arm_sd", "paper_arm_runs", "paper_epoch", "paper_gain", "paper_relative_gain"),
    *("baseline_mean", "baseline_sd", "baseline_n", "arm_mean", "arm_sd", "arm_n"),
    *("difference", "low", "high", "p", "expected", "seeds_fewest", "seeds_most"),
    *("baseline_status", "baseline_difference", "baseline_low", "baseline_high"),
    *("verdict", "outcome", "credit", "explanation", "notes"),
)


def _flat(ledger: Ledger, entry: Entry) -> dict[str, object]:
    claim, check = entry.claim, entry.check
    row: dict[str, object] = {"study": ledger.study, "task": entry.task}
    for field in ("cell", "arm", "paper", "table", "dataset", "model", "optimizer", "schedule", "notes"):
        row[field] = getattr(claim, field)
    for name, reported in (("paper_baseline", claim.baseline), ("paper_arm", claim.result)):
        row |= {f"{name}_mean": reported.mean, f"{name}_sd": reported.sd, f"{name}_runs": reported.runs}
    row |= {"paper_epoch": claim.epoch, "paper_gain": claim.gain, "paper_relative_gain": claim.relative_gain}
    for name, measured in (("baseline", entry.baseline), ("arm", entry.result)):
        if measured is not None:
            row |= {f"{name}_mean": measured.mean, f"{name}_sd": measured.sd, f"{name}_n": measured.n}
    for field in ("difference", "low", "high", "p", "expected", "verdict", "outcome", "credit"):
        row[field] = getattr(entry, field)
    row["seeds_fewest"], row["seeds_most"] = entry.seeds_range or (None, None)
    if check is not None:
        row |= {"baseline_status": check.status, "baseline_difference": check.difference}
        row |= {"baseline_low": check.low, "baseline_high": check.high}
    row["explanation"] = entry.explanation
    return {name: _number(value) for name, value in row.items()}


def _number(value: object) -> object:
    """NaN as nothing, and 91.66 − 100 without the digits of its rounding."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value

"""The ledger as a table: Markdown for documents, CSV for everything else."""

from __future__ import annotations

import csv
import math
from collections import Counter
from pathlib import Path

from flatwise_papers.replication.claims import Reported
from flatwise_papers.replication.ledger import Entry, Ledger
from flatwise_papers.replication.rules import Measured

_COLUMNS = ("cell", "arm", "paper: vanilla", "arm", "ours: vanilla", "arm", "difference", "paper's", "verdict")


def ledger_markdown(ledger: Ledger) -> str:
    """The ledger as a Markdown table, with the count of each verdict before it and the legend after it."""
    counts = Counter(_verdict(entry) for entry in ledger.entries)
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    lines = [
        f"{len(ledger.entries)} claims: {told}." if ledger.entries else "This study replicates no claim.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{'---|' * len(_COLUMNS)}",
        *(f"| {' | '.join(_escaped(text) for text in _cells(entry))} |" for entry in ledger.entries),
        "",
        _legend(ledger),
    ]
    return "\n".join(lines) + "\n"


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


def _cells(entry: Entry) -> list[str]:
    claim = entry.claim
    return [
        claim.cell,
        claim.arm,
        _reported(claim.baseline),
        _reported(claim.result),
        _measured(entry.baseline),
        _measured(entry.result),
        "–" if math.isnan(entry.difference) else _difference(entry),
        "–" if math.isnan(entry.expected) else _signed(entry.expected),
        _verdict(entry),
    ]


def _verdict(entry: Entry) -> str:
    if entry.check is not None and entry.verdict == "baseline differs":
        return f"{entry.outcome}; baseline {entry.check.status}"
    if entry.check is not None and entry.check.status == "not comparable":
        return f"{entry.outcome}; baseline not comparable"
    return "reproduced by the rate" if entry.credit == "rate" else entry.outcome


def _difference(entry: Entry) -> str:
    interval = "" if math.isnan(entry.low) else f" [{_signed(entry.low)}, {_signed(entry.high)}]"
    return f"{_signed(entry.difference)}{interval}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _reported(result: Reported) -> str:
    return f"{result.mean:.2f}" if result.sd is None else f"{result.mean:.2f} ± {result.sd:.2f}"


def _measured(result: Measured | None) -> str:
    if result is None:
        return "–"
    spread = "" if math.isnan(result.sd) else f" ± {result.sd:.2f}"
    return f"{result.mean:.2f}{spread} ({result.n})"


def _legend(ledger: Ledger) -> str:
    accuracies = any(entry.claim.from_accuracy for entry in ledger.entries)
    best = any(entry.claim.epoch == "best" for entry in ledger.entries)
    sentences = [
        "Errors in %, mean ± sd; in brackets the number of seeds.",
        "The paper prints accuracies: its errors are 100 − accuracy." if accuracies else "",
        "The paper reports the best epoch, chosen on the test data; ours are of the final one." if best else "",
        "Difference: ours, arm − vanilla, paired by seed, with its 95 % interval; beside it what the paper's relative "
        "gain means from our vanilla.",
    ]
    return " ".join(filter(None, sentences))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")

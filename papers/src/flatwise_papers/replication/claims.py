"""What a study's papers claim: for each cell and arm the paper's result, and the result that it is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flatwise.stats import welch_interval
from flatwise.study.spec import ArmSpec, CellSpec, PaperSpec, StudySpec
from flatwise_papers.replication.tables import PaperRow, PaperTableError, find_row, parse_settings

Epoch = Literal["last", "best", "not stated"]

# Whose result a paper prints. The best epoch's is chosen on the data that it is reported on, so it is optimistic.
EPOCHS: dict[str, Epoch] = {
    "leap": "last",
    "lr-dropout": "not stated",
    "random-noise-lr": "best",
    "ralr": "best",
    "peak-lr": "last",
}


@dataclass(frozen=True, slots=True)
class Reported:
    """A result as a paper prints it, as an error in percent.

    Attributes:
        mean: the error.
        sd: its standard deviation over runs; ``None`` where none is printed.
        runs: number of runs; ``None`` where not stated.
    """

    mean: float
    sd: float | None
    runs: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    """One arm of one cell in a paper's table. All results are errors in percent, of which lower is better.

    Attributes:
        cell, arm: their names in the study.
        paper, table: where the claim is printed.
        dataset, model, optimizer, schedule: the paper's cell, in its spelling; empty where it says nothing.
        baseline, result: the paper's vanilla, and the arm.
        epoch: whose result the paper prints: the ``"last"`` epoch's, the ``"best"``, or ``"not stated"``.
        from_accuracy: whether the paper prints accuracies, and the errors are 100 − accuracy.
        notes: what the paper leaves open about the arm's result, and how it was read.
    """

    cell: str
    arm: str
    paper: str
    table: str
    dataset: str
    model: str
    optimizer: str
    schedule: str
    baseline: Reported
    result: Reported
    epoch: Epoch
    from_accuracy: bool
    notes: str

    @property
    def gain(self) -> float:
        """By how many points the arm's error is lower; negative where the paper has it higher."""
        return self.baseline.mean - self.result.mean

    @property
    def relative_gain(self) -> float:
        """The gain as a share of the baseline's error, as the papers print it."""
        return self.gain / self.baseline.mean

    @property
    def gain_interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the gain from the paper's own spreads; ``None`` where it does not print them.

        The runs are taken as unpaired, since the papers print no differences: pairs would make it narrower.
        """
        a, b = self.baseline, self.result
        if a.sd is None or b.sd is None or a.runs is None or b.runs is None or min(a.runs, b.runs) < 2:
            return None
        return welch_interval((a.mean, a.sd, a.runs), (b.mean, b.sd, b.runs))


def find_claims(study: StudySpec) -> tuple[Claim, ...]:
    """The claims that a study replicates, cell by cell; an arm whose ``paper`` names no arm makes none.

    A claim's rows are found by the study's ``paper``, then the cell's, then the arm's: what a later one sets counts.
    Settings add up. The baseline's row is that of the cell, and the arm's settings are left out of it. It is the arm
    ``"vanilla"``, or what ``baseline`` says:

    - an arm's ``baseline`` is the paper's name for vanilla;
    - a cell's is a regularizer that both have, so the paper's name for the arm is ``arm+baseline``: with
      ``baseline = "cutout"`` an arm ``ralr`` is the paper's ``ralr+cutout``.

    Raises:
        PaperTableError: an arm or its baseline is not exactly one row of the papers' tables; names cell and arm.
    """
    claims = []
    for cell in study.cells:
        for arm in study.arms:
            if arm.paper.arm is not None:
                try:
                    claims.append(_claim(study, cell, arm))
                except PaperTableError as error:
                    raise PaperTableError(f"cell {cell.name!r}, arm {arm.name!r}: {error}") from None
    return tuple(claims)


def _claim(study: StudySpec, cell: CellSpec, arm: ArmSpec) -> Claim:
    shared = arm.paper.baseline is None and cell.paper.baseline is not None
    baseline_name = arm.paper.baseline or cell.paper.baseline or study.paper.baseline or "vanilla"
    name = f"{arm.paper.arm}+{cell.paper.baseline}" if shared else arm.paper.arm
    result = find_row(_merged(study.paper, cell.paper, arm.paper, arm=name))
    baseline = find_row(_merged(study.paper, cell.paper, arm=baseline_name))
    if result.error == baseline.error:
        raise PaperTableError(f"the paper prints {result.error:g} for the arm and its baseline: there is no claim")
    return Claim(
        cell=cell.name,
        arm=arm.name,
        paper=result.paper,
        table=result.table,
        dataset=result.dataset,
        model=result.model,
        optimizer=result.optimizer,
        schedule=result.schedule,
        baseline=_reported(baseline),
        result=_reported(result),
        epoch=EPOCHS[result.paper],
        from_accuracy=result.metric == "accuracy",
        notes=result.notes,
    )


def _merged(*papers: PaperSpec, arm: str | None) -> PaperSpec:
    fields: dict[str, str] = {}
    settings: dict[str, str] = {}
    for paper in papers:
        fields |= paper.model_dump(exclude_none=True)
        settings |= parse_settings(paper.settings or "")
    text = ";".join(f"{key}={value}" for key, value in settings.items())
    return PaperSpec(**{**fields, "arm": arm, "settings": text or None})


def _reported(row: PaperRow) -> Reported:
    # Rounded, since 100 − 91.66 is 8.340000000000003: the papers print no more than three decimals.
    return Reported(round(row.error, 6), row.sd, row.runs)

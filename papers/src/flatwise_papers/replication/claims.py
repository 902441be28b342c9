"""The papers' tables as data, and what a study's papers claim: for each cell and arm a result and its baseline."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

from flatwise.stats import welch_interval
from flatwise.study.hints import did_you_mean
from flatwise.study.spec import ArmSpec, CellSpec, PaperSpec, StudyError, StudySpec

# What a claim can be made of. The tables also print BLEU, IoU and seconds.
METRICS = ("accuracy", "error")


class PaperTableError(StudyError):
    """No row of the papers' tables, or more than one, is what was asked for. The message is one line."""


@dataclass(frozen=True, slots=True)
class PaperRow:
    """One printed result.

    Attributes:
        paper, table: where it is printed, such as ``"leap"``, ``"3"``.
        dataset, model, optimizer, schedule: its cell, in the paper's spelling; empty where the paper says nothing.
        arm: ``"vanilla"``, a method such as ``"leap"``, or several with ``+`` between, such as ``"ralr+cutout"``.
        settings: its settings, such as ``{"keep": "0.5"}``; a value that the paper does not state is empty.
        metric: such as ``"error"`` or ``"accuracy"``.
        mean, sd: as printed, in percent where the metric is one of ``METRICS``; ``sd`` is ``None`` where none is.
        runs: number of runs; ``None`` where not stated.
        batch_size, epochs: ``None`` where not stated.
        notes: what the paper leaves open, and how it was read.
    """

    paper: str
    table: str
    dataset: str
    model: str
    optimizer: str
    schedule: str
    arm: str
    settings: Mapping[str, str]
    metric: str
    mean: float
    sd: float | None
    runs: int | None
    batch_size: int | None
    epochs: int | None
    notes: str

    @property
    def error(self) -> float:
        """The mean as an error in percent: 100 − accuracy for an accuracy.

        Raises:
            PaperTableError: the metric is not one of ``METRICS``.
        """
        if self.metric not in METRICS:
            place = f"{self.paper}, table {self.table}, {self.dataset}, {self.model}"
            raise PaperTableError(f"{place}: {self.metric} cannot be compared with an error in percent")
        return self.mean if self.metric == "error" else 100 - self.mean


@cache
def read_paper_tables() -> tuple[PaperRow, ...]:
    """All rows, in the order of the file that comes with the package."""
    text = resources.files("flatwise_papers.replication").joinpath("paper_tables.csv").read_text(encoding="utf-8")
    return tuple(_row(line) for line in csv.DictReader(text.splitlines()))


def find_row(paper: PaperSpec) -> PaperRow:
    """Return the one row of errors or accuracies that ``paper`` describes.

    A field that is not set can be anything. Of ``settings``, ``key=value`` with ``;`` between, a row must have all and
    may have more. ``baseline`` is not looked at. Rows that a table prints twice count as one.

    Args:
        paper: what the row says; ``paper`` and ``table`` at least, or it will hardly be one.

    Raises:
        PaperTableError: there is no such row, or several; names the field, and the closest of its values.
    """
    rows: Sequence[PaperRow] = [row for row in read_paper_tables() if row.metric in METRICS]
    asked: list[str] = []
    for field in _DISTINGUISHING:
        value = getattr(paper, field)
        if value is None:
            continue
        found = [row for row in rows if _matches(row, field, value)]
        if not found:
            raise PaperTableError(_nothing(field, value, [_value(row, field) for row in rows], asked))
        rows = found
        asked.append(f"{field} {value!r}")
    if len({(row.arm, row.model, row.dataset, row.error, row.sd, row.runs) for row in rows}) > 1:
        raise PaperTableError(_several(rows, asked))
    return rows[0]


def _matches(row: PaperRow, field: str, value: str) -> bool:
    if field == "settings":
        return parse_settings(value).items() <= row.settings.items()
    return bool(getattr(row, field) == value)


def parse_settings(text: str) -> dict[str, str]:
    """``"alpha=8;beta=0.6"`` as a dictionary; the values stay text.

    Raises:
        PaperTableError: a part is not ``key=value``.
    """
    settings = {}
    for part in filter(None, text.split(";")):
        key, equals, value = part.partition("=")
        if not equals:
            raise PaperTableError(
                f"settings of a paper are key=value with ';' between, as in alpha=8;beta=0.6; got {text!r}"
            )
        settings[key.strip()] = value.strip()
    return settings


_CELL = ("paper", "table", "dataset", "model", "optimizer", "schedule")
_DISTINGUISHING = (*_CELL, "arm", "settings")


def _row(line: dict[str, str]) -> PaperRow:
    as_percent = 100 if "unit=fraction" in line["notes"] and line["metric"] in METRICS else 1
    return PaperRow(
        **{field: line[field] for field in (*_CELL, "arm")},
        settings=parse_settings(line["settings"]),
        metric=line["metric"],
        mean=float(line["mean"]) * as_percent,
        sd=float(line["std"]) * as_percent if line["std"] else None,
        runs=int(line["runs"]) if line["runs"] else None,
        batch_size=int(line["batch_size"]) if line["batch_size"] else None,
        epochs=int(line["epochs"]) if line["epochs"] else None,
        notes=line["notes"],
    )


def _nothing(field: str, value: str, known: Iterable[str], asked: Sequence[str]) -> str:
    names = list(dict.fromkeys(name for name in known if name))
    where = f" with {', '.join(asked)}" if asked else ""
    hint = did_you_mean(value, names)
    return f"the papers' tables have no error of {field} {value!r}{where}: {hint}There are {', '.join(names) or 'none'}"


def _several(rows: Sequence[PaperRow], asked: Sequence[str]) -> str:
    ways = [field for field in _DISTINGUISHING if len({_value(row, field) for row in rows}) > 1]
    told = f"{len(rows)} rows of the papers' tables have {', '.join(asked) or 'that'}: "
    if not ways:
        return told + "they differ in what a study file cannot say, such as the batch size"
    return told + f"say which by {' or '.join(ways)}, such as {ways[0]} = {_value(rows[0], ways[0])!r}"


def _settings_text(settings: Mapping[str, str]) -> str:
    return ";".join(f"{key}={value}" for key, value in settings.items())


def _value(row: PaperRow, field: str) -> str:
    return _settings_text(row.settings) if field == "settings" else str(getattr(row, field))


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
    printed = {name: getattr(result, name) for name in (*_CELL, "notes")}
    return Claim(
        **printed,
        cell=cell.name,
        arm=arm.name,
        baseline=_reported(baseline),
        result=_reported(result),
        epoch=EPOCHS[result.paper],
        from_accuracy=result.metric == "accuracy",
    )


def _merged(*papers: PaperSpec, arm: str | None) -> PaperSpec:
    fields: dict[str, str] = {}
    settings: dict[str, str] = {}
    for paper in papers:
        fields |= paper.model_dump(exclude_none=True)
        settings |= parse_settings(paper.settings or "")
    return PaperSpec(**{**fields, "arm": arm, "settings": _settings_text(settings) or None})


def _reported(row: PaperRow) -> Reported:
    # Rounded, since 100 − 91.66 is 8.340000000000003: the papers print no more than three decimals.
    return Reported(round(row.error, 6), row.sd, row.runs)

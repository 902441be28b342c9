"""`flatwise bench`, on the smallest model: the table, the file, and what it says to a wrong name."""

import csv

import pytest
from typer.testing import CliRunner

from flatwise import bench
from flatwise.cli import app

pytest.importorskip("numba")


def call(*arguments):
    return CliRunner().invoke(app, ["bench", *arguments], env={"COLUMNS": "100"})


@pytest.fixture
def quick(monkeypatch):
    """One step a turn: what is measured does not matter here."""
    measure = bench.measure
    monkeypatch.setattr(
        "flatwise.cli.commands.measure", lambda *args, **options: measure(*args, **options, slice_ms=0.01)
    )


def test_it_prints_a_table_and_writes_the_file(tmp_path, quick):
    file = tmp_path / "steps.csv"
    result = call("--models", "mlp", "--optimizers", "SGD,AdamW", "--rounds", "2", "--threads", "1", "--out", str(file))
    assert result.exit_code == 0, result.output
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["model"] for row in rows} == {"mlp"}
    for optimizer in ("SGD", "AdamW"):
        own = [row for row in rows if row["optimizer"] == optimizer]
        assert {row["method"] for row in own} >= {"plain", "LEAP", "LRD"}
        assert {row["way"] for row in own} >= {"torch fused", "torch foreach", "flatwise.optim", "perturb", "naive"}
        assert float(own[0]["ratio"]) == 1.0  # torch's fused plain step, to which all are compared
    assert all(float(row["milliseconds"]) > 0 and float(row["ratio"]) > 0 for row in rows)

    header, *printed = result.stdout.strip().splitlines()
    assert header.split()[:4] == ["model", "optimizer", "method", "way"]
    assert len(printed) == len(rows)  # and the header once
    for line, row in zip(printed, rows, strict=True):
        assert line.split()[:3] == [row["model"], row["optimizer"], row["method"]]
        assert row["way"] in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--models", "mpl"), ("mpl", "mlp", "resnet18")),
        (("--models", "mlp", "--optimizers", "sgd"), ("sgd", "SGD", "RMSprop")),
        (("--models", ""), ("mlp", "resnet18")),
    ],
)
def test_an_unknown_name_is_one_line_that_lists_the_known(arguments, words):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def test_a_file_that_cannot_be_written_is_one_line(tmp_path, quick):
    nowhere = tmp_path / "no" / "folder.csv"
    result = call("--models", "mlp", "--optimizers", "SGD", "--rounds", "1", "--out", str(nowhere))
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: cannot write")
    assert "folder.csv" in line
    assert "SGD" in result.stdout  # what was measured is on the screen

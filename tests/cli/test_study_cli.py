"""Studies on the command line, as a user runs them."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flatwise.cli import app
from flatwise.study.store import Store
from studies import TUNED, outcome

HERE = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(TUNED)
    return tmp_path


def flatwise(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_study_from_its_file_to_its_tables(folder):
    before = flatwise("status", "mine.toml")
    assert before.exit_code == 0
    assert "0 of 0" in before.stdout  # a task of the user's own is planned by `run` alone, which imports it
    done = flatwise("run", "mine.toml")
    assert done.exit_code == 0, done.output
    assert "lr_dropout" in done.stdout
    assert "report.html" in done.stderr
    assert (folder / "runs" / "mine" / "report.html").exists()
    assert "done" in flatwise("status", "mine.toml").stdout
    again = flatwise("run", "mine.toml", "--quiet")
    assert (again.exit_code, again.output) == (0, "")
    (folder / "runs" / "mine" / "report.html").unlink()
    reported = flatwise("report", "mine.toml")
    assert reported.exit_code == 0
    assert "lr_dropout" in reported.stdout
    assert (folder / "runs" / "mine" / "report.html").exists()
    exported = flatwise("export", "mine.toml", "--to", "tables")
    assert exported.exit_code == 0
    with (folder / "tables" / "trials.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4 + 14 + 30
    assert flatwise("export", "mine.toml", "--format", "parquet").exit_code == 0
    assert (folder / "runs" / "mine" / "export" / "epochs.parquet").exists()


def test_some_cells_of_a_study(folder):
    text = TUNED.replace('task = "quick_tasks:QUICK"', "")
    cells = "".join(f'[[cells]]\ntask = "quick_tasks:QUICK"\nname = "{n}"\n' for n in ("one", "two"))
    (folder / "mine.toml").write_text(text + cells + "settings.epochs = 2\n")
    assert flatwise("run", "mine.toml", "--cell", "two").exit_code == 0
    status = flatwise("status", "mine.toml").stdout
    assert "0 of 4" in status
    assert "done" in status
    partly = flatwise("report", "mine.toml")
    assert partly.exit_code == 0
    wrong = flatwise("run", "mine.toml", "--cell", "tow")
    assert wrong.exit_code == 2
    assert "did you mean 'two'" in wrong.stderr


def test_a_study_that_failed_everywhere_ends_with_status_1(folder):
    text = TUNED.replace('task = "quick_tasks:QUICK"', "").replace("[0.1, 0.2]", "[0.1]")
    for method in ("leap", "lr_dropout"):
        text = text.replace(f'method = "{method}"', f'method = "{method}"\nsettings.learning_rate = 0.3')
    one, two = (f'[[cells]]\ntask = "quick_tasks:{task}"\nname = "{task}"\n' for task in ("FAILING", "QUICK"))
    (folder / "mine.toml").write_text(text + one)
    failed = flatwise("run", "mine.toml", "--quiet")
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: every arm of every cell failed, so nothing was compared")
    assert (folder / "runs" / "mine" / "report.html").exists()
    assert flatwise("report", "mine.toml").exit_code == 0  # runs nothing
    (folder / "half.toml").write_text(text + one + two)
    assert flatwise("run", "half.toml", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none.toml"), "cannot read the study file none.toml"),
        (("run", "leap-table-33"), "there is no study 'leap-table-33': did you mean 'leap-table-3'?"),
        (("run", "laep-table-3"), "did you mean 'leap-table-3'?"),
        (("report", "mine.toml"), "nothing of the study mine was run yet"),
        (("export", "mine.toml"), "nothing of the study mine was run yet"),
        (("run", "mine.toml", "--workers", "2"), "the executor 'local' has no option workers"),
        (
            ("run", "mine.toml", "--executor", "processes", "--workers", "0"),
            "workers must be a whole number",
        ),
        (("run", "mine.toml", "--executor", "processes", "--gpus-per-trial", "1"), "has no option gpus_per_trial"),
        (("run", "broken.toml"), "broken.toml is not valid TOML"),
        (("run", "unknown.toml"), "unknown.toml, line 3: there is no field tuning.sampeler, did you mean sampler?"),
        (("run", "noarm.toml"), "there is no method 'laep': did you mean 'leap'?"),
    ],
)
def test_bad_input_is_one_line_and_runs_nothing(folder, arguments, message):
    (folder / "broken.toml").write_text("arms = [")
    (folder / "unknown.toml").write_text(TUNED.replace("seeds = 2", "sampeler = 3").lstrip())
    (folder / "noarm.toml").write_text(TUNED.replace('"leap"', '"laep"'))
    result = flatwise(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not (folder / "runs").exists()


def test_a_corrupt_store_is_refused_and_kept(folder):
    store = folder / "runs" / "mine" / "trials.sqlite"
    store.parent.mkdir(parents=True)
    store.write_bytes(b"not a database, but precious" * 50)
    for command in ("run", "status", "report", "export"):
        result = flatwise(command, "mine.toml")
        assert result.exit_code == 2
        assert "not a database" in result.stderr
    assert store.read_bytes() == b"not a database, but precious" * 50


def test_packaged_studies_are_listed_and_shown(folder):
    listed = flatwise("studies")
    assert listed.exit_code == 0
    assert "leap-table-3" in listed.stdout
    shown = flatwise("studies", "leap-table-3")
    (folder / "copy.toml").write_text(shown.stdout)
    assert flatwise("status", "copy.toml").exit_code == 0


def command(*arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "flatwise", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kept(store):
    with Store(store, read_only=True) as opened:
        return sorted(str(outcome(record)) for record in opened.records())


def test_processes_an_interrupt_and_a_continuation_give_the_same_records(folder):
    (folder / "slow.toml").write_text(TUNED.replace("QUICK", "SLOW").replace("seeds = 6", "seeds = 40"))
    store = folder / "runs" / "slow" / "trials.sqlite"
    started = command("run", "slow.toml", "--executor", "processes", "--workers", "2")
    deadline = time.monotonic() + 60
    while not (store.exists() and started.poll() is None and _count(store) >= 1):
        assert time.monotonic() < deadline, started.communicate()
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=30)
    assert started.returncode == 130
    assert "the same command goes on from there" in said
    assert _count(store) < 4 + 14 + 5 * 40
    assert flatwise("run", "slow.toml", "--out", "elsewhere", "--quiet").exit_code == 0
    assert flatwise("run", "slow.toml", "--quiet").exit_code == 0
    assert kept(store) == kept(folder / "elsewhere" / "trials.sqlite")


def _count(store):
    import sqlite3

    connection = sqlite3.connect(f"file:{store}?mode=ro", uri=True)
    try:
        return connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0
    finally:
        connection.close()

"""The command line: what a user types, what it prints, and its status; errors are one line and lose nothing."""

import errno
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import flatwise
import quick_tasks
from flatwise.cli import app, main
from flatwise.report.terminal import terminal
from flatwise.study.registry import TASKS
from flatwise.study.store import Store

MNIST = Path(__file__).parents[3] / "shared" / "data"

SMALL = ("compare", "digits-mlp", "--arms", "leap", "--epochs", "1")


def call(*arguments, **environment):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "100", **environment})


def fails(result, *words):
    """Status 2, one line on standard error that has these words, no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def test_compare_prints_tables_and_writes_the_page(tmp_path):
    out = tmp_path / "deep" / "folder"
    result = call(*SMALL, "--seeds", "2", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "vanilla" in result.stdout
    assert "inconclusive" in result.stdout
    assert "report.html" in result.stderr
    assert (out / "report.html").stat().st_size > 100_000


def test_quiet_prints_nothing(tmp_path):
    result = call(*SMALL, "--seeds", "1", "--out", str(tmp_path), "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert (tmp_path / "report.html").is_file()


def test_flatness_is_measured_and_shown(tmp_path):
    bounds = ("--flatness", "--max-batches", "1", "--max-iter", "3")
    result = call(*SMALL, "--seeds", "1", "--out", str(tmp_path), *bounds)
    assert result.exit_code == 0, result.output
    assert result.stdout.index("Does it help?") < result.stdout.index("Flatness")
    assert "<h2>Flatness" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (flatness, _) = [json.loads(row)["flatness"] for row in file_rows(tmp_path / "trials.sqlite").values()]
    assert (flatness["settings"]["max_batches"], flatness["settings"]["max_iter"]) == (1, 3)


def test_compare_in_worker_processes(tmp_path):
    arguments = (*SMALL, "--seeds", "1", "--quiet", "--out")
    result = call(*arguments, str(tmp_path / "there"), "--executor", "processes", "--workers", "2")
    assert result.exit_code == 0, result.output
    assert call(*arguments, str(tmp_path / "here")).exit_code == 0
    assert metrics(tmp_path / "there") == metrics(tmp_path / "here")


def test_tasks_are_listed():
    result = call("tasks")
    assert result.exit_code == 0
    for name in ("digits-mlp", "mnist-mlp-3", "mnist-mlp-10"):
        assert name in result.stdout


def test_version():
    assert call("--version").stdout.startswith("flatwise ")


WITHOUT_EXTRAS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("rich", "typer", "pydantic", "scipy", "plotly", "filelock"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
import flatwise
names = {}
exec("from flatwise import *", names)
assert {"leap", "perturb", "__version__"} < names.keys() and "compare" not in names
assert {"compare", "Arm", "leap", "__all__"} < set(dir(flatwise))
sys.argv = ["flatwise", "--version"]
import flatwise.cli
"""


def test_the_version_and_all_names_without_the_extras():
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"flatwise {flatwise.__version__}\n", "")


def test_all_names_with_the_extras():
    names = {}
    exec("from flatwise import *", names)
    assert {"compare", "Arm", "leap", "flatness", "__version__"} < names.keys()
    assert set(flatwise.__all__) <= set(dir(flatwise))
    assert names["compare"] is flatwise.compare


PRINTS = """
import sys
sys.argv = ["flatwise", "compare", "digits-mlp", "--arms", "leap,lr_dropout", "--epochs", "1", "--seeds", "2"]
from flatwise.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
from flatwise.study.study_file import read_study
from pathlib import Path
import flatwise
text = 'task = "digits-mlp"\\nfinal.seeds = 2\\nsettings.epochs = 1\\narms = [{ method = "vanilla" }]\\n'
Path("s.toml").write_text(text)
flatwise.run_study("s.toml")  # as a program of the user's own, whose streams are as Python made them
"""


def test_output_in_an_encoding_that_lacks_characters(tmp_path):
    encoding = "cp1252"
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", PRINTS], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    printed, said = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0, said
    assert "Does it help?" in printed
    assert "• leap: " in printed
    assert re.search(r"leap: \w+\. [+-]\d", printed)  # a minus is no question mark
    assert "?" not in printed.replace("Does it help?", "").replace("mean rate?", "")
    assert "report.html" in said
    assert (tmp_path / "runs" / "s" / "report.html").is_file()


def test_printing_in_ascii(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", file)
    terminal().print("−0.04 ± 0.1 × σ ≈ 3 → Ж")
    assert file.buffer.getvalue() == b"-0.04 +- 0.1 x sigma ~ 3 -> ?\n"


def test_interrupted_while_it_imports_it_says_nothing():
    process = subprocess.Popen(
        [sys.executable, "-m", "flatwise", "tasks"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert (process.returncode, printed, said) == (130, b"", b"")


@pytest.fixture
def no_page(monkeypatch):
    """A disk that is full when the report is written."""

    def full(path, *given, **options):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("flatwise.report.page.written_whole", full)


@pytest.mark.parametrize("quiet", [False, True])
def test_without_room_for_the_report_the_table_is_shown(quiet, tmp_path, no_page):
    result = call(*SMALL, "--seeds", "1", "--out", str(tmp_path), *(["--quiet"] if quiet else []))
    assert result.exit_code == 0, result.output
    assert ("Does it help?" in result.stdout) is not quiet
    assert "No report was written: cannot write" in result.stderr
    assert "No space left on device. Trials are kept." in " ".join(result.stderr.split())


def test_without_room_for_the_report_a_study_is_shown(tmp_path, no_page):
    (tmp_path / "s.toml").write_text(
        'task = "digits-mlp"\nfinal.seeds = 1\nsettings.epochs = 1\narms = [{ method = "vanilla" }]'
    )
    result = call("run", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    assert "digits-mlp" in result.stdout
    assert "No report was written" in result.stderr


@pytest.mark.skipif(not MNIST.is_dir(), reason="needs ../shared/data beside the checkout")
def test_mnist_from_a_data_folder(tmp_path):
    arguments = ("compare", "mnist-mlp-3", "--arms", "leap", "--epochs", "1", "--seeds", "1", "--no-controls")
    given = call(*arguments, "--out", str(tmp_path / "a"), "--data-dir", str(MNIST))
    assert given.exit_code == 0, given.output
    by_environment = call(*arguments, "--out", str(tmp_path / "b"), FLATWISE_DATA=str(MNIST))
    assert by_environment.exit_code == 0, by_environment.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digit-mlp",), ("digit-mlp", "digits-mlp", "mnist-mlp-3")),
        (("digits-mlp", "--arms", "leep"), ("leep", "leap", "lr_dropout")),
        (("digits-mlp", "--arms", "leap(sigma=-1)"), ("standard deviation", "-1")),
        (("digits-mlp", "--arms", "lr_dropout(keep=1.5)"), ("keep", "1.5")),
        (("digits-mlp", "--lr", "-1"), ("learning_rate", "-1", "greater than 0")),
        (("digits-mlp", "--epochs", "0"), ("epochs", "0")),
        (("digits-mlp", "--optimizer", "lbfgs"), ("optimizer", "lbfgs")),
        (("digits-mlp", "--level", "2"), ("level", "2")),
        (("mnist-mlp-3", "--data-dir", "no/such/folder"), ("no/such/folder",)),
    ],
)
def test_bad_input_is_one_line(arguments, words, tmp_path):
    fails(call("compare", *arguments, "--out", str(tmp_path / "out")), *words)


def test_corrupt_data_file(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        kind = "idx3" if "images" in name else "idx1"
        (folder / f"{name}-{kind}-ubyte.gz").write_bytes(b"spoilt")
    fails(call("compare", "mnist-mlp-3", "--data-dir", str(tmp_path), "--out", str(tmp_path / "out")), "corrupt")
    assert (folder / "train-images-idx3-ubyte.gz").read_bytes() == b"spoilt"


def test_output_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    fails(call(*SMALL, "--out", str(tmp_path / "file")), "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_damaged_store_is_kept(tmp_path):
    (tmp_path / "trials.sqlite").write_bytes(b"my thesis" * 1000)
    fails(call(*SMALL, "--out", str(tmp_path)), "trials.sqlite", "another output folder")
    assert (tmp_path / "trials.sqlite").read_bytes() == b"my thesis" * 1000


def metrics(folder):
    """The recorded test errors of every trial, by its key."""
    connection = sqlite3.connect(folder / "trials.sqlite")
    keys = [key for (key,) in connection.execute("SELECT key FROM trials")]
    connection.close()
    with Store(folder / "trials.sqlite") as store:
        return {key: [epoch["test_error"] for epoch in store.get(key).epochs] for key in keys}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_killed_and_continued_equals_unbroken(how, tmp_path):
    """Killed in the middle of a trial, by Ctrl-C or worse; the same command goes on and repeats no finished trial."""
    small = [*SMALL[:-1], "12", "--seeds", "3", "--quiet", "--out"]
    command = [sys.executable, "-m", "flatwise.cli", *small, str(tmp_path / "killed")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    store = tmp_path / "killed" / "trials.sqlite"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (store.exists() and finished(store) >= 2):
        time.sleep(0.005)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    before = metrics(tmp_path / "killed")
    assert 2 <= len(before) < 6, "the signal came too late to show anything"
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "the same command goes on" in stderr
        assert "Traceback" not in stderr
    modified = file_rows(store)
    assert call(*small, str(tmp_path / "killed")).exit_code == 0
    assert call(*small, str(tmp_path / "unbroken")).exit_code == 0
    after = metrics(tmp_path / "killed")
    assert after == metrics(tmp_path / "unbroken")
    assert file_rows(store).items() >= modified.items()  # what was finished was not run again


def finished(store):
    try:
        return len(file_rows(store))
    except sqlite3.Error:
        return 0


def file_rows(store):
    """Every row as it lies in the file, wall-clock times included."""
    connection = sqlite3.connect(store)
    try:
        return dict(connection.execute("SELECT key, record FROM trials"))
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "--seeds", "0"), ("--seeds", "greater than or equal to 1")),
        (("compare", "--seeds", "many"), ("--seeds", "integer")),
        (("compare", "--no-such-option"), ("--no-such-option",)),
        (("no-such-command",), ("no-such-command",)),
        (("compare", "digits-mlp", "--device", "cuda"), ("cuda",)),
        (("compare", "digits-mlp", "--data-dir", "data"), ("no file is read",)),
        (("compare", "digits-mlp", "--batch-size", "9" * 25), ("batch_size",)),
        (("compare", "digits-mlp", "--arms", "gaussian_peak", "--epochs", "1"), ("at least two",)),
        (("compare", "digits-mlp", "--workers", "2"), ("'local' has no option workers",)),
        (("compare", "digits-mlp", "--max-batches", "2"), ("--max-batches", "give --flatness too")),
        (("compare", "digits-mlp", "--max-iter", "9"), ("--max-iter", "give --flatness too")),
        (("compare", "digits-mlp", "--flatness", "--max-iter", "2"), ("--max-iter", "greater than or equal to 3")),
    ],
)
def test_every_wrong_option_is_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["flatwise", *arguments])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
    assert all(word in line for word in words), line


def test_no_arguments_is_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["flatwise"])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert "compare" in capsys.readouterr().out


def test_all_arms_failed_is_an_error(tmp_path, monkeypatch):
    """The trials and the report are kept, and the exit status says that there is no comparison."""

    def train(trial, settings, data):
        if trial.arm.name != "vanilla":
            raise RuntimeError("out of memory")
        quick_tasks.train(trial, settings, data)

    monkeypatch.setitem(TASKS, "failing", replace(quick_tasks.QUICK, name="failing", train=train))
    arguments = ["compare", "failing", "--arms", "leap", "--seeds", "2", "--out", str(tmp_path), "--quiet"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "every arm failed" in result.stderr
    assert "--retry-failed" in result.stderr
    assert "out of memory" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with Store(tmp_path / "trials.sqlite", read_only=True) as store:
        assert [record.status for record in store.records()].count("failed") == 2

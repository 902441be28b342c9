"""Tasks of the user's own: known by their source, and refused in one line where they do not work."""

import subprocess
import sys

import pytest

import flatwise
from flatwise.study.engine import drive
from flatwise.study.executors import LocalExecutor
from flatwise.study.registry import UnknownTaskError, get_task
from flatwise.study.spec import StudyError
from flatwise.study.store import Store
from flatwise.study.study_file import parse_study
from flatwise.study.task import SettingsError
from flatwise.study.work import Work
from studies import Quiet

TASK = """
import dataclasses, torch, flatwise

@dataclasses.dataclass(frozen=True)
class Data:
    target: float
    def without_test(self):
        return self

def load(data_dir):
    return Data(1.0)

SLOPE = 1.0

def gradient(weight, data):
    return SLOPE * (weight.detach() - data.target)

def train(trial, settings, data):
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=settings.learning_rate)
    scheduler = trial.attach(optimizer, steps_per_epoch=1, epochs=1)
    weight.grad = gradient(weight, data)
    optimizer.step()
    scheduler.step()
    trial.report(val_error=weight.item(), test_error=weight.item())

OWN = flatwise.Task("own", "", flatwise.Settings(epochs=1, batch_size=1, learning_rate=0.1), load, train, unit="")
"""
STUDY = 'task = "{module}:OWN"\narms = [{{ method = "vanilla" }}, {{ method = "leap" }}]\nfinal.seeds = 2\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def flatwise_command(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-m", "flatwise", *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("edit", [("SLOPE = 1.0", "SLOPE = 2.0"), ("Data(1.0)", "Data(7.0)")])
def test_an_edit_of_what_the_training_or_the_data_name_runs_all_anew(folder, edit):
    """In `flatwise run` and in `flatwise compare`; the second process has the edited source."""
    (folder / "edited.py").write_text(TASK)
    (folder / "s.toml").write_text(STUDY.format(module="edited"))
    commands = ("run", "s.toml", "--quiet"), ("compare", "edited:OWN", "--arms", "leap", "--seeds", "2", "--out", "c")
    for command in commands:
        status, said = flatwise_command(folder, *command)
        assert status == 0, said
    stores = folder / "runs" / "s" / "trials.sqlite", folder / "c" / "trials.sqlite"
    before = [_errors(store) for store in stores]
    (folder / "edited.py").write_text(TASK.replace(*edit))
    for command in commands:
        assert flatwise_command(folder, *command)[0] == 0
    for store, old in zip(stores, before, strict=True):
        new = _errors(store)
        assert len(new) == 2 * len(old)
        assert set(old) < set(new)


def _errors(path):
    with Store(path, read_only=True) as store:
        return [(record.key, record.epochs[-1]["test_error"]) for record in store.records()]


def test_an_edit_in_a_running_program_is_refused(folder):
    (folder / "running.py").write_text(TASK)
    study = parse_study(STUDY.format(module="running"), name="s", source="s.toml")
    flatwise.run_study(study, quiet=True)
    (folder / "running.py").write_text(TASK + "\n# an edit\n")
    with pytest.raises((UnknownTaskError, StudyError), match=r"running.py was changed after it was imported"):
        flatwise.run_study(study, quiet=True)


def test_another_source_on_a_worker_is_refused(folder):
    (folder / "elsewhere.py").write_text(TASK)
    study = parse_study(STUDY.format(module="elsewhere"), name="s", source="s.toml")
    work = Work(git={})

    class Other(LocalExecutor):
        def run(self, work, jobs):
            import elsewhere

            def train(trial, settings, data):
                raise AssertionError

            elsewhere.OWN = flatwise.Task("own", "", elsewhere.OWN.settings, elsewhere.load, train, unit="")
            return super().run(work, jobs)

    with Store(None) as store, pytest.raises(StudyError, match="the source of the task elsewhere:OWN is another here"):
        drive(study, store, Other(), work, Quiet())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("syntax:OWN", "def x(:", "cannot be imported: SyntaxError"),
        ("division:OWN", "1/0", "cannot be imported: ZeroDivisionError"),
        ("nothing:OWN", "", "has no 'OWN'"),
        ("wrong:OWN", "OWN = 3", "is a int, not a flatwise.Task"),
        (":OWN", "", "expected module:attribute"),
        ("..a:OWN", "", "expected module:attribute"),
    ],
)
def test_what_is_no_task_is_refused(folder, name, content, message):
    (folder / f"{name.partition(':')[0].strip('.') or 'empty'}.py").write_text(content)
    with pytest.raises(UnknownTaskError, match=message) as error:
        get_task(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return Data(1.0)", "return open('/nowhere/data.bin')", "the task's data cannot be loaded: FileNotFoundError"),
        ("    def without_test(self):", "    def other(self):", "needs a method without_test"),
        ("batch_size=1", "batch_size=1, device='cuda'", "device = 'cuda', but torch .* sees no CUDA device"),
    ],
)
def test_what_does_not_work_ends_the_study_in_a_line(folder, old, new, said):
    import re

    (folder / "broken.py").write_text(TASK.replace(old, new))
    tuned = STUDY.format(module="broken") + "tuning.baseline.learning_rate = [0.1]\n"
    (folder / "s.toml").write_text(tuned)
    status, output = flatwise_command(folder, "run", "s.toml", "--quiet")
    assert status == 2, output
    assert output.count("\n") == 1
    assert re.search(said, output)


def test_leaving_the_program_is_a_trials_outcome(folder):
    (folder / "leaving.py").write_text(TASK.replace("    weight.grad =", "    raise SystemExit(3)\n    weight.grad ="))
    study = parse_study(STUDY.format(module="leaving"), name="s", source="s.toml")
    (cell,) = flatwise.run_study(study, quiet=True).cells
    assert {record.error for record in cell.comparison.records} == {"SystemExit: 3"}


def test_a_training_may_change_its_globals(folder):
    """As a cache does: it is the same task in the next trial, and is looked at anew in the next study."""
    text = TASK.replace("SLOPE = 1.0", "SLOPE = 1.0\nSEEN = []").replace(
        "    weight.grad =", "    SEEN.append(1); weight.grad ="
    )
    (folder / "caching.py").write_text(text)
    study = parse_study(STUDY.format(module="caching"), name="s", source="s.toml")
    keys = []
    for _ in range(2):
        (cell,) = flatwise.run_study(study, quiet=True).cells
        keys.append({record.key for record in cell.comparison.records})
    assert not keys[0] & keys[1]


SETTINGS = """
import enum, pathlib
import numpy as np
from pydantic import ConfigDict

class Kind(enum.Enum):
    A = "a"
    B = "b"

@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 3
    path: pathlib.Path = pathlib.Path("x")

class Mine(flatwise.Settings):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    kind: Kind = Kind.A
    folder: pathlib.Path = pathlib.Path("data")
    inner: Inner = Inner()
    dtype: torch.dtype = torch.float64
    on: torch.device = torch.device("cpu")
    scale: np.float32 = np.float32(0.5)
"""


def test_settings_may_be_enums_paths_dataclasses_and_what_torch_has(folder):
    """They come back as they were where the trial runs, those that the study changes too."""
    text = SETTINGS + "".join(TASK.partition("import dataclasses, torch, flatwise")[2]).replace(
        "flatwise.Settings(", "Mine("
    )
    check = "    assert (type(settings.inner), settings.dtype, settings.scale) == (Inner, torch.float64, 0.5)\n"
    check += "    assert settings.on == torch.device('cpu')\n"
    check += "    assert (settings.kind, settings.folder) == (Kind.B, pathlib.Path('elsewhere'))\n"
    text = "import dataclasses, torch, flatwise\n" + text.replace("    weight = torch", check + "    weight = torch", 1)
    (folder / "typed.py").write_text(text)
    changed = STUDY.format(module="typed") + '[settings]\nkind = "b"\nfolder = "elsewhere"\n'
    (cell,) = flatwise.run_study(parse_study(changed, name="s", source="s.toml"), quiet=True).cells
    assert cell.comparison.arms[0].n == 2
    shown = cell.comparison.settings
    assert (shown["kind"], shown["folder"], shown["on"], shown["dtype"]) == ("b", "elsewhere", "cpu", "torch.float64")
    assert (shown["inner"], shown["scale"]) == ({"width": 3, "path": "x"}, 0.5)


def test_settings_that_are_no_plain_data_are_refused():
    from flatwise.study.subjects import subject_of

    class Odd(flatwise.Settings):
        names: frozenset[str] = frozenset({"a"})

    odd = Odd(epochs=1, batch_size=1, learning_rate=0.1)
    task = flatwise.Task("odd", "", odd, lambda folder: None, lambda *given: None)
    with pytest.raises(SettingsError, match="settings of odd must be plain data"):
        subject_of(task, odd)


MARK = "\nimport pathlib; pathlib.Path('imported').write_text('yes')\n"


def test_commands_that_read_import_nothing(folder):
    """What they need is in the store; nothing of the user's is run, and what settings became is remembered."""
    text = "import dataclasses, torch, flatwise\n" + SETTINGS + TASK.partition("import dataclasses, torch, flatwise")[2]
    text = text.replace("flatwise.Settings(", "Mine(")
    (folder / "reading.py").write_text(text)
    study = """
task = "reading:OWN"
[settings]
folder = "./x/../y"
kind = "b"
[tuning]
baseline.learning_rate = [1, 0.5]
[[arms]]
method = "vanilla"
space.learning_rate = { times = [1, 2] }
[[arms]]
method = "leap"
space.kind = ["a", "b"]
[final]
seeds = 2
"""
    (folder / "s.toml").write_text(study)
    assert flatwise_command(folder, "status", "s.toml")[0] == 0
    assert flatwise_command(folder, "report", "s.toml")[0] == 2
    status, said = flatwise_command(folder, "run", "s.toml", "--quiet")
    assert status == 0, said
    page = (folder / "runs" / "s" / "report.html").read_text()
    cell = (folder / "runs" / "s" / "cells" / "reading-own.html").read_text()
    (folder / "reading.py").write_text(text + MARK)
    for command in (("status", "s.toml"), ("report", "s.toml"), ("export", "s.toml")):
        status, said = flatwise_command(folder, *command)
        assert status == 0, said
        if command[0] == "status":
            assert "done" in said
    assert not (folder / "imported").exists()
    assert (folder / "runs" / "s" / "report.html").read_text() == page
    assert (folder / "runs" / "s" / "cells" / "reading-own.html").read_text() == cell
    assert len((folder / "runs" / "s" / "export" / "trials.csv").read_text().splitlines()) > 6
    (folder / "s.toml").write_text(study.replace("space.kind", "space.kid"))
    status, said = flatwise_command(folder, "report", "s.toml")
    assert (status, said.count("\n")) == (2, 1), said
    assert "nothing to tune called 'kid': did you mean 'kind'" in said
    assert not (folder / "imported").exists()

"""Packages that extend flatwise are found, told apart and named in errors; flatwise works without any."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap

import pytest
from typer.testing import CliRunner

import flatwise
from flatwise.cli import app
from flatwise.study import registry
from flatwise.study.registry import PluginError, UnknownStudyError, UnknownTaskError, get_task, load_study

MODULE = r'''
"""A package of someone else: a task, a study of it, and a section of the study's report."""

import torch
from markupsafe import Markup

import flatwise
from flatwise.study.registry import Plugin


class Data:
    def without_test(self):
        return self


def train(trial, settings, data):
    weight = torch.nn.Parameter(torch.tensor([1.0 + trial.seed]))
    optimizer = torch.optim.SGD([weight], lr=settings.learning_rate)
    scheduler = trial.attach(optimizer, steps_per_epoch=2, epochs=settings.epochs)
    for _ in range(settings.epochs):
        for _ in range(2):
            optimizer.zero_grad()
            weight.square().sum().backward()
            optimizer.step()
        scheduler.step()
        trial.report(val_error=weight.item() ** 2, test_error=weight.item() ** 2)


class Section:
    headline = "A sentence of the third package."
    table = "A table of the third package."
    content = {"cells": 1}

    def html(self, link):
        return Markup("<section><h2>A third package</h2>{}</section>").format(link("third-parabola"))


PLUGIN = Plugin(
    tasks=[
        flatwise.Task(
            name="third-parabola",
            summary="a parabola of a third package",
            settings=flatwise.Settings(epochs=2, batch_size=1, learning_rate=0.1),
            load=lambda data_dir: Data(),
            train=train,
        )
    ],
    studies=lambda: {"third-study": 'title = "A study"\ntask = "third-parabola"\n[[arms]]\nmethod = "vanilla"\n'
        '[[arms]]\nmethod = "leap"\narguments = { sigma = 0.1 }\n[final]\nseeds = 2\n'},
    section=lambda study, compared: Section() if study.name == "third-study" else None,
)
'''


def install(folder, module, *, name="third", version="1.0", package="third-package"):
    """A package as pip leaves it: a module ``{name}_plugin`` and the metadata with the entry point."""
    (folder / f"{name}_plugin.py").write_text(textwrap.dedent(module))
    metadata = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (metadata / "entry_points.txt").write_text(f"[flatwise.plugins]\n{name} = {name}_plugin:PLUGIN\n")
    return metadata


def hide_papers(folder):
    """Metadata that come first on the path hide those of the installed package: as if it was not there."""
    metadata = folder / "flatwise_papers-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: flatwise-papers\nVersion: 0\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of packages that flatwise sees instead of all that are installed."""
    hide_papers(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registry.plugins.cache_clear()
    yield tmp_path
    registry.plugins.cache_clear()
    for name in [name for name in sys.modules if name.endswith("_plugin")]:
        del sys.modules[name]


def fails(*arguments):
    """The one line on standard error with which a command ends."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    return line


# No plugin


def test_without_plugins_there_is_the_built_in_task_and_a_hint(folder):
    assert list(registry.all_tasks()) == ["digits-mlp"]
    assert registry.packaged_studies() == {}
    shown = CliRunner().invoke(app, ["tasks"])
    assert shown.exit_code == 0
    assert "digits-mlp" in shown.stdout
    hint = "The papers' {} are in flatwise-papers: pip install flatwise-papers"
    assert CliRunner().invoke(app, ["studies"]).stdout == f"No studies are installed. {hint.format('studies')}\n"
    assert fails("compare", "mnist-mlp-3").endswith(
        f"no task 'mnist-mlp-3': The tasks are digits-mlp. {hint.format('tasks')}"
    )
    for command in (("run", "leap-table-3"), ("studies", "leap-table-3"), ("report", "leap-table-3")):
        assert fails(*command).endswith(f"no study 'leap-table-3': No studies are installed. {hint.format('studies')}")
    with pytest.raises(UnknownTaskError, match="pip install flatwise-papers"):
        get_task("cora-gcn")
    with pytest.raises(UnknownStudyError, match="pip install flatwise-papers"):
        load_study("leap-table-3")


# Plugins that cannot be used


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(
            "import nothing_of_that_name\n",
            r"'third' of third-package 1\.0 cannot be imported from third_plugin:PLUGIN \(ModuleNotFoundError: "
            r"No module named 'nothing_of_that_name'\): repair the package, or uninstall it",
            id="import",
        ),
        pytest.param("raise OSError('two\\nlines')\n", r"\(OSError: two lines\): repair", id="two-lines"),
        pytest.param("", r"'third' of third-package 1\.0 cannot be imported .*AttributeError", id="attribute"),
        pytest.param(
            "PLUGIN = {}\n",
            r"'third' of third-package 1\.0 must be a flatwise\.study\.registry\.Plugin, but .*:PLUGIN is a dict",
            id="type",
        ),
    ],
)
def test_a_plugin_that_cannot_be_loaded(folder, module, message):
    install(folder, module)
    with pytest.raises(PluginError, match=message) as caught:
        registry.plugins()
    assert "\n" not in str(caught.value)
    for command in (("tasks",), ("compare", "third-parabola"), ("studies",), ("run", "third-study")):
        assert str(caught.value) in fails(*command)


TASK = """
import flatwise
from flatwise.study.registry import Plugin

settings = flatwise.Settings(epochs=1, batch_size=1, learning_rate=0.1)
PLUGIN = Plugin(
    tasks=[flatwise.Task(name, "", settings, lambda folder: None, lambda *given: None) for name in {names}],
    studies=lambda: {studies},
)
"""


def test_a_task_with_the_name_of_flatwises_own(folder):
    install(folder, TASK.format(names=["digits-mlp"], studies={}))
    with pytest.raises(PluginError, match=r"a task 'digits-mlp' in flatwise and in third-package 1\.0: rename one"):
        registry.all_tasks()
    assert "a task 'digits-mlp' in flatwise and in third-package 1.0" in fails("tasks")


def test_two_packages_with_the_same_task_or_study(folder):
    install(folder, TASK.format(names=["mine"], studies={}))
    install(folder, TASK.format(names=["other", "mine"], studies={}), name="fourth", package="fourth-package")
    with pytest.raises(
        PluginError, match=r"a task 'mine' in fourth-package 1\.0 and in third-package 1\.0: rename one"
    ):
        registry.all_tasks()
    (folder / "fourth_plugin.py").write_text(TASK.format(names=["other"], studies={"study": ""}))
    (folder / "third_plugin.py").write_text(TASK.format(names=["mine"], studies={"study": ""}))
    for name in ("third_plugin", "fourth_plugin"):
        del sys.modules[name]
    with pytest.raises(PluginError, match=r"a study 'study' in the plugin 'fourth' and in the plugin 'third': rename"):
        registry.packaged_studies()
    assert list(registry.all_tasks()) == ["digits-mlp", "other", "mine"]


def test_a_package_with_one_task_twice(folder):
    install(folder, TASK.format(names=["mine", "mine"], studies={}))
    with pytest.raises(PluginError, match=r"a task 'mine' twice in third-package 1\.0: rename one of the two"):
        registry.all_tasks()


def test_two_packages_whose_plugins_have_one_name(folder):
    install(folder, TASK.format(names=["mine"], studies={}))
    install(folder, TASK.format(names=["other"], studies={}), package="fourth-package")
    with pytest.raises(PluginError, match=r"two packages have a plugin named 'third', .*: uninstall one of them"):
        registry.plugins()


# A package of someone else


def command(folder, *arguments):
    """The real command line, in a process of its own, in which the folder's packages are installed."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "flatwise", *arguments],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def trials(store):
    with sqlite3.connect(store) as connection:
        (count,) = connection.execute("select count(*) from trials").fetchone()
    connection.close()
    return count


def test_a_third_package_adds_a_task_a_study_and_a_section(tmp_path):
    hide_papers(tmp_path)
    installed = install(tmp_path, MODULE)
    assert "a parabola of a third package" in command(tmp_path, "tasks")
    assert "A table of the third package." in command(tmp_path, "run", "third-study", "--out", "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "A sentence of the third package." in page
    assert "<h2>A third package</h2>" in page
    (store,) = (tmp_path / "out").glob("*.sqlite")
    assert trials(store) == 4

    # Another version of the package may train otherwise: its trials are others.
    shutil.rmtree(installed)
    install(tmp_path, MODULE, version="1.1")
    command(tmp_path, "run", "third-study", "--out", "out", "--quiet")
    assert trials(store) == 8


def test_a_plugins_task_is_known_by_the_version_of_its_package(folder):
    install(folder, MODULE, version="2.5")
    assert get_task("third-parabola").code == "third-package 2.5"
    assert get_task("digits-mlp").code is None
    text = CliRunner().invoke(app, ["studies", "third-study"]).stdout
    assert text.startswith('title = "A study"\ntask = "third-parabola"\n')
    assert re.search("third-study +A study +a CPU", CliRunner().invoke(app, ["studies"]).stdout)
    for _ in range(2):  # the second finds all trials in the store
        outcome = flatwise.run_study(load_study("third-study"), out=folder / "out", quiet=True)
        assert outcome.sections["third"] == {"cells": 1}
        (store,) = (folder / "out").glob("*.sqlite")
        assert trials(store) == 4


def test_a_task_of_the_users_own_loads_no_plugin(tmp_path, monkeypatch):
    (tmp_path / "own_tasks_without_plugins.py").write_text(
        "from flatwise.study.tasks.classification import DIGITS_MLP\n\nMINE = DIGITS_MLP\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def refuse():
        raise AssertionError("the plugins were loaded")

    monkeypatch.setattr(registry, "plugins", refuse)
    assert get_task("own_tasks_without_plugins:MINE").is_own
    with pytest.raises(UnknownTaskError, match="has no 'OTHER'"):
        get_task("own_tasks_without_plugins:OTHER")

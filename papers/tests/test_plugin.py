"""What flatwise finds in this package, by the command line that users have."""

import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import flatwise_papers
import quick_tasks
from flatwise.cli import app
from flatwise.study.registry import all_tasks, get_task, plugins
from flatwise.study.spec import StudyError, StudySpec
from flatwise_papers.plugin import PLUGIN


def call(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "150"})


def test_it_is_found_through_its_entry_point():
    assert [task.name for task in plugins()["papers"].tasks] == [task.name for task in PLUGIN.tasks]
    assert len(all_tasks()) == 1 + len(PLUGIN.tasks)
    assert get_task("mnist-mlp-3").code == f"flatwise-papers {flatwise_papers.__version__}"


def test_tasks_and_studies_are_listed():
    tasks = call("tasks").stdout
    for name in ("digits-mlp", "mnist-mlp-3", "mnist-mlp-10", "cora-gat", "cifar100-wrn-28-10", "imdb-lstm"):
        assert re.search(rf"^ *{name} ", tasks, re.M), name
    studies = call("studies").stdout
    assert re.search(r"leap-table-3 +LEAP, Table 3: graph networks at a constant rate +a CPU", studies)
    assert re.search(r"ralr-table-1 +RALR, Table 1: .* +a GPU", studies)


def test_a_packaged_study_is_a_start_for_your_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(call("studies", "leap-table-3").stdout, encoding="utf-8")
    done = call("status", "mine.toml", "--cell", "cora-gcn")
    assert done.exit_code == 0, done.stderr
    assert "cora-gcn" in done.stdout


def test_names_with_a_typo():
    assert "no study 'laep-table-3': did you mean 'leap-table-3'?" in call("run", "laep-table-3").stderr
    assert "no task 'mnist-mpl-3': did you mean 'mnist-mlp-3'?" in call("compare", "mnist-mpl-3").stderr


def study(paper, task="cora-gcn"):
    arms = [{"method": "vanilla"}, {"method": "leap", "paper": paper}]
    cells = [{"task": task, "paper": {"paper": "leap", "table": "3", "dataset": "Cora", "model": "GCN"}}]
    return StudySpec(name="study", cells=cells, arms=arms)


def test_a_study_without_claims_has_no_ledger():
    assert PLUGIN.section(study({}), {}) is None
    PLUGIN.check(study({}))


def test_claims_are_checked_before_the_first_trial(monkeypatch):
    PLUGIN.check(study({"arm": "leap"}))
    assert PLUGIN.section(study({"arm": "leap"}), {}).headline == "None of 1 claim reproduced; 1 not run yet."
    with pytest.raises(StudyError, match="cell 'cora-gcn', arm 'leap': the papers' tables have no error of arm 'laep'"):
        PLUGIN.check(study({"arm": "laep"}))
    monkeypatch.setattr(quick_tasks, "SHARE", replace(quick_tasks.QUICK, unit=""), raising=False)
    message = (
        "results are errors in percent, but quick_tasks:SHARE is judged by test_error in '', lower is better: omit"
    )
    with pytest.raises(StudyError, match=message):
        PLUGIN.check(study({"arm": "leap"}, "quick_tasks:SHARE"))

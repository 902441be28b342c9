"""The studies that come with the package: each can be read, finds its claims, and can come to a verdict."""

from importlib import resources
from pathlib import Path

import pytest

from flatwise.study.arms import VANILLA
from flatwise.study.check import check_study
from flatwise.study.registry import UnknownStudyError, load_study, packaged_studies, study_text
from flatwise.study.spec import Times
from flatwise_papers.replication.claims import METRICS, find_claims, read_paper_tables

STUDIES = {name: load_study(name) for name in packaged_studies()}


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_what_the_report_needs(name):
    study = STUDIES[name]
    assert study.name == name
    assert study.title.count(": ") == 1
    assert len(study.title) <= 100
    assert len(study.description) > 80


@pytest.mark.parametrize("name", STUDIES)
def test_every_arm_but_vanilla_claims_one_row_in_every_cell(name):
    study = STUDIES[name]
    claims = find_claims(study)
    expected = [(cell.name, arm.name) for cell in study.cells for arm in study.arms if arm.name != VANILLA]
    assert [(claim.cell, claim.arm) for claim in claims] == expected
    assert len(
        {(claim.dataset, claim.model, claim.optimizer, claim.schedule, claim.result) for claim in claims}
    ) == len(claims)


@pytest.mark.parametrize("name", STUDIES)
def test_tasks_settings_methods_and_spaces_can_be_built(name):
    check_study(STUDIES[name])


@pytest.mark.parametrize("name", STUDIES)
def test_there_are_enough_seeds_for_a_verdict(name):
    """The smallest p value of n pairs is 2/2^n, and every method and control is a test of the family."""
    study = STUDIES[name]
    tests = (2 if study.final.controls else 1) * (len(study.arms) - 1)
    assert tests * 2 / 2 ** len(study.final.seeds) <= study.final.level


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("leap")])
def test_leap_is_tuned_as_in_the_paper(name):
    vanilla, leap = STUDIES[name].arms
    assert leap.space["sigma"].values == (0.1, 0.05, 0.01, 5e-3, 1e-3, 5e-4, 1e-4)
    assert isinstance(vanilla.space["learning_rate"], Times)
    assert len(vanilla.space["learning_rate"].times) == 7
    assert 1 in vanilla.space["learning_rate"].times  # vanilla's first choice stays one
    assert STUDIES[name].tuning.baseline["weight_decay"].values[-1] == 1e-4


@pytest.mark.parametrize(
    ("names", "paper", "tables", "left_out"),
    [
        (["leap-table-1", "leap-table-2", "leap-table-2-cifar"], "leap", "12", {"ImageNet"}),
        (["leap-table-3", "leap-table-4", "leap-table-4-cifar", "leap-table-5"], "leap", "345", {"ImageNet"}),
        (["ralr-table-1", "ralr-table-2"], "ralr", "12", set()),
        (["rn-table-2", "rn-table-2-mnist", "rn-table-2-imdb"], "random-noise-lr", "2", {"SVHN"}),
        (["rn-table-3"], "random-noise-lr", "3", set()),
        (["rn-table-4"], "random-noise-lr", "4", set()),
    ],
)
def test_tables_are_complete(names, paper, tables, left_out):
    """Every arm that a table prints is a claim, but for data sets without a task."""
    rows = [
        row
        for row in read_paper_tables()
        if row.paper == paper and row.table in tables and row.metric in METRICS and row.dataset not in left_out
    ]
    printed = {(row.table, row.dataset, row.model, round(row.error, 6)) for row in rows if row.arm != VANILLA}
    claims = [claim for name in names for claim in find_claims(STUDIES[name])]
    assert {(claim.table, claim.dataset, claim.model, claim.result.mean) for claim in claims} == printed


def test_studies_are_listed_in_order():
    files = resources.files("flatwise_papers.replication").joinpath("studies").iterdir()
    assert sorted(STUDIES) == sorted(file.name.removesuffix(".toml") for file in files)
    assert [name for name in STUDIES if name.startswith("ralr")] == [f"ralr-table-{n}" for n in (1, 2, 6, 7)]
    names = list(STUDIES)
    assert names.index("leap-table-2") < names.index("leap-table-3") < names.index("lrd-table-1")


def test_an_unknown_study_names_the_closest():
    with pytest.raises(UnknownStudyError, match="no study 'leap-tabel-3': did you mean 'leap-table-3'"):
        load_study("leap-tabel-3")
    with pytest.raises(UnknownStudyError, match="The studies are leap-table-1, "):
        study_text("../../pyproject")


def test_the_text_is_the_file():
    text = study_text("leap-table-3")
    assert text.startswith('title = "LEAP, Table 3')
    assert all(len(line) <= 120 for line in text.splitlines() if " = {" not in line and "{ " not in line)


def test_the_docs_list_every_study():
    text = (Path(__file__).resolve().parents[3] / "docs" / "replication.md").read_text(encoding="utf-8")
    for name, study in STUDIES.items():
        on_gpu = any((study.settings | cell.settings).get("device") == "cuda" for cell in study.cells)
        device = "GPU" if on_gpu else "CPU"
        row = f"| `{name}` | {study.title} | {len(study.cells)} | {len(find_claims(study))} | {device} |"
        assert row in text
    assert text.count("\n| `") == len(STUDIES) + 5  # and the verdicts

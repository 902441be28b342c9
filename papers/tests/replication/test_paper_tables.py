"""The papers' tables as data: what is read is what is printed, and a wrong name says which is near."""

from importlib import resources
from pathlib import Path

import pytest

from flatwise.study.spec import PaperSpec
from flatwise_papers.replication.claims import PaperTableError, find_row, read_paper_tables

SHARED = Path(__file__).resolve().parents[4] / "shared" / "paper_tables.csv"
RN_4 = {"paper": "random-noise-lr", "table": "4"}


@pytest.mark.skipif(not SHARED.is_file(), reason="no ../shared/paper_tables.csv beside the checkout")
def test_the_packaged_tables_are_the_shared_ones():
    packaged = resources.files("flatwise_papers.replication").joinpath("paper_tables.csv").read_bytes()
    assert packaged == SHARED.read_bytes()


def test_every_line_is_a_row():
    rows = read_paper_tables()
    assert len(rows) == 449
    assert {row.paper for row in rows} == {"leap", "lr-dropout", "random-noise-lr", "ralr", "peak-lr"}
    assert all(row.mean > 0 and (row.sd is None or row.sd > 0) for row in rows)


def test_a_row_is_as_printed():
    row = find_row(PaperSpec(paper="leap", table="3", dataset="Cora", model="GCN", arm="vanilla"))
    assert (row.mean, row.sd, row.runs, row.metric, row.error) == (25.38, 0.75, 5, "error", 25.38)
    row = find_row(PaperSpec(paper="lr-dropout", table="I", dataset="MNIST", optimizer="SGDM", arm="lr_dropout"))
    assert (row.mean, row.sd, row.runs, row.epochs, row.batch_size) == (98.46, 0.28, 5, 100, 128)
    assert row.settings == {"keep": "0.5", "lr": "0.1"}
    assert row.error == pytest.approx(1.54)


def test_missing_numbers_are_none():
    row = find_row(PaperSpec(paper="peak-lr", table="2", model="NIN", arm="vanilla"))
    assert (row.sd, row.runs, row.epochs, row.batch_size, row.schedule) == (None, None, None, None, "")


def test_fractions_become_percent():
    row = find_row(PaperSpec(paper="random-noise-lr", table="fig4", arm="random_lr"))
    assert row.mean == pytest.approx(91.48)
    assert row.error == pytest.approx(8.52)


def test_only_errors_and_accuracies_become_errors():
    bleu = next(row for row in read_paper_tables() if row.metric == "bleu")
    with pytest.raises(PaperTableError, match=r"ralr, table 5, .*: bleu cannot be compared with an error"):
        _ = bleu.error
    with pytest.raises(PaperTableError, match="no error of table '5' with paper 'ralr'"):
        find_row(PaperSpec(paper="ralr", table="5"))


def test_settings_select_by_what_they_name():
    assert find_row(PaperSpec(**RN_4, arm="random_lr", settings="alpha=8;beta=0.4")).mean == 91.80
    assert find_row(PaperSpec(**RN_4, arm="random_lr", settings="beta=0.4")).mean == 91.80


def test_a_row_that_is_printed_twice_is_one():
    assert find_row(PaperSpec(**RN_4, arm="vanilla")).mean == 91.66
    assert find_row(PaperSpec(**RN_4, arm="random_lr", settings="alpha=8;beta=0.6")).mean == 92.15


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"paper": "leep"}, "no error of paper 'leep': did you mean 'leap'?"),
        ({"paper": "leap", "table": "7"}, "no error of table '7' with paper 'leap': There are 1, 2, 3, 4, 5"),
        ({"paper": "leap", "table": "3", "dataset": "cora"}, "did you mean 'Cora'? There are Cora, PubMed, CiteSeer"),
        ({"paper": "leap", "table": "3", "model": "GCNN"}, "did you mean 'GCN'?"),
        ({**RN_4, "arm": "random_lr", "settings": "beta=0.5"}, "no error of settings 'beta=0.5'"),
        (
            {"paper": "leap", "table": "3", "model": "GCN"},
            "say which by dataset or arm or settings, such as dataset = 'Cora'",
        ),
        ({**RN_4, "arm": "random_lr"}, "say which by settings, such as settings = 'alpha=2;beta=0.6'"),
        ({**RN_4, "settings": "beta"}, "key=value with ';' between, as in alpha=8;beta=0.6; got 'beta'"),
        (
            {"paper": "lr-dropout", "table": "V", "arm": "vanilla"},
            "they differ in what a study file cannot say, such as the batch size",
        ),
    ],
)
def test_a_wrong_name_says_what_there_is(asked, message):
    with pytest.raises(PaperTableError) as error:
        find_row(PaperSpec(**asked))
    assert message in str(error.value)
    assert "\n" not in str(error.value)

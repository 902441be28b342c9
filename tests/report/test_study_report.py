"""A study's report: what the pages and the terminal's tables say, and that they say it of every kind of outcome."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
import re
from collections import Counter

import numpy as np
import pytest
from rich.console import Console
from test_report import Elements, printed, texts

import study_samples as samples
from flatwise.report.comparison import final_value
from flatwise.report.figures import forest_plots
from flatwise.report.page import cell_slugs, render_cell, render_overview, write_study_report
from flatwise.report.progress import LiveProgress
from flatwise.report.study import (
    final_words,
    method_lines,
    status_table,
    study_headline,
    study_table,
    tuning_lines,
    what_is_known,
)
from flatwise.report.tuning import edge_of, search_figures, search_warnings, seeds_words, tuning_words, value_words
from flatwise.study.arms import Arm
from flatwise.study.results import CellStatus
from flatwise.study.spec import Choices, Range
from flatwise.study.store import Record
from flatwise.study.subjects import Subject, TrialSpec
from flatwise.study.work import Round
from flatwise_papers.replication.section import LedgerSection, ledger_headline, ledger_table, where
from report_samples import NAN, with_verdicts
from study_samples import BASELINE, FAILED, LEAP, ODD_ARM, ODD_CELL, RALR, VANILLA, searched


@pytest.fixture(scope="module")
def study():
    return samples.study()


@pytest.fixture(scope="module")
def results(study):
    return samples.results(study)


@pytest.fixture(scope="module")
def ledger(study):
    return samples.ledger(study)


def slugs_of(results):
    return cell_slugs([result.cell.name for result in results])


@pytest.fixture(scope="module")
def overview(study, results, ledger):
    return render_overview(study, results, slugs_of(results), [LedgerSection(ledger)])


@pytest.fixture(scope="module")
def cell(study, results):
    return render_cell(study, results[0])


# Sentences


def test_headline_counts_cells(results):
    assert study_headline(results) == (
        "Against vanilla, ralr helps in 2 of 2 cells; the other comparison is inconclusive; "
        "1 comparison could not be tested."
    )
    assert study_headline(results[2:]) == "Nothing is judged yet: no cell has a seed that all its arms have run."
    assert study_headline(results[:1]).startswith("Against vanilla, ralr helps, and by more than the mean rate")


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (("helps", "hurts", "hurts"), "Against vanilla, m helps in 1 of 3 cells; m hurts in 2 of 3 cells."),
        (
            ("hurts", "inconclusive", "failed"),
            "No method was shown to help in any of 3 cells: m hurts in 1 of 3 cells; the other comparison is "
            "inconclusive; 1 comparison could not be tested.",
        ),
        (
            ("inconclusive",) * 3,
            "No method was shown to help in any of 3 cells: all 3 comparisons are inconclusive.",
        ),
    ],
)
def test_headline_over_cells(results, verdicts, said):
    judged = [
        dataclasses.replace(result, comparison=with_verdicts(verdict, "inconclusive", "inconclusive"))
        for result, verdict in zip(results, verdicts, strict=True)
    ]
    assert study_headline(judged) == said


def test_method_lines_name_the_cells_and_whose_the_gain_is(results):
    assert method_lines(results) == [
        (ODD_ARM, f" is inconclusive in digits-mlp; could not be tested in {ODD_CELL}."),
        ("ralr", " helps in all 2 cells, by more than the mean rate explains."),
    ]
    by_rate = dataclasses.replace(results[1], comparison=with_verdicts("helps", "inconclusive", "helps"))
    own = dataclasses.replace(results[0], comparison=with_verdicts("helps", "helps", "inconclusive"))
    own = dataclasses.replace(own, comparison=dataclasses.replace(own.comparison, task="own"))
    (line,) = method_lines([own, by_rate])
    assert line == ("m", " helps in all 2 cells (only in own by more than the mean rate explains).")
    (line,) = method_lines([by_rate, by_rate])
    assert line[1].endswith("but nothing shows that the gain is more than the mean rate's.")


def test_words_of_the_budget(study):
    text = tuning_words(study)
    for part in (
        "First vanilla is tuned over learning_rate and weight_decay: all 12 configurations of a grid.",
        "Then every arm, starting from that choice, searches a space of its own",
        "on one budget: all 5 configurations of a grid.",
        "the mean over 2 seeds (1000 and 1001), which are not among those of the final runs.",
        "The test split is not read while tuning",
    ):
        assert part in text
    assert "8 seeds (0 to 7), paired, and judged on the test split" in final_words(study)
    assert "So is a control" in final_words(study)
    assert "no controls" in final_words(samples.study(final={"seeds": 8, "controls": False}))
    assert "12 configurations drawn at random (sampler's seed 0)" in tuning_words(samples.study("random"))
    assert "Parzen estimator (4 at a time, sampler's seed 0)" in tuning_words(samples.study("tpe"))


def test_words_of_a_study_without_tuning():
    plain = samples.study(arms=[{"method": "vanilla"}, {"method": "leap"}], tuning={})
    assert tuning_words(plain).startswith("Nothing is tuned")
    assert final_words(plain).startswith("Every arm is run on 8 seeds")


@pytest.mark.parametrize(
    ("seeds", "text"),
    [
        ((7,), "seed 7"),
        ((0, 1), "2 seeds (0 and 1)"),
        ((0, 1, 2), "3 seeds (0 to 2)"),
        ((1, 5, 8), "3 seeds (1, 5 and 8)"),
    ],
)
def test_seeds_in_words(seeds, text):
    assert seeds_words(seeds) == text


def test_what_is_known_of_a_cell_that_is_not_judged(study, results):
    assert what_is_known(results[2]) == "Its tuning is not finished."
    tuned = dataclasses.replace(results[0], comparison=None)
    assert what_is_known(tuned) == (
        "Its tuning is done: the baseline learning_rate = 0.1 and weight_decay = 0.0001; vanilla learning_rate = 0.1; "
        f"{ODD_ARM} sigma = 0.1; ralr high = 2. No seed of its final runs is complete."
    )


# What a search is warned of


def test_a_choice_at_the_edge_of_its_grid(study):
    sigma = study.arms[1].space
    assert edge_of("sigma", LEAP, sigma) == "highest"
    assert edge_of("high", RALR, study.arms[2].space) is None
    (warning,) = search_warnings(LEAP, sigma)
    assert warning == "The chosen sigma, 0.1, is the highest that was tried: a higher one may be better."
    lowest = searched("vanilla", {"learning_rate": (0.1, 0.2)}, (1.0, 2.0))
    (warning,) = search_warnings(lowest, {})
    assert "is the lowest that was tried: a lower one may be better." in warning
    assert "A vanilla below its best makes every gain over it look larger." in warning


def test_what_has_no_order_or_no_choice_has_no_edge():
    assert edge_of("optimizer", searched("m", {"optimizer": ("sgd", "adam")}, (1.0, 2.0)), {}) is None
    assert edge_of("nesterov", searched("m", {"nesterov": (True, False)}, (1.0, 2.0)), {}) is None
    assert edge_of("weight_decay", searched("m", {"weight_decay": (0.0, 1e-4)}, (1.0, 2.0)), {}) is None
    one = searched("m", {"sigma": (0.1,)}, (1.0,))
    assert edge_of("sigma", one, {"sigma": Choices(values=(0.1,))}) is None


@pytest.mark.parametrize(
    ("value", "log", "edge"),
    [(0.0011, True, "lowest"), (0.5, True, None), (0.9, True, "highest"), (0.9, False, None), (0.04, False, "lowest")],
)
def test_the_edge_of_a_range_is_a_share_of_it(value, log, edge):
    tuned = samples.drawn("m", [{"sigma": value}, {"sigma": 0.3}], (1.0, 2.0))
    assert edge_of("sigma", tuned, {"sigma": Range(low=0.001, high=1.0, log=log)}) == edge


def test_failed_configurations_are_told():
    assert search_warnings(BASELINE, {}) == ["1 of 12 configurations failed on a seed and could not be chosen."]
    (warning,) = search_warnings(FAILED, {})
    assert warning.startswith("Every configuration failed on a seed: the first was taken")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1 * 0.7, "0.07"), (1e-4, "0.0001"), (True, "true"), ("sgd", "sgd"), (3, "3"), ([1, 0.5], "[1, 0.5]")],
)
def test_values_in_words(value, text):
    assert value_words(value) == text


# Figures of searches


def test_a_grid_over_one_setting_is_a_line_with_the_chosen_one_marked():
    ((name, figure),) = search_figures(VANILLA, "val_error (%)", "lower", is_grid=True).items()
    assert name == "learning_rate"
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["tried"].x) == [0.05, 0.07, 0.1, 0.14]
    assert list(by_name["tried"].y) == [3.3, 3.1, 2.96, 3.0]
    assert by_name["tried"].mode == "lines+markers"
    assert (list(by_name["chosen"].x), list(by_name["chosen"].y)) == ([0.1], [2.96])
    assert (list(by_name["failed"].x), list(by_name["failed"].y)) == ([0.2], [3.3])


def test_points_are_joined_in_the_order_of_their_values():
    (figure,) = search_figures(LEAP, "v", "lower", is_grid=True).values()
    assert list(figure.data[0].x) == sorted(samples.SIGMAS)
    assert figure.layout.xaxis.type == "log"
    assert list(figure.layout.xaxis.ticktext) == ["0.001", "0.005", "0.01", "0.05", "0.1"]


def test_a_grid_over_two_settings_is_a_heatmap():
    ((name, figure),) = search_figures(BASELINE, "val_error (%)", "lower", is_grid=True).items()
    assert name == "learning_rate × weight_decay"
    (drawn,) = figure.data
    for index, (configuration, value) in enumerate(zip(BASELINE.configurations, BASELINE.values, strict=True)):
        row = samples.DECAYS.index(configuration["weight_decay"])
        column = samples.RATES.index(configuration["learning_rate"])
        if math.isfinite(value):
            assert f"{value:.4g}" in drawn.text[row][column]
            assert ("<b>" in drawn.text[row][column]) == (index == BASELINE.chosen)
        else:
            assert np.isnan(drawn.z[row][column])
            (failed,) = [note for note in figure.layout.annotations if note.text == "failed"]
            assert (failed.x, failed.y) == (column, row)
    (frame,) = figure.layout.shapes
    assert (frame.x0 + frame.x1, frame.y0 + frame.y1) == (2 * 2, 2 * 1)
    assert np.nanargmin(drawn.z) == 1 * 4 + 2  # the best has the strongest colour
    (worst,) = search_figures(BASELINE, "v", "higher", is_grid=True).values()
    assert np.nanargmax(worst.data[0].z) == np.nanargmin(drawn.z)


def test_what_a_sampler_drew_is_a_figure_per_setting(study):
    sampled = samples.sampled_result(samples.study("tpe"))
    figures = search_figures(sampled.tuned[1], "v", "lower", is_grid=False)
    assert list(figures) == ["sigma", "optimizer"]
    assert all(figure.data[0].mode == "markers" for figure in figures.values())
    assert figures["optimizer"].layout.xaxis.type == "category"
    assert {trace.name for trace in figures["sigma"].data} == {"tried", "failed", "chosen"}


def test_a_search_that_failed_as_a_whole_is_drawn():
    (figure,) = search_figures(FAILED, "v", "lower", is_grid=True).values()
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["failed"].x) == [1.5, 2.0, 3.0, 4.0, 6.0]
    assert "chosen" not in by_name
    pair = searched("m", {"a": (1, 2), "b": (1, 2)}, (NAN,) * 4)
    (figure,) = search_figures(pair, "v", "lower", is_grid=True).values()
    assert [note.text for note in figure.layout.annotations] == ["failed"] * 4
    assert not figure.layout.shapes


# The forest


def test_forest_has_every_difference_of_every_cell(results):
    comparisons = [result.comparison for result in results[:2]]
    (figure,) = forest_plots(comparisons).values()
    means = {trace.name.removesuffix(": mean"): trace for trace in figure.data if trace.meta == "mean"}
    intervals = {trace.name: trace for trace in figure.data if trace.meta == "interval"}
    expected = {
        f"{comparison.task}: {arm.name}": arm.vs_vanilla
        for comparison in comparisons
        for arm in comparison.arms[1:]
        if not arm.is_control and arm.vs_vanilla.verdict != "failed"
    }
    assert [html.unescape(name) for name in means] == list(expected)
    for (name, mean), judgement in zip(means.items(), expected.values(), strict=True):
        assert list(mean.x) == [judgement.mean]
        assert list(intervals[f"{name}: 95 % interval"].x) == [judgement.low, judgement.high]
        assert (mean.marker.symbol == "diamond") == (judgement.verdict == "helps")
    heights = [mean.y[0] for mean in means.values()]
    assert heights == sorted(heights, reverse=True)
    notes = [note.text for note in figure.layout.annotations]
    assert f"{html.escape(ODD_ARM, quote=False)} — failed, not tested" in notes
    assert notes.count("ralr") == 2


def test_forest_has_a_figure_per_metric(results):
    other = dataclasses.replace(results[1].comparison, metric="score", unit="", better="higher")
    figures = forest_plots([results[0].comparison, other])
    assert list(figures) == ["test_error (points), lower is better", "score, higher is better"]


# The ledger


def test_ledger_table_has_paper_and_ours_side_by_side(ledger):
    rows = [[tuple(line.text for line in each) for each in row.cells] for row in ledger_table(ledger, str).rows]
    first, by_rate, refuted, open_, worse, failed, _ = rows
    assert first[1] == ("8.60 ± 0.10\n→ 8.30 ± 0.12", "−3.5 %")
    assert first[2] == ("8.75 ± 0.13\n→ 8.44 ± 0.15",)
    assert first[3] == ("−0.31", "−0.45 to −0.17", "paper's: −0.30")
    assert where(ledger.entries[0].claim) == "leap, table 3, MNIST, MLP-3, SGD"
    assert [row[-1][0] for row in rows] == [
        "reproduced",
        "reproduced",
        "not reproduced",
        "inconclusive",
        "baseline differs",
        "failed",
        "not run",
    ]
    assert by_rate[-1][1:] == ("by the mean rate, not by the noise",)
    assert refuted[-1][1:] == ()
    assert open_[-1][1:] == ("needs at least 37 seeds",)
    assert worse[-1][1] == "our vanilla is worse than the paper's; the claim itself: reproduced"
    assert "→" not in failed[2][0]
    assert failed[3:5] == [("—",), ("—",)]
    assert ledger_table(ledger).rows[-1].cells[-1][0].look == "dim"


def test_ledger_headline(ledger):
    assert ledger_headline(ledger) == (
        "2 of 7 claims reproduced (1 by the mean rate, not by the noise); 1 not reproduced; 1 inconclusive; "
        "1 with another baseline than the paper's; 1 failed; 1 not run yet."
    )
    assert ledger_headline(dataclasses.replace(ledger, entries=ledger.entries[2:3])) == (
        "None of 1 claim reproduced; 1 not reproduced."
    )
    assert ledger_headline(dataclasses.replace(ledger, entries=())) == "This study replicates no claim of a paper."


# Pages


def test_overview_has_the_verdicts_first(study, results, ledger, overview):
    text = Elements(overview).text
    places = [
        text.index(part)
        for part in (
            ledger_headline(ledger),
            study_headline(results),
            "The paper's numbers beside ours",
            "Every cell and arm",
        )
    ]
    assert places == sorted(places)
    for part in (study.title, "A sample: made numbers.", "mnist-mlp-4 is not judged yet. Its tuning is not finished."):
        assert part in text
    assert tuning_words(study) in text
    assert final_words(study) in text
    for name, line in method_lines(results):
        assert f"{name}{line}" in text


def test_overview_has_every_cell_arm_and_claim(results, ledger, overview):
    text = Elements(overview).text
    counts = Counter[str]()
    for result in results[:2]:
        for row in study_table([result], str).rows[1:]:
            assert row.kind != "control"
            counts[row.cells[1][0].text] += 1
    for value, count in counts.items():
        assert text.count(value) >= count
    for part in texts(study_table(results, str)):
        assert part in text
    for part in [line for each in texts(ledger_table(ledger, str)) for line in each.split("\n")]:
        assert part in text
    for entry in ledger.entries:
        assert entry.explanation in text
    assert "3 of 8 failed" in text
    assert "The paper prints accuracies" in text
    assert "The paper reports the best epoch" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_overview_warns_of_choices_at_an_edge(study, results, overview):
    warning = "A chosen value lies at the edge of what was searched"
    assert (
        f"{warning}, so a better one may lie outside: digits-mlp ({ODD_ARM}); {ODD_CELL} ({ODD_ARM})."
        in Elements(overview).text
    )
    inside = [dataclasses.replace(results[0], tuned=(VANILLA, dataclasses.replace(LEAP, chosen=1), RALR))]
    assert warning not in Elements(render_overview(study, inside, slugs_of(inside))).text


def test_overview_without_a_ledger(study, results):
    text = Elements(render_overview(study, results, slugs_of(results))).text
    assert "claim" not in text
    assert study_headline(results) in text


def test_overview_of_what_has_not_begun(study, results):
    nothing = [dataclasses.replace(result, baseline=None, tuned=(), comparison=None) for result in results]
    page = render_overview(study, nothing, slugs_of(nothing))
    elements = Elements(page)
    assert "Nothing is judged yet" in elements.text
    assert elements.text.count("is not judged yet. Its tuning is not finished.") == 3
    assert elements.count("a") == 0
    assert "Every cell and arm" not in elements.text
    assert len(page) < 100_000  # without a figure there is no need of plotly


def test_overview_of_an_interrupted_cell_says_so(results):
    longer = samples.study(final={"seeds": 10})
    text = Elements(render_overview(longer, results, slugs_of(results))).text
    assert "digits-mlp is not complete: 8 of 10 seeds have a run of every arm" in text


def test_cell_page_is_the_comparison_and_its_tuning(study, results, cell):
    text = Elements(cell).text
    for arm in results[0].comparison.arms:
        assert final_value(results[0].comparison, arm) in text
        assert arm.description in text
    for part in (
        "How the settings were chosen",
        "learning_rate = 0.1 and weight_decay = 0.0001",
        "learning_rate: the baseline's × 0.5, 0.7, 1, 1.4, 2",
        "The chosen sigma, 0.1, is the highest that was tried",
        "The test split is not read while tuning",
        "differ in the arm and the settings that it was tuned to",
        "all 12 configurations of baseline",
        "val_error (%)",
        "88.5",
    ):
        assert part in text
    assert text.count("✓ chosen") == 4
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    figures = json.loads(re.search(r"^const figures = (.*?);$", cell, re.DOTALL | re.MULTILINE).group(1))
    places = [attributes["id"] for _, attributes in Elements(cell).found if attributes.get("class") == "plot"]
    assert sorted(places) == sorted(figures)
    assert "heatmap" in {trace["type"] for figure in figures.values() for trace in figure["data"]}


def test_cell_page_of_a_cell_that_is_tuned_and_not_judged():
    sampled = samples.study("tpe")
    page = render_cell(sampled, samples.sampled_result(sampled))
    assert "Tuned, not judged yet" in Elements(page).text
    assert "optimizer = " in Elements(page).text


def test_cell_without_tuning_has_no_section(results):
    plain = samples.study(arms=[{"method": "vanilla"}, {"method": "leap", "name": ODD_ARM}], tuning={})
    untuned = tuple(searched(arm.name, {}, (NAN,)) for arm in plain.arms)
    page = render_cell(plain, dataclasses.replace(results[0], baseline=None, tuned=untuned))
    assert "How the settings were chosen" not in page


@pytest.mark.parametrize("which", ["overview", "cell", "odd cell"])
def test_pages_load_nothing_and_escape_everything(study, results, overview, cell, which):
    page = {"overview": overview, "cell": cell, "odd cell": render_cell(study, results[1])}[which]
    elements = Elements(page)
    assert elements.attributes("src") == []
    assert elements.count("img") == elements.count("iframe") == 0
    assert elements.count("script") == 2
    assert elements.attributes("onerror") == elements.attributes("onclick") == []
    assert "default-src 'none';" in page
    assert all(not (link or "").startswith(("http", "//")) for link in elements.attributes("href"))
    assert ODD_ARM not in page
    assert ODD_CELL not in page
    assert ODD_ARM in elements.text
    assert html.escape(ODD_ARM, quote=False) not in elements.text  # nothing is escaped twice


def test_report_is_written_with_links_that_lead_somewhere(study, results, ledger, tmp_path):
    folder = tmp_path / "runs" / "sample"
    path = write_study_report(study, results, folder, [LedgerSection(ledger)])
    assert path == folder / "report.html"
    written = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    cells = ["cells/digits-mlp.html", "cells/img-src-x-onerror-alert-1-script-bold.html"]
    assert written == [*cells, "plotly.min.js", "report.html"]
    # The program that draws the figures is there once, not in every page.
    assert (folder / "plotly.min.js").stat().st_size > 3_000_000
    for name, program in (*[(cell, "../plotly.min.js") for cell in cells[:1]], ("report.html", "plotly.min.js")):
        text = (folder / name).read_text(encoding="utf-8")
        assert len(text) < 300_000
        assert Elements(text).attributes("src") == [program]
    linked = set(Elements(path.read_text(encoding="utf-8")).attributes("href")) - {"data:,"}
    assert linked == set(cells)
    for name in cells:
        (back,) = set(Elements((folder / name).read_text(encoding="utf-8")).attributes("href")) - {"data:,"}
        assert (folder / name).parent.joinpath(back).resolve() == path.resolve()
    before = {name: (folder / name).read_bytes() for name in written}
    write_study_report(study, results, folder, [LedgerSection(ledger)])
    assert before == {name: (folder / name).read_bytes() for name in written}


def test_cells_never_share_a_file():
    names = ["A b", "a-b", "a.b", "…", "??", "a-b-2", "x" * 200]
    slugs = cell_slugs(names)
    assert list(slugs) == names
    assert len(set(slugs.values())) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", slug) for slug in slugs.values())


# Tables for the terminal


def tables(results, ledger):
    statuses = [
        CellStatus("digits-mlp", "done", 120, 120, 0),
        CellStatus(ODD_CELL, "final runs", 80, 120, 3),
        CellStatus("mnist-mlp-4", "tuning", 3, 12, 0),
    ]
    return {"status": status_table(statuses), "study": study_table(results), "ledger": ledger_table(ledger)}


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["status", "study", "ledger"])
def test_tables_fit_and_cut_nothing_off(results, ledger, name, width):
    text = printed(tables(results, ledger)[name], width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "[red]" in text or name == "status"
    assert "nan" not in text.lower()


def test_status_table_says_how_far_every_cell_is(results, ledger):
    text = printed(tables(results, ledger)["status"], 80)
    assert re.search(r"digits-mlp\s+done\s+120 of 120\s+—", text)
    assert re.search(r"final runs\s+80 of 120\s+3", text)
    assert re.search(r"mnist-mlp-4\s+tuning\s+3 of 12", text)
    assert "follows from the outcome" in text
    assert "follows" not in printed(status_table([CellStatus("a", "done", 1, 1, 0)]), 80)


def test_study_table_has_every_cell_and_arm(results):
    text = printed(study_table(results), 120)
    for result in results[:2]:
        for part in texts(study_table([result])):
            assert part in text
    assert "(control)" not in text
    assert text.count("control: helps") == 2
    assert "3 of 8 failed" in text
    assert re.search(r"mnist-mlp-4\s+not judged yet", text)
    assert len(study_table(results[2:]).rows) == 1
    assert "not judged yet" in printed(study_table(results[2:]), 80)


def test_tuning_lines(study, results):
    lines = tuning_lines(study, results)
    assert lines[2] == (
        f"digits-mlp, {ODD_ARM}: sigma = 0.1, validation 2.8 (best of 5). The chosen sigma, 0.1, is the highest that "
        "was tried: a higher one may be better."
    )
    assert lines[3] == "digits-mlp, ralr: high = 2, validation 2.9 (best of 5)"
    assert lines[7].startswith(f"{ODD_CELL}, ralr: high = 1.5. Every configuration failed")
    assert lines[8] == "mnist-mlp-4: Its tuning is not finished."
    assert len(lines) == 9


def test_ledger_table_has_every_claim(ledger):
    text = printed(ledger_table(ledger), 120)
    for part in [line for each in texts(ledger_table(ledger)) for line in each.split("\n")]:
        assert part in text or " " in part  # a note breaks at its spaces


# Progress


def trial(arm: str, seed: int, error: str | None = None) -> tuple[TrialSpec, Record]:
    spec = TrialSpec(Subject("digits", "val_error", "%", "lower", {}), Arm(arm), seed)
    status = "finished" if error is None else "failed"
    return spec, Record(spec.key, "digits", arm, seed, status, ({"val_error": 3.125},), error)


def said_by(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\s+", " ", console.file.getvalue())


def terminal() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None, legacy_windows=False)


def test_progress_counts_rounds_and_shows_the_last_trial():
    console = terminal()
    with LiveProgress(console) as progress:
        for seed in range(3):
            progress.on_reused(*trial("leap [red]", seed))
        progress.on_round_start(Round(2, 5))
        progress.on_trial_end(*trial("leap [red]", 3))
        progress.on_trial_end(*trial("ralr", 3, "ValueError: broken"))
        progress._progress.refresh()
        middle = said_by(console)
        progress.on_round_start(Round(4, 4))
        progress._progress.refresh()
    assert "3 of 5 trials reused." in middle
    assert "5/5" in middle
    assert "digits, ralr, seed 3: failed" in middle
    assert "Round 2: 4 trials to run" in said_by(console)
    assert "0/4" in said_by(console)[len(middle) :]


def test_progress_says_an_odd_name_as_it_is():
    console = terminal()
    with LiveProgress(console) as progress:
        progress.on_round_start(Round(1, 1))
        progress.on_trial_end(*trial("leap [red]", 3))
    assert "digits, leap [red], seed 3: val_error 3.125" in said_by(console)


def test_progress_says_a_failure_once_and_counts_the_others():
    console = terminal()
    with LiveProgress(console) as progress:
        progress.on_round_start(Round(5, 5))
        for seed in range(4):
            progress.on_trial_end(*trial("leap", seed, "final val_error is nan"))
        progress.on_trial_end(*trial("ralr", 0, "ValueError: broken"))
        progress._progress.refresh()
    text = said_by(console)
    assert text.count("failed: final val_error is nan") == 1
    assert "digits, leap, seed 0 failed: final val_error is nan" in text
    assert "4 trials failed with: final val_error is nan" in text
    assert text.count("failed: ValueError: broken") == 1
    assert "trial failed with" not in text
    assert "5 failed" in text


def test_progress_says_what_is_reused_and_that_machines_differ():
    console = terminal()
    spec, record = trial("leap", 3)
    other = {"cpu": "A", "cpu_capability": "AVX2"}
    with LiveProgress(console) as progress:
        for day in (1, 1, 4):
            on = {**other, "cpu": "A"} if day == 1 else None  # an older record does not tell
            progress.on_reused(
                spec,
                dataclasses.replace(record, started=f"2026-03-0{day}T23:30:00+00:00", seconds=1800.0, environment=on),
            )
        progress.on_round_start(Round(1, 4))
        assert "different kinds" not in said_by(console)
        progress.on_trial_end(spec, dataclasses.replace(record, environment={**other, "cpu": "B"}))
        progress.on_trial_end(spec, dataclasses.replace(record, environment={**other, "cpu": "C"}))
    text = said_by(console)
    assert "3 of 4 trials reused, from 2026-03-02 to 2026-03-05." in text
    assert text.count("on different kinds of machines (A, AVX2; B, AVX2)") == 1


def test_hidden_progress_says_nothing():
    console = terminal()
    with LiveProgress(console, shown=False) as progress:
        progress.on_round_start(Round(1, 1))
        progress.on_trial_end(*trial("leap", 0, "broken"))
        progress.on_trial_end(*trial("leap", 1, "broken"))
    assert said_by(console) == ""

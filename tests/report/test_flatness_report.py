"""Flatness in the report: the statistics, the sentences, the figures and the page's section."""

import dataclasses
import io
import math
import random
import re

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import spearmanr

from flatwise.report.figures import against_metric_and_rate, arm_beside_arm
from flatwise.report.flatness import (
    against_controls,
    against_vanilla,
    correlation_lines,
    flatness_headline,
    method_lines,
    scale_of,
)
from flatwise.report.page import render_page
from flatwise.report.terminal import show
from flatwise.stats import Correlation, rank_correlation
from flatwise.study.analysis import analyse
from flatwise.study.arms import parse_arm, with_controls
from flatwise.study.flatness import FlatnessSettings, judged_measures
from flatwise.study.store import FlatnessRecord, Record
from flatwise.study.subjects import Subject

SETTINGS = FlatnessSettings(radii=(0.1, 0.2))
ARMS = with_controls(map(parse_arm, ("leap", "lr_dropout", "random_lr", "ralr", "gaussian_peak")))
# By arm: the mean rate, and the final test error without the seeds' noise.
RATES = {
    "vanilla": 0.10, "leap": 0.10, "lr_dropout": 0.05, "lr_dropout (control)": 0.051, "random_lr": 0.28,
    "random_lr (control)": 0.281, "ralr": 0.15, "ralr (control)": 0.151, "gaussian_peak": 0.2,
    "gaussian_peak (control)": 0.201,
}  # fmt: skip
ERRORS = dict(zip(RATES, (3.0, 3.5, 2.2, 3.3, 2.6, 3.1, 2.9, 2.4, 3.4, 2.1), strict=True))
MEASURES = judged_measures(SETTINGS.to_dict())


def noise(*key):
    return random.Random(repr(key)).uniform(-1, 1)


def study(flat, arms=ARMS, seeds=10, change=lambda record: record, errors=ERRORS):
    """A comparison whose measures are all ``flat(arm, rate, error)``, with a little noise by arm and seed."""

    def record(arm, seed):
        error = errors[arm] + 0.01 * noise(arm, seed)
        epochs = ({"test_error": error, "scheduled_lr": 0.1, "effective_lr": RATES[arm], "seconds": 1.0},)
        # The noise averages to 0 over the seeds: what differs is what ``flat`` makes differ, and nothing by chance.
        of_seed = 0.001 * (-1) ** seed
        values = {key: flat(arm, RATES[arm], errors[arm]) + of_seed * noise(arm, key) for key in MEASURES}
        values |= {"loss": 0.05, "trace_error": 0.1}
        flatness = FlatnessRecord(SETTINGS.to_dict(), values, {}, (), 0.2)
        return change(Record(f"{arm}{seed}", "t", arm, seed, "finished", epochs, flatness=flatness))

    records = [record(arm.name, seed) for seed in range(seeds) for arm in arms]
    subject = Subject("t", "test_error", "%", "lower", {})
    return analyse(subject, records, arms, range(seeds), flatness=SETTINGS)


def by_rate(arm, rate, error):
    return 1 - 2 * rate


def by_error(arm, rate, error):
    return error


@pytest.fixture(scope="module")
def comparison():
    return study(by_rate)


# Rank correlation


def test_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal(12), rng.integers(0, 4, 12)  # with ties
    assert rank_correlation(x, y).value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert rank_correlation(x, x**3).value == pytest.approx(1)


def test_rank_correlation_holds_the_truth_and_shows_what_is_there():
    rng = np.random.default_rng(1)
    none = [rank_correlation(rng.standard_normal(10), rng.standard_normal(10)) for _ in range(400)]
    assert 0.93 < np.mean([not of.shown for of in none]) < 0.99
    x = np.arange(10.0)
    perfect = rank_correlation(x, -x)
    assert perfect.shown
    assert (perfect.value, perfect.low) == (pytest.approx(-1), pytest.approx(-1))
    assert -1 < perfect.high < -0.8  # ten points in order are no certainty


def test_partial_rank_correlation():
    """Two that follow a third and nothing else: nothing is left when it is held fixed."""
    rng = np.random.default_rng(2)
    third = rng.standard_normal(2000)
    x, y = third + rng.standard_normal(2000), third + rng.standard_normal(2000)
    assert rank_correlation(x, y).shown
    held = rank_correlation(x, y, given=third)
    assert abs(held.value) < 0.07
    assert rank_correlation(x, x + 0.1 * y, given=third).value > 0.9
    assert math.isnan(rank_correlation(third, y, given=third).value)


@pytest.mark.parametrize(("x", "y"), [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1, 1], [1, 2, 3, 4, 5])])
def test_no_correlation_where_there_is_none(x, y):
    found = rank_correlation(x, y)
    assert math.isnan(found.value)
    assert not found.shown


@pytest.mark.parametrize(("x", "y"), [([1, 2, math.nan, 4, 5], [1, 2, 3, 4, 5]), ([1, 2], [1, 2, 3])])
def test_correlation_refuses(x, y):
    with pytest.raises(ValueError):
        rank_correlation(x, y)


# Sentences


def test_headline_of_a_measure_that_is_the_rates(comparison):
    assert flatness_headline(comparison, comparison.flatness) == (
        "Over the 10 arms, 5 of the 5 measures of flatness were shown to go along with the mean learning rate, and "
        "none with test_error."
    )
    for (label, line), measure in zip(
        correlation_lines(comparison, comparison.flatness), comparison.flatness.measures, strict=True
    ):
        assert label == measure.label
        assert "arms with the higher rate have the lower one; a relation with test_error was not shown." in line
        assert measure.with_rate.value < -0.9


@pytest.mark.parametrize(("sign", "word"), [(1, "better"), (-1, "worse")])
def test_headline_of_a_measure_that_is_the_metrics(sign, word):
    found = study(lambda arm, rate, error: 5 + sign * error)
    assert flatness_headline(found, found.flatness) == (
        "Over the 10 arms, none of the 5 measures of flatness was shown to go along with the mean learning rate, and 5 "
        f"with test_error, the flatter arms having the {word} one."
    )


def test_headline_where_rate_and_metric_go_together():
    """Errors that follow the rate, and a measure that follows the rate: the metric has nothing beyond it."""
    order = sorted(RATES, key=RATES.__getitem__)
    errors = {arm: 3 - 0.1 * order.index(arm) + 0.25 * noise(arm) for arm in order}
    found = study(lambda arm, rate, error: 5 - rate + 0.01 * noise("m", arm), errors=errors)
    assert all(m.with_metric.shown and m.with_rate.shown for m in found.flatness.measures)
    assert flatness_headline(found, found.flatness).endswith(
        "the flatter arms having the better one; with the rate held fixed, none of the latter still does."
    )
    assert all("nothing is left that was shown" in line for _, line in correlation_lines(found, found.flatness))


def test_few_arms_say_nothing():
    found = study(by_rate, arms=ARMS[:4])
    assert "4 arms have all measures on all seeds: too few" in flatness_headline(found, found.flatness)
    assert correlation_lines(found, found.flatness) == []
    assert "too few to say" in render_page(found)


def test_methods_are_held_against_their_controls(comparison):
    lines = dict(method_lines(comparison, comparison.flatness))
    assert list(lines) == ["leap", "lr_dropout", "random_lr", "ralr", "gaussian_peak"]  # no controls
    assert lines["leap"].endswith("Against vanilla not shown to differ in any measure.")
    assert lines["lr_dropout"].startswith("on test_error helps. Against vanilla higher in top eigenvalue, trace")
    assert "the mean rate is enough to explain it" not in lines["leap"]


def test_the_mean_rate_is_enough_where_the_control_is_alike():
    found = study(lambda arm, rate, error: 1 - 2 * round(rate, 2))
    lines = dict(method_lines(found, found.flatness))
    for name in ("lr_dropout", "random_lr", "ralr", "gaussian_peak"):
        assert (
            "In top eigenvalue, trace, gradient norm and loss increase at radii 0.1 and 0.2 its control differs from "
            "vanilla likewise, and no difference between the two was shown: the mean rate is enough to explain it."
        ) in lines[name]


@pytest.mark.parametrize(
    ("method", "control", "said"),
    [
        (1, 2, "in the same direction in top eigenvalue, trace, gradient norm and loss increase at radii 0.1 and 0.2"),
        (1, 0.5, "its control goes further in the same direction"),
        (2, 1, ""),  # no verdict against vanilla, so nothing is asked of the control
        (2, 2, ""),
        (3, 2, "more than the mean rate's"),
        (3, 4, "its control goes further in the same direction"),
    ],
)
def test_sentences_of_a_method_and_its_control(method, control, said):
    values = {"ralr": method, "ralr (control)": control}
    found = study(lambda arm, rate, error: values.get(arm, 2.0))
    line = dict(method_lines(found, found.flatness))["ralr"]
    assert said in line if said else line.endswith("not shown to differ in any measure.")


# The section


def test_tables_show_what_was_judged(comparison):
    rows = against_vanilla(comparison, comparison.flatness).rows
    assert [row.cells[0][0].text for row in rows] == [arm.name for arm in comparison.arms]
    trace = comparison.flatness.measures[1]
    index = [arm.name for arm in comparison.arms].index("ralr")
    (power, places), of = scale_of(trace), trace.arms[index]
    value, difference, _, verdict = rows[index].cells[4]  # behind the name, the metric, the loss and one measure
    assert verdict.text.startswith("↓ lower, p ")
    assert difference.text == f"{of.vs_vanilla.mean * 10**power:+.{places}f}".replace("-", "−")
    assert value.text.startswith(f"{of.mean * 10**power:.{places}f} ± ")
    assert len(rows[0].cells[4]) == 1
    controlled = against_controls(comparison, comparison.flatness).rows
    assert [row.cells[0][0].text for row in controlled] == ["lr_dropout", "random_lr", "ralr", "gaussian_peak"]
    assert not any("±" in line.text for row in controlled for cell in row.cells for line in cell)


def test_no_more_is_claimed_than_holm_allows():
    """With 5 seeds no sign-flip p is below 1/16: whatever the differences, nothing is called lower or higher."""
    found = study(by_rate, seeds=5)
    rows = against_vanilla(found, found.flatness).rows[1:]
    assert {cell[-1].text for row in rows for cell in row.cells[3:]} == {"inconclusive", "not tested"}
    judged = [of.vs_vanilla for m in found.flatness.measures for of in m.arms[1:]]
    judged = [judgement for judgement in judged if judgement.verdict != "not tested"]
    assert all(judgement.p_corrected >= judgement.p for judgement in judged)


def test_figures_draw_every_value(comparison):
    flatness = comparison.flatness
    strips, scatters = arm_beside_arm(comparison, flatness), against_metric_and_rate(comparison, flatness)
    labels = [measure.label for measure in flatness.measures]
    assert list(strips) == ["test_error (%)", *labels]  # the metric first
    assert list(scatters) == labels
    for measure in flatness.measures:
        drawn = [trace for trace in strips[measure.label].data if trace.meta == "seeds"]
        assert [tuple(trace.x) for trace in drawn] == [of.values for of in measure.arms]
        pairs = [trace for trace in scatters[measure.label].data if trace.meta == "seeds"]
        assert len(pairs) == 2 * len(comparison.arms)
        assert [tuple(trace.y) for trace in pairs[::2]] == [of.values for of in measure.arms]
    final = {(r.arm, r.seed): r.epochs[-1]["test_error"] for r in comparison.records}
    assert list(scatters["trace"].data[0].x) == [final["vanilla", seed] for seed in comparison.seeds]


def test_page_has_the_section_after_the_verdict_and_only_where_it_was_asked_for(comparison):
    page = render_page(comparison)
    before, verdict, flatness = (page.index(f"<h2>{t}") for t in ("Does it help", "Paired differences", "Flatness"))
    assert before < verdict < flatness < page.index("<h2>Effective learning rate")
    section = page[flatness : page.index("<h2>Learning curves")]
    for text in ("Flatter is not better", "flatter is not better", "top eigenvalue", "loss increase"):
        assert text.lower() in section.lower()
    for name, line in method_lines(comparison, comparison.flatness):
        assert f"<b>{name}</b>: {line.replace(chr(39), '&#39;')}" in section
    drawn = re.findall(r'class="plot" id="(figure-\d+)"', section)
    assert len(drawn) == len(set(drawn)) == 1 + 2 * len(MEASURES)
    assert all(f'"{identity}": {{' in page for identity in drawn)
    assert "Flatness" not in render_page(dataclasses.replace(comparison, flatness=None))


def test_terminal_says_it_after_the_verdicts(comparison):
    console = Console(width=100, record=True, file=io.StringIO())
    show(comparison, console)
    text = console.export_text()
    assert text.index("Does it help?") < text.index("Flatness (lower is flatter")
    assert "5 of the 5 measures" in text


def test_what_is_missing_is_named_and_escaped():
    def change(record):
        if (record.arm, record.seed) == ("ralr", 3):
            missing = dict.fromkeys((*MEASURES, "loss"), "FlatnessError: <the loss> is nan")
            return dataclasses.replace(record, flatness=FlatnessRecord(SETTINGS.to_dict(), {}, missing, (), 0.1))
        if (record.arm, record.seed) == ("leap", 1):
            return dataclasses.replace(record, status="failed", error="RuntimeError: boom", flatness=None)
        return record

    found = study(by_rate, change=change)
    page = render_page(found)
    assert "<dt>ralr, seed 3</dt>" in page
    assert "&lt;the loss&gt; is nan" in page
    assert "the trial failed (RuntimeError: boom)" in page
    assert "missing on 1 of 10 seeds" in page
    assert found.flatness.complete == tuple(a.name for a in ARMS if a.name not in ("ralr", "leap"))
    assert "not tested, for missing values, in top eigenvalue" in dict(method_lines(found, found.flatness))["ralr"]


def test_page_when_nothing_could_be_measured():
    def nothing(record):
        missing = dict.fromkeys((*MEASURES, "loss"), "it is inf")
        return dataclasses.replace(record, flatness=FlatnessRecord(SETTINGS.to_dict(), {}, missing, (), 0.1))

    page = render_page(study(by_rate, seeds=2, change=nothing))
    assert "0 arms have all measures on all seeds: too few" in page


def test_no_number_where_there_is_no_correlation():
    assert not Correlation(math.nan, math.nan, math.nan, 3).shown

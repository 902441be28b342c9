"""The report: the tables' numbers, the sentences' logic, the figures' data, and a page that loads nothing."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from flatwise.report import figures
from flatwise.report.comparison import (
    EXPLANATIONS,
    NEUTRAL,
    PALETTE,
    arm_styles,
    comparison_table,
    control_table,
    decimals,
    difference_unit,
    headline,
    metric_label,
    summary_lines,
    warnings,
)
from flatwise.report.page import render_page, write_page
from flatwise.report.plot import to_json
from flatwise.report.table import Column, Table, cell, mean_and_sd, number, p_value, row
from flatwise.study.comparison import ArmSummary, Comparison
from report_samples import NAN, SEEDS, arm_summary, judgement, sample, with_verdicts

HOSTILE = """<img src=x onerror=alert(1)>&"'</script><a href="https://example.org/">[red]"""
OUTCOMES = ("helps", "hurts", "inconclusive")


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return sample()


@pytest.fixture(scope="module")
def page(comparison: Comparison) -> str:
    return render_page(comparison)


def arm_of(comparison: Comparison, name: str) -> ArmSummary:
    return next(arm for arm in comparison.arms if arm.name == name)


def printed(table: object, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def texts(table: Table) -> list[str]:
    """Every line of every cell."""
    return [line.text for row in table.rows for each in row.cells for line in each]


def row_of(text: str, name: str) -> str:
    """The lines of one arm in a printed table, joined: from its name to the next empty line."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(f"{name} "))
    end = next((index for index in range(start, len(lines)) if not lines[index].strip()), len(lines))
    return " ".join(lines[start:end])


def renamed(comparison: Comparison, old: str, new: str) -> Comparison:
    """``comparison`` with another name, and description, for one arm that is no control."""
    return dataclasses.replace(
        comparison,
        arms=tuple(
            dataclasses.replace(arm, name=new, description=new) if arm.name == old else arm for arm in comparison.arms
        ),
        records=tuple(
            dataclasses.replace(record, arm=new) if record.arm == old else record for record in comparison.records
        ),
    )


# Numbers as text


@pytest.mark.parametrize(
    ("value", "places", "signed", "text"),
    [
        (8.714, 2, False, "8.71"),
        (-0.42, 2, True, "−0.42"),
        (0.42, 2, True, "+0.42"),
        (-0.001, 2, True, "0.00"),
        (0.001, 2, True, "0.00"),
        (12.4, 0, True, "+12"),
        (-20.0, 0, True, "−20"),
        (NAN, 2, True, "—"),
        (math.inf, 2, False, "—"),
    ],
)
def test_number(value, places, signed, text):
    assert number(value, places, signed) == text


@pytest.mark.parametrize(("p", "text"), [(0.0156, "0.016"), (0.0004, "<0.001"), (1.0, "1.000"), (NAN, "—")])
def test_p_value(p, text):
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("spreads", "places"),
    [((0.1, 0.15, 0.2), 2), ((1.5, 2.0), 1), ((12.0, 30.0), 0), ((0.0002, 0.0003), 5), ((0.0, NAN), 2)],
)
def test_decimals_show_two_digits_of_the_spread(comparison, spreads, places):
    arms = tuple(dataclasses.replace(comparison.arms[0], sd=sd) for sd in spreads)
    assert decimals(dataclasses.replace(comparison, arms=arms)) == places


def test_one_seed_has_a_mean_and_no_spread():
    assert mean_and_sd(8.7, NAN, 2) == "8.70"
    assert mean_and_sd(NAN, NAN, 2) == "—"
    assert mean_and_sd(8.7, 0.15, 2) == "8.70 ± 0.15"


def test_a_difference_of_percentages_is_in_points(comparison):
    assert difference_unit(comparison) == "points"
    assert difference_unit(dataclasses.replace(comparison, unit="nats")) == "nats"
    assert metric_label(dataclasses.replace(comparison, unit="")) == "test_error"


# Tables for the terminal


def test_table_has_every_arms_numbers(comparison):
    text = printed(comparison_table(comparison), width=120)
    for arm in comparison.arms:
        row = row_of(text, arm.name)
        assert f"{arm.mean:.2f} ± {arm.sd:.2f}" in row
        assert f"best {arm.best_mean:.2f}" in row
        if arm.vs_vanilla is not None and math.isfinite(arm.vs_vanilla.mean):
            judged = arm.vs_vanilla
            for value in (judged.mean, judged.low, judged.high):
                assert f"{abs(value):.2f}" in row
            assert p_value(judged.p_corrected) in row
            assert judged.verdict in row


def test_table_names_the_seeds_that_an_inconclusive_arm_needs(comparison):
    text = printed(comparison_table(comparison), width=120)
    assert "(needs 46 to 140 seeds)" in row_of(text, "leap")
    assert "(needs at least 12 seeds)" in row_of(text, "gaussian_peak")
    assert "seeds)" not in row_of(text, "ralr")


def test_table_shows_a_failed_arm_without_numbers_that_do_not_exist(comparison):
    row = row_of(printed(comparison_table(comparison), width=120), "diverging")
    assert "failed" in row
    assert "5 of 8" in row
    assert "nan" not in row.lower()


def test_control_table_holds_each_method_against_its_control(comparison):
    text = printed(control_table(comparison), width=100)
    assert "control is vanilla" in row_of(text, "leap")
    assert "inconclusive" in row_of(text, "lr_dropout")
    assert "(needs 31 to 95 seeds)" in row_of(text, "lr_dropout")
    assert "not tested" in row_of(text, "gaussian_peak")
    assert "(no verdict against vanilla)" in row_of(text, "gaussian_peak")
    judged = arm_of(comparison, "ralr").vs_control
    row = row_of(text, "ralr")
    assert f"−{abs(judged.mean):.2f}" in row
    assert "0.023" in row
    assert "helps" in row
    assert "(control)" not in text


@pytest.mark.parametrize("table", [comparison_table, control_table])
@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_fit_the_terminal_and_cut_nothing_off(comparison, table, width):
    text = printed(table(comparison), width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for verdict in ("inconclusive", "helps", "hurts"):
        assert verdict in text
    if table is comparison_table:
        assert "5 of 8" in text
        assert "1.04×" in text
        for arm in comparison.arms:
            assert f"{arm.mean:.2f} ± {arm.sd:.2f}" in text


def test_an_arms_name_is_no_markup(comparison):
    text = printed(comparison_table(renamed(comparison, "leap", "[red]leap[/nonsense]")), width=120)
    assert "[red]leap[/nonsense]" in text


def test_a_table_as_markdown():
    table = Table(
        (Column("arm", "name"), Column("final\nmean")), (row("a|b", cell("1.0", ("best 0.9", "dim"))), row("c", ""))
    )
    assert table.to_markdown() == "| arm | final<br>mean |\n|---|---|\n| a\\|b | 1.0<br>best 0.9 |\n| c |  |"


# Sentences


def test_every_combination_of_verdicts_has_an_explanation():
    """Of the methods that have a verdict against vanilla: of the others no control is tested."""
    assert set(EXPLANATIONS) == set(itertools.product(("helps", "hurts"), OUTCOMES, OUTCOMES))


# (method against vanilla, method against its control, control against vanilla) → what must be said, and must not be.
COMBINATIONS = [
    ("helps", "helps", "helps", "explains part of the gain, not all of it", "inconclusive"),
    ("helps", "helps", "inconclusive", "the gain is more than the mean rate's", "enough"),
    ("helps", "helps", "hurts", "the gain is the method's own", "enough"),
    ("helps", "inconclusive", "helps", "the mean rate is enough to explain the gain", "method's own"),
    ("helps", "inconclusive", "inconclusive", "whether the gain is more than the mean rate's is open", "enough"),
    ("helps", "inconclusive", "hurts", "the mean rate does not explain the gain", "enough"),
    ("helps", "hurts", "helps", "the gain is the mean rate's, and the method loses part of it", "more than"),
    ("helps", "hurts", "inconclusive", "the gain is not the method's own", "more than"),
    ("helps", "hurts", "hurts", "which cannot be", "explain"),
    ("hurts", "hurts", "hurts", "explains part of the harm, not all of it", "inconclusive"),
    ("hurts", "hurts", "inconclusive", "the harm is more than the mean rate's", "enough"),
    ("hurts", "hurts", "helps", "the harm is the method's own", "enough"),
    ("hurts", "inconclusive", "hurts", "the mean rate is enough to explain the harm", "method's own"),
    ("hurts", "inconclusive", "inconclusive", "whether the harm is more than the mean rate's is open", "enough"),
    ("hurts", "inconclusive", "helps", "the mean rate does not explain the harm", "enough"),
    ("hurts", "helps", "hurts", "the harm is the mean rate's, and the method undoes part of it", "more than"),
    ("hurts", "helps", "inconclusive", "the harm is not the method's own", "more than"),
    ("hurts", "helps", "helps", "which cannot be", "explain"),
]


@pytest.mark.parametrize(("method", "against_control", "control", "said", "unsaid"), COMBINATIONS)
def test_sentence_of_each_combination(method, against_control, control, said, unsaid):
    (line,) = summary_lines(with_verdicts(method, against_control, control))
    first, explanation = re.fullmatch(r"(m.*?\)\.) (.*)", line).groups()
    side = {"helps": "lower", "hurts": "higher"}[method]
    assert first.startswith(f"m {method}: test_error 0.40 points {side} than vanilla's (95 % interval ")
    assert said in explanation
    assert not re.search(rf"\b{unsaid}\b", explanation)
    open_question = explanation.endswith("It takes 20 to 60 seeds to settle the comparison with the control.")
    assert open_question == (against_control == "inconclusive")


def test_a_control_is_only_spoken_of_behind_a_verdict():
    (line,) = summary_lines(with_verdicts("inconclusive", "not tested", "not tested"))
    assert re.fullmatch(
        r"m: inconclusive\. \+0\.04 points against vanilla \(.*\); it takes 20 to 60 seeds to settle it\.", line
    )


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            "skewed",
            r"m: no verdict, the differences are too skewed\. \+0\.04 points against vanilla \(sign-flip p = 0",
        ),
        ("does nothing", "m does nothing: on every seed all metrics of all epochs are vanilla's to the bit."),
        ("not independent", "m: not tested against vanilla, because the seeds of vanilla are not independent."),
        ("not comparable", "m: not tested against vanilla, because m and vanilla trained different numbers of epochs."),
    ],
)
def test_sentence_where_there_is_no_verdict(verdict, sentence):
    both = with_verdicts(verdict, "not tested", "not tested")
    vanilla = dataclasses.replace(both.arms[0], repeats=(3, 4) if verdict == "not independent" else ())
    found = dataclasses.replace(both, arms=(vanilla, *both.arms[1:]))
    (line,) = summary_lines(found)
    assert re.match(sentence, line)
    assert headline(found).startswith("No method was shown to help: m ")
    page = Elements(render_page(found)).text
    assert line in page
    assert verdict in page
    assert verdict in printed(comparison_table(found), width=100)
    repeated = [line for line in warnings(found) if "seeds 3 and 4 gave the same metrics" in line]
    assert len(repeated) == (verdict == "not independent")


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        ("skewed", "The differences from the control are too skewed for a verdict."),
        (
            "does nothing",
            "It is identical to its control at the same mean rate, to the bit: the gain is the",
        ),
        ("not comparable", "because m and m (control) trained different numbers of epochs."),
    ],
)
def test_sentence_where_there_is_no_verdict_against_the_control(verdict, sentence):
    (line,) = summary_lines(with_verdicts("helps", verdict, "helps"))
    assert sentence in line


def test_earlier_looks_and_arms_are_warned_of(comparison):
    assert warnings(comparison) == []
    later = dataclasses.replace(comparison, earlier_seeds=((0, 1), (0, 1, 2)), earlier_arms=("alrao",))
    first, second = warnings(later)
    assert "judged before with 2 and 3 seeds" in first
    assert "counts alrao too" in second
    page = Elements(render_page(later)).text
    assert first in page
    assert second in page


def test_all_combinations_are_tested():
    assert {combination[:3] for combination in COMBINATIONS} == set(EXPLANATIONS)


def test_the_impossible_combinations_are_those_in_which_the_means_go_in_a_circle():
    order = {"helps": -1, "hurts": 1}
    for (method, against_control, control), text in EXPLANATIONS.items():
        circle = (
            "inconclusive" not in (method, against_control, control)
            # better than vanilla, worse than the control, and that worse than vanilla; or the reverse
            and order[method] == -order[against_control] == -order[control]
        )
        assert ("cannot be" in text) == circle


@pytest.mark.parametrize(("verdict", "change"), [("helps", "gain"), ("hurts", "harm")])
def test_a_method_whose_control_is_vanilla_owes_nothing_to_the_rate(verdict, change):
    both = with_verdicts(verdict, "helps", "helps")
    method = dataclasses.replace(both.arms[1], control="vanilla", vs_control=None)
    (line,) = summary_lines(dataclasses.replace(both, arms=(both.arms[0], method)))
    assert line.endswith(f"Its mean rate is vanilla's own, so the {change} is not the mean rate's.")
    (line,) = summary_lines(dataclasses.replace(both, arms=(both.arms[0], dataclasses.replace(method, control=None))))
    assert line.endswith(f"No control at the same mean rate was compared: the {change} may be the mean rate's.")


def test_inconclusive_where_there_may_be_no_effect_at_all(comparison):
    line = next(line for line in summary_lines(comparison) if line.startswith("gaussian_peak"))
    assert line.endswith("it takes at least 12 seeds to settle it, and may take far more.")


def test_one_pair_has_no_interval():
    both = with_verdicts("inconclusive", "not tested", "not tested")
    single = dataclasses.replace(both.arms[1].vs_vanilla, n=1, differences=(0.04,), sd=NAN, low=NAN, high=NAN)
    method = dataclasses.replace(both.arms[1], control="vanilla", vs_vanilla=single, vs_control=None)
    alone = dataclasses.replace(both, arms=(both.arms[0], method))
    assert summary_lines(alone) == [
        "m: inconclusive. +0.04 points against vanilla; one seed says nothing of the spread: run more.",
    ]
    assert "—" not in row_of(printed(comparison_table(alone), width=100), "m")
    assert not [trace for trace in figures.differences_from_vanilla(alone).data if trace.meta == "interval"]


def test_failures_are_named_where_they_happened():
    both = with_verdicts("failed", "failed", "helps")
    vanilla, method, control = both.arms
    method_failed = dataclasses.replace(method, failed=2)
    (line,) = summary_lines(dataclasses.replace(both, arms=(vanilla, method_failed, control)))
    assert line == "m: not tested against vanilla, because m failed on 2 of 5 seeds."

    control_failed = dataclasses.replace(control, failed=1, vs_vanilla=judgement("failed"))
    helping = with_verdicts("helps", "failed", "failed").arms[1]
    (line,) = summary_lines(dataclasses.replace(both, arms=(vanilla, helping, control_failed)))
    assert line.startswith("m helps: ")
    assert line.endswith("Not tested against its control at the same mean rate, "
                         "because m (control) failed on 1 of 4 seeds.")  # fmt: skip

    vanilla_failed = dataclasses.replace(vanilla, failed=1)
    beating = with_verdicts("failed", "helps", "failed").arms[1]
    (line,) = summary_lines(dataclasses.replace(both, arms=(vanilla_failed, beating, control)))
    assert line == "m: not tested against vanilla, because vanilla failed on 1 of 4 seeds."


def test_headline(comparison):
    assert headline(comparison) == (
        "Against vanilla, lr_dropout and ralr help (only ralr by more than the mean rate explains); "
        "random_lr hurts; leap and gaussian_peak are inconclusive; diverging could not be tested."
    )


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        (("helps", "helps", "helps"), "Against vanilla, m helps, and by more than the mean rate explains."),
        (("helps", "inconclusive", "hurts"), "Against vanilla, m helps, and by more than the mean rate explains."),
        (
            ("helps", "inconclusive", "helps"),
            "Against vanilla, m helps, but nothing shows that the gain is more than the mean rate's.",
        ),
        (
            ("helps", "hurts", "helps"),
            "Against vanilla, m helps, but nothing shows that the gain is more than the mean rate's.",
        ),
        (
            ("helps", "failed", "failed"),
            "Against vanilla, m helps, but nothing shows that the gain is more than the mean rate's.",
        ),
        (("hurts", "helps", "hurts"), "No method was shown to help: m hurts."),
        (("inconclusive", "not tested", "not tested"), "No method was shown to help: m is inconclusive."),
        (("failed", "failed", "helps"), "No method was shown to help: m could not be tested."),
    ],
)
def test_headline_of_one_method(verdicts, sentence):
    assert headline(with_verdicts(*verdicts)) == sentence


def test_headline_without_a_method(comparison):
    alone = dataclasses.replace(comparison, arms=comparison.arms[:1])
    assert headline(alone) == "Only vanilla was run: there is nothing to compare."
    assert summary_lines(alone) == []


# Figures


def traces(figure, name: str) -> list:
    return [trace for trace in figure.data if trace.name == name]


@pytest.mark.parametrize("metric", ["test_error", "train_loss", "test_loss"])
def test_learning_curves_draw_the_records(comparison, metric):
    figure = figures.learning_curves(comparison, metric)
    for arm in comparison.arms:
        values = [
            [epoch[metric] for epoch in record.epochs]
            for record in comparison.records
            if record.arm == arm.name and record.status == "finished"
        ]
        (mean,) = traces(figure, arm.name)
        (low,) = traces(figure, f"{arm.name}: lowest seed")
        (high,) = traces(figure, f"{arm.name}: highest seed")
        columns = list(zip(*values, strict=True))
        assert list(mean.x) == list(range(1, 21))
        np.testing.assert_allclose(mean.y, [statistics.fmean(column) for column in columns], rtol=1e-12)
        np.testing.assert_array_equal(low.y, [min(column) for column in columns])
        np.testing.assert_array_equal(high.y, [max(column) for column in columns])


def test_a_failed_seed_is_drawn_on_its_own_up_to_where_it_failed(comparison):
    figure = figures.learning_curves(comparison, "train_loss")
    failed = [record for record in comparison.records if record.status == "failed"]
    assert len(failed) == 3
    for record in failed:
        (trace,) = traces(figure, f"diverging: seed {record.seed} failed")
        np.testing.assert_array_equal(trace.y, [epoch["train_loss"] for epoch in record.epochs])
        assert np.flatnonzero(np.isfinite(trace.y))[-1] == 9
        assert trace.marker.symbol[9] == "x"
        assert trace.marker.size[9] > 0
        assert not any(size for index, size in enumerate(trace.marker.size) if index != 9)


def test_a_nan_leaves_a_gap_and_not_a_mean_over_fewer_seeds(comparison):
    first = comparison.records[0]
    epochs = [dict(epoch) for epoch in first.epochs]
    epochs[4]["train_loss"] = NAN
    records = (dataclasses.replace(first, epochs=tuple(epochs)), *comparison.records[1:])
    figure = figures.learning_curves(dataclasses.replace(comparison, records=records), "train_loss")
    (mean,) = traces(figure, "vanilla")
    assert [index for index, value in enumerate(mean.y) if math.isnan(value)] == [4]


def test_a_metric_that_is_reported_now_and_then_keeps_its_epochs(comparison):
    records = tuple(
        dataclasses.replace(
            record,
            epochs=tuple(
                {**epoch, "sharpness": float(index)} if index % 5 == 4 else epoch
                for index, epoch in enumerate(record.epochs)
            ),
        )
        for record in comparison.records
    )
    sparse = dataclasses.replace(comparison, records=records)
    assert figures.metrics(sparse) == ["test_error", "train_loss", "test_loss", "sharpness"]
    (mean,) = traces(figures.learning_curves(sparse, "sharpness"), "vanilla")
    assert list(mean.x) == [5, 10, 15, 20]
    assert list(mean.y) == [4.0, 9.0, 14.0, 19.0]


def test_an_exploding_failed_seed_does_not_squash_the_axis(comparison):
    records = tuple(
        dataclasses.replace(record, epochs=tuple({**epoch, "train_loss": 1e30} for epoch in record.epochs))
        if record.status == "failed"
        else record
        for record in comparison.records
    )
    exploded = figures.learning_curves(dataclasses.replace(comparison, records=records), "train_loss")
    assert exploded.layout.yaxis.type == "log"
    assert exploded.layout.yaxis.range == figures.learning_curves(comparison, "train_loss").layout.yaxis.range
    assert exploded.layout.yaxis.range[1] < 1


def test_effective_rates_draw_the_first_seeds_path(comparison):
    drawn = figures.effective_rates(comparison)
    assert list(drawn) == ["leap", "lr_dropout", "random_lr", "ralr", "gaussian_peak", "diverging"]
    by_trial = {(record.arm, record.seed): record for record in comparison.records}
    for method, figure in drawn.items():
        for trace in figure.data:
            arm, key = (method, "scheduled_lr") if trace.name == "scheduled" else (trace.name, "effective_lr")
            np.testing.assert_array_equal(trace.y, [epoch[key] for epoch in by_trial[arm, SEEDS[0]].epochs])
    assert [trace.name for trace in drawn["ralr"].data] == ["scheduled", "ralr", "ralr (control)"]
    assert [trace.name for trace in drawn["leap"].data] == ["scheduled", "leap"]


def test_the_first_seed_is_a_finished_one_where_there_is_one(comparison):
    records = tuple(
        dataclasses.replace(record, status="failed") if record.seed == SEEDS[0] else record
        for record in comparison.records
    )
    figure = figures.effective_rates(dataclasses.replace(comparison, records=records))["ralr"]
    assert all(f"seed {SEEDS[1]}" in trace.hovertemplate for trace in figure.data)


@pytest.mark.parametrize(
    ("build", "attribute", "zero"),
    [
        (figures.differences_from_vanilla, "vs_vanilla", "vanilla"),
        (figures.differences_from_controls, "vs_control", "its control"),
    ],
)
def test_differences_draw_the_judgements(comparison, build, attribute, zero):
    figure = build(comparison)
    judged = {arm.name: getattr(arm, attribute) for arm in comparison.arms if getattr(arm, attribute) is not None}
    dots = [trace for trace in figure.data if trace.meta == "seeds"]
    assert [trace.name for trace in dots] == list(judged)
    heights = []
    for trace in dots:
        judgement = judged[trace.name]
        np.testing.assert_array_equal(trace.x, judgement.differences)
        assert list(trace.customdata) == [f"seed {seed}" for seed in SEEDS]
        heights.append(statistics.fmean(trace.y))
        mean, interval = traces(figure, f"{trace.name}: mean"), traces(figure, f"{trace.name}: 95 % interval")
        if judgement.verdict == "failed":
            assert mean == interval == []
        else:
            assert list(mean[0].x) == [judgement.mean]
            assert list(interval[0].x) == [judgement.low, judgement.high]
    assert heights == sorted(heights, reverse=True)
    assert zero in [annotation.text for annotation in figure.layout.annotations]
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 0


def test_the_better_side_follows_the_metric(comparison):
    def sides(better):
        figure = figures.differences_from_vanilla(dataclasses.replace(comparison, better=better))
        return {annotation.text for annotation in figure.layout.annotations if "etter" in annotation.text}

    assert sides("lower") == {"← better"}
    assert sides("higher") == {"better →"}


def test_a_dot_names_its_seed_only_where_that_is_certain(comparison):
    shorter = judgement("inconclusive", (0.1, 0.2, 0.4))
    assert figures.paired_seeds(comparison, "leap", "vanilla", shorter) == ["pair 1", "pair 2", "pair 3"]
    kept = {2, 3, 5}
    records = tuple(record for record in comparison.records if record.arm != "leap" or record.seed in kept)
    interrupted = dataclasses.replace(comparison, records=records)
    assert figures.paired_seeds(interrupted, "leap", "vanilla", shorter) == ["seed 2", "seed 3", "seed 5"]


def test_styles_tell_arms_apart(comparison):
    styles = arm_styles(comparison)
    assert styles["vanilla"].color == NEUTRAL
    assert styles["ralr (control)"].color == styles["ralr"].color
    assert (styles["ralr"].dash, styles["ralr (control)"].dash) == ("solid", "dash")
    many = [arm_summary(f"m{index}", f"m{index} (control)") for index in range(2 * len(PALETTE))]
    styles = arm_styles(dataclasses.replace(comparison, arms=(comparison.arms[0], *many)))
    methods = [styles[arm.name] for arm in many]
    assert len(set(methods)) == len(methods)


def test_figure_json_cannot_end_its_script(comparison):
    figure = figures.differences_from_vanilla(renamed(comparison, "leap", HOSTILE))
    text = to_json(figure)
    assert not set("<>&") & set(text)
    assert json.loads(text) == json.loads(figure.to_json())


# The page


class Elements(HTMLParser):
    """Every element of a page with its attributes, and its text outside scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.inside = ""
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.pieces))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.pieces.append(data)

    def attributes(self, name: str) -> list[str | None]:
        return [attributes[name] for _, attributes in self.found if name in attributes]

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.found)


def test_page_loads_nothing(page):
    elements = Elements(page)
    assert elements.attributes("src") == []
    assert elements.attributes("href") == ["data:,"]
    assert elements.count("img") == elements.count("iframe") == elements.count("a") == 0
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    policies = [attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes]
    assert len(policies) == 1
    assert policies[0].startswith("default-src 'none';")


def test_page_holds_plotly_once_and_stays_small(page):
    assert len(re.findall(r"\* plotly\.js v", page)) == 1
    assert len(page.encode()) < 7_000_000


def test_page_says_what_the_table_and_the_sentences_say(comparison, page):
    text = Elements(page).text
    assert headline(comparison) in text
    for line in summary_lines(comparison):
        assert line in text
    for arm in comparison.arms:
        assert arm.description in text
    for part in texts(comparison_table(comparison)) + texts(control_table(comparison)):
        assert part in text
    for part in ("3 failed", "88: 85 finished, 3 failed", "needs 46 to 140 seeds", "test_error is nan after epoch 11"):
        assert part in text
    for part in ("batch_size", "128", "2.13.0", "Holm", "sign-flip", "0.05"):
        assert part in text
    assert "not complete" not in text
    assert "nan ±" not in text


def test_page_draws_every_figure(comparison, page):
    elements = Elements(page)
    drawn = json.loads(re.search(r"^const figures = (.*?);$", page, re.DOTALL | re.MULTILINE).group(1))
    places = [attributes["id"] for _, attributes in elements.found if attributes.get("class") == "plot"]
    # differences from vanilla and from controls, three metrics, six methods' rates
    assert places == list(drawn) == [f"figure-{number}" for number in range(1, 12)]
    assert drawn["figure-3"] == json.loads(figures.learning_curves(comparison, "test_error").to_json())


def test_page_escapes_everything(comparison):
    hostile = renamed(comparison, "leap", HOSTILE)
    records = tuple(
        dataclasses.replace(
            record,
            error=HOSTILE if record.status == "failed" else None,
            versions={HOSTILE: HOSTILE},
            epochs=tuple({**epoch, HOSTILE: 1.0} for epoch in record.epochs),
        )
        for record in hostile.records
    )
    page = render_page(
        dataclasses.replace(hostile, records=records, task=HOSTILE, unit=HOSTILE, settings={HOSTILE: HOSTILE})
    )
    elements, plain = Elements(page), Elements(render_page(comparison))
    assert elements.count("img") == elements.count("a") == 0
    assert elements.count("script") == plain.count("script") == 2
    assert HOSTILE in elements.text
    assert HOSTILE not in page
    assert html.escape(HOSTILE, quote=False) not in elements.text  # nothing is escaped twice


def test_page_of_an_interrupted_comparison_says_so(comparison):
    records = tuple(record for record in comparison.records if (record.arm, record.seed) != ("ralr", 7))
    text = Elements(render_page(dataclasses.replace(comparison, records=records))).text
    assert "This comparison is not complete: 1 of its 88 trials have no record." in text


def test_page_when_nothing_finished(comparison):
    failed = judgement("failed", (NAN,) * len(SEEDS))
    arms = (
        arm_summary("vanilla", finals=(), failed=8, time_ratio=NAN),
        arm_summary("leap", "vanilla", finals=(), failed=8, vs_vanilla=failed, time_ratio=NAN),
    )
    records = tuple(
        dataclasses.replace(record, status="failed", epochs=(), error=None)
        for record in comparison.records
        if record.arm in ("vanilla", "leap")
    )
    nothing = dataclasses.replace(comparison, arms=arms, records=records)
    text = Elements(render_page(nothing)).text
    assert "leap: not tested against vanilla, because leap failed on 8 of 8 seeds and vanilla failed on 8 of 8" in text
    assert "no message" in text
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)
    assert "failed" in row_of(printed(comparison_table(nothing), width=80), "leap")


def test_page_of_vanilla_alone(comparison):
    alone = dataclasses.replace(comparison, arms=comparison.arms[:1], records=(), settings={})
    elements = Elements(render_page(alone))
    assert "Only vanilla was run" in elements.text
    assert not [attributes for _, attributes in elements.found if attributes.get("class") == "plot"]


def test_write_page_replaces_the_file_and_leaves_nothing_else(comparison, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_page(comparison, path) == path
    assert path.read_text(encoding="utf-8") == page
    assert list(tmp_path.iterdir()) == [path]


def test_write_page_to_a_folder_that_is_not_there(comparison, tmp_path):
    with pytest.raises(FileNotFoundError):
        write_page(comparison, tmp_path / "missing" / "report.html")


def test_write_page_that_cannot_replace_keeps_the_old_and_cleans_up(comparison, tmp_path: Path):
    path = tmp_path / "report.html"
    path.mkdir()
    (path / "kept").write_text("old")
    with pytest.raises(OSError, match=r"report\.html"):
        write_page(comparison, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    assert (path / "kept").read_text() == "old"

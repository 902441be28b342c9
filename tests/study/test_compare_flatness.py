"""Flatness in a comparison: measured after the training, kept with the trial, and without any effect on it."""

import dataclasses
import math
import sqlite3

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import flatwise
from flatwise.flatness import gradient_norm, measuring
from flatwise.studies import CompareError, compare_task
from flatwise.study.arms import Arm
from flatwise.study.flatness import FlatnessSettings, measure_flatness
from flatwise.study.spec import StudyError
from flatwise.study.store import SCHEMA, Record, Store
from flatwise.study.study_file import parse_study
from flatwise.study.trial import Trial, TrialError

TINY = FlatnessSettings(max_batches=2, max_iter=12, eigenvalues=2, radii=(0.1, 0.3), directions=2)
KEYS = [
    "eigenvalue_1", "eigenvalue_2", "gradient_norm", "loss", "loss_increase_0.1", "loss_increase_0.3", "trace",
    "trace_error",
]  # fmt: skip
EPOCHS = 2
trained = []  # one entry per trial that ran


def batches(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 5, generator=generator)
    return [(x[:16], x[:16, :1].sign()), (x[16:], x[16:, :1].sign())]


def train(trial, measure=True, spoil=None):
    """A tiny network with dropout: it draws from torch's global generator, which a measurement must not move."""
    torch.manual_seed(trial.seed)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = trial.attach(optimizer, steps_per_epoch=2, epochs=EPOCHS)
    for _ in range(EPOCHS):
        for x, y in batches():
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        trial.report(test_error=loss.item(), seconds=1.0)
    if spoil is not None:
        spoil(model)
    if measure:
        trial.measure_flatness(model, F.mse_loss, batches())
    trained.append((trial.arm.name, trial.seed, torch.rand(()).item()))


def unmeasured(trial):
    train(trial, measure=False)


def run(train=train, arms=("lr_dropout",), seeds=2, flatness=TINY, **options):
    del trained[:]
    return flatwise.compare(train, arms, seeds, flatness=flatness, quiet=options.pop("quiet", True), **options)


def curves(comparison):
    return {(r.arm, r.seed): (r.status, [dict(epoch) for epoch in r.epochs]) for r in comparison.records}


# What is measured.


def test_every_trial_has_all_measures_and_they_are_the_models():
    comparison = run()
    assert len(comparison.records) == 6
    for record in comparison.records:
        assert sorted(record.flatness.values) == KEYS
        assert not record.flatness.missing
        assert record.flatness.settings == TINY.to_dict()
    (measure, *_) = [m for m in comparison.flatness.measures if m.key == "trace"]
    (dropout,) = [of for of in measure.arms if of.arm == "lr_dropout"]
    values = {(r.arm, r.seed): r.flatness.values["trace"] for r in comparison.records}
    assert dropout.values == (values["lr_dropout", 0], values["lr_dropout", 1])
    assert dropout.vs_vanilla.differences == tuple(values["lr_dropout", s] - values["vanilla", s] for s in (0, 1))
    assert dropout.vs_control.differences == tuple(
        values["lr_dropout", s] - values["lr_dropout (control)", s] for s in (0, 1)
    )


def test_values_against_the_library_and_a_quadratic():
    """Of a quadratic with curvatures 4 and 1: eigenvalues, trace, gradient and loss increase are known."""
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 4.0]]))
    curvature = torch.tensor([4.0, 1.0])
    loss = flatwise.flatness.BatchLoss(lambda m, batch: 0.5 * (curvature * m.weight.square()).sum())
    found = measure_flatness(model, loss, [torch.zeros(1, 2)], TINY, seed=3)
    values = found.values
    assert values["eigenvalue_1"] == pytest.approx(4, rel=1e-4)
    assert values["eigenvalue_2"] == pytest.approx(1, rel=1e-4)
    assert values["trace"] == pytest.approx(5, rel=1e-5)  # a diagonal Hessian has no error
    assert values["gradient_norm"] == pytest.approx(math.hypot(12, 4), rel=1e-6)
    assert values["loss"] == pytest.approx(0.5 * (4 * 9 + 16), rel=1e-6)
    # ½ r² dᵀ H d with ‖d‖ = ‖w‖ = 5: the linear part cancels between the two ways.
    for radius in (0.1, 0.3):
        assert 0.5 * radius**2 * 25 <= values[f"loss_increase_{radius}"] * (1 + 1e-4)
        assert values[f"loss_increase_{radius}"] <= 0.5 * radius**2 * 100 * (1 + 1e-4)
    assert values["loss_increase_0.3"] == pytest.approx(9 * values["loss_increase_0.1"], rel=1e-3)


def test_max_batches_bounds_the_data():
    torch.manual_seed(0)
    model, data = nn.Linear(5, 1), batches()
    one = dataclasses.replace(TINY, max_batches=1)
    found = measure_flatness(model, F.mse_loss, data, one, seed=0)
    assert found.values["gradient_norm"] == gradient_norm(model, F.mse_loss, data[:1])
    with measuring(model, F.mse_loss, data[:1]) as objective:
        assert found.values["loss"] == objective.loss()


def test_arms_of_a_seed_are_measured_along_the_same_directions():
    """An arm that does nothing has vanilla's very numbers."""
    comparison = run(arms=[flatwise.Arm("same", control="vanilla")])
    values = {(r.arm, r.seed): r.flatness.values for r in comparison.records}
    assert values["same", 0] == values["vanilla", 0] != values["vanilla", 1]


def test_progress_is_told():
    told = []
    measure_flatness(
        nn.Linear(5, 1),
        F.mse_loss,
        batches(),
        TINY,
        seed=0,
        on_measure=lambda what, done, of: told.append((what, done, of)),
    )
    assert list(dict.fromkeys(what for what, _, _ in told)) == [
        "gradient norm", "eigenvalues", "trace", "weight perturbation",
    ]  # fmt: skip
    assert all(done <= of for _, done, of in told)


def test_eigenvalues_that_did_not_converge_are_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 1))
    few = dataclasses.replace(TINY, max_iter=2)
    found = measure_flatness(model, F.mse_loss, batches(), few, seed=0)
    assert "eigenvalue_2" in found.unconverged


# Without any effect on the training.


def test_the_training_is_the_same_bit_by_bit_with_and_without():
    with_measures = run(arms=("leap", "lr_dropout"), seeds=3)
    after_with = list(trained)
    without = run(arms=("leap", "lr_dropout"), seeds=3, flatness=False)
    assert curves(with_measures) == curves(without)
    assert after_with == trained  # torch's global generator is where it would have been
    assert without.flatness is None
    assert all(record.flatness is None for record in without.records)
    assert [a.vs_vanilla for a in with_measures.arms] == [a.vs_vanilla for a in without.arms]


def test_digits_are_the_same_with_and_without():
    options = {"arms": ["leap"], "seeds": 2, "settings": {"epochs": 2}, "quiet": True}
    with_measures, without = compare_task("digits-mlp", flatness=TINY, **options), compare_task("digits-mlp", **options)

    def errors(comparison):
        return [(r.arm, r.seed, [(e["test_error"], e["train_loss"]) for e in r.epochs]) for r in comparison.records]

    assert errors(with_measures) == errors(without)
    assert all(sorted(r.flatness.values) == KEYS and not r.flatness.missing for r in with_measures.records)


# The store.


def test_resumed_measures_nothing_twice(tmp_path):
    first = run(out=tmp_path)
    assert len(trained) == 6
    again = run(out=tmp_path)
    assert trained == []
    assert again.records == first.records
    more = run(out=tmp_path, seeds=3)
    assert len(trained) == 3
    assert [r for r in more.records if r.seed < 2] == list(first.records)


def test_a_store_without_measures_says_that_it_trains_again_and_does(tmp_path, capsys):
    plain = run(out=tmp_path, flatness=False)
    capsys.readouterr()
    measured = run(out=tmp_path, quiet=False)
    assert "6 of the finished trials have no flatness measures" in " ".join(capsys.readouterr().err.split())
    assert len(trained) == 6
    assert curves(measured) == curves(plain)
    run(out=tmp_path, quiet=False)
    assert trained == []
    assert "flatness measures" not in capsys.readouterr().err


def test_measured_trials_serve_a_comparison_without(tmp_path):
    run(out=tmp_path)
    plain = run(out=tmp_path, flatness=False)
    assert trained == []
    assert plain.flatness is None


def test_other_settings_measure_again(tmp_path):
    run(out=tmp_path)
    run(out=tmp_path, flatness=dataclasses.replace(TINY, radii=(0.2,)))
    assert len(trained) == 6


def test_a_record_survives_the_store(tmp_path):
    (record, *_) = run(seeds=1).records
    with Store(tmp_path / "trials.sqlite") as store:
        store.put(record)
        assert store.get(record.key) == record
    with sqlite3.connect(tmp_path / "trials.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)


# What cannot be measured.


def spoil_with_nan(model):
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)


def broken(trial):
    train(trial, spoil=spoil_with_nan if trial.arm.name == "lr_dropout" and trial.seed == 1 else None)


def test_a_model_that_is_not_finite_is_missing_with_the_reason(tmp_path, capsys):
    comparison = run(broken, out=tmp_path, quiet=False)
    (record,) = [r for r in comparison.records if r.flatness.missing]
    assert (record.arm, record.seed, record.status) == ("lr_dropout", 1, "finished")
    assert sorted(record.flatness.missing) == KEYS
    assert all("batch 0: the loss is nan" in reason for reason in record.flatness.missing.values())
    assert "lr_dropout, seed 1: gradient_norm" in " ".join(capsys.readouterr().err.split())
    for measure in comparison.flatness.measures:
        of = {of.arm: of for of in measure.arms}["lr_dropout"]
        assert (of.missing, of.vs_vanilla.verdict) == (1, "failed")
        assert math.isnan(of.values[1])
    ((arm, seed, reason),) = comparison.flatness.missing
    assert (arm, seed) == ("lr_dropout", 1)
    assert "batch 0: the loss is nan" in reason
    assert comparison.flatness.complete == ("vanilla", "lr_dropout (control)")

    assert run(broken, out=tmp_path).records == comparison.records
    assert trained == []  # a failed measurement is an outcome too
    run(broken, out=tmp_path, retry_failed=True)
    assert [entry[:2] for entry in trained] == [("lr_dropout", 1)]


def half_measured(trial):
    """A loss without a second derivative: the gradient and the perturbations can be measured all the same."""
    train(trial, measure=False)
    torch.manual_seed(0)
    trial.measure_flatness(nn.Linear(5, 1), lambda output, target: Once.apply(output).square().mean(), batches())


class Once(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context, gradient):
        return 2 * context.saved_tensors[0] * gradient


def test_what_fails_does_not_take_the_rest_with_it():
    for record in run(half_measured).records:
        assert record.status == "finished"
        assert sorted(record.flatness.missing) == ["eigenvalue_1", "eigenvalue_2", "trace", "trace_error"]
        assert "cannot be differentiated twice" in record.flatness.missing["trace"]
        assert sorted(record.flatness.values) == ["gradient_norm", "loss", "loss_increase_0.1", "loss_increase_0.3"]


def test_a_crashed_trial_has_no_measures_and_a_reason():
    def crashing(trial):
        if trial.arm.name == "lr_dropout":
            raise RuntimeError("out of luck")
        train(trial)

    comparison = run(crashing)
    reasons = [reason for arm, _, reason in comparison.flatness.missing if arm == "lr_dropout"]
    assert len(reasons) == 2
    assert "out of luck" in reasons[0]


def test_a_training_function_that_does_not_measure():
    with pytest.raises(TrialError, match=r"does not call trial\.measure_flatness"):
        run(unmeasured)
    run(unmeasured, flatness=False)


@pytest.mark.parametrize("flatness", [True, False])
def test_measuring_comes_once_and_after_the_last_report(flatness):
    def trial():
        return Trial(Arm("vanilla"), 0, flatness=TINY if flatness else None)

    def early(trial):
        trial.measure_flatness(nn.Linear(5, 1), F.mse_loss, batches())

    def twice(trial):
        train(trial)
        trial.measure_flatness(nn.Linear(5, 1), F.mse_loss, batches())

    def reporting_on(trial):
        train(trial)
        trial.report(test_error=0.0)

    for wrong, message in (
        (early, r"before the first trial\.report"),
        (twice, "called twice"),
        (reporting_on, r"after the last trial\.report"),
    ):
        with pytest.raises(TrialError, match=message):
            wrong(trial())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batches": 0}, "max_batches must be a whole number, 1 or more; got 0"),
        ({"max_iter": 2}, "max_iter must be a whole number, 3 or more"),
        ({"eigenvalues": 1.5}, "eigenvalues must be a whole number"),
        ({"directions": True}, "directions must be a whole number"),
        ({"radii": ()}, "radii must be different numbers above 0"),
        ({"radii": (0.1, 0.1)}, "radii must be different"),
        ({"radii": (0.1, -1)}, "radii must be"),
        ({"radii": 0.1}, "radii must be"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        flatwise.FlatnessSettings(**options)


def test_flatness_must_be_settings_or_a_flag():
    with pytest.raises(CompareError, match="flatness must be True, False or"):
        run(flatness="yes")


def test_records_without_measures_equal_those_of_before():
    assert Record("k", "t", "a", 0, "finished", ()).flatness is None


# In a study.


STUDY = """
task = "digits-mlp"
settings.epochs = 1
[tuning]
baseline.learning_rate = [0.1, 0.2]
[[arms]]
method = "vanilla"
[[arms]]
method = "leap"
[final]
seeds = 2
flatness = { max_batches = 1, max_iter = 3 }
"""


def test_a_study_measures_its_final_runs_and_shows_them(tmp_path, capsys):
    """Trials of before are trained again where they are not measured, and those of the tuning are not."""
    (tmp_path / "s.toml").write_text(STUDY.replace("flatness =", "# flatness ="))
    (plain,) = flatwise.run_study(tmp_path / "s.toml", out=tmp_path, quiet=True).cells
    (tmp_path / "s.toml").write_text(STUDY)
    (cell,) = flatwise.run_study(tmp_path / "s.toml", out=tmp_path).cells
    said = " ".join(capsys.readouterr().err.split())
    assert "Note: 4 of the finished trials have no flatness measures" in said
    assert {record.flatness.settings["max_iter"] for record in cell.comparison.records} == {3}
    assert [arm.vs_vanilla for arm in cell.comparison.arms] == [arm.vs_vanilla for arm in plain.comparison.arms]
    assert {of.arm for of in cell.comparison.flatness.measures[0].arms} == {"vanilla", "leap"}
    assert "<h2>Flatness" in (tmp_path / "cells" / "digits-mlp.html").read_text(encoding="utf-8")
    with Store(tmp_path / "trials.sqlite", read_only=True) as store:
        records = list(store.records())
    assert sum(record.flatness is None for record in records) == 2  # the tuning's
    assert len(records) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("flatness = 3", "final.flatness = 3: expected true, false, or a table"),
        ("flatness = { max_iter = 1 }", "flatness: max_iter must be a whole number, 3 or more; got 1"),
        ("flatness.max_bathces = 1", "there is no field max_bathces: did you mean 'max_batches'"),
    ],
)
def test_bad_flatness_in_a_study_file(line, message):
    text = STUDY[: STUDY.index("flatness =")] + line
    with pytest.raises(StudyError, match=message):
        parse_study(text, name="s", source="s.toml")
    assert parse_study(STUDY.replace("{ max_batches = 1, max_iter = 3 }", "true"), name="s", source="s.toml")

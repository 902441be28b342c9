"""The comparison: pairing, controls, the store, interruption, the training function's contract."""

import json
import math
import sqlite3

import pytest
import torch

import flatter
from flatter.distributions import Constant
from flatter.study.arms import ArmError, parse_arm, split_arms, with_controls
from flatter.study.store import Store, StoreError
from flatter.study.trial import Trial, TrialError
from flatter.workflow import compare_task

STEPS, EPOCHS = 4, 5


def quadratic(trial):
    """Noisy gradient descent on a quadratic: quick, and its loss depends on rate, noise and seed."""
    generator = torch.Generator().manual_seed(trial.seed)
    parameter = torch.randn(20, generator=generator).requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = trial.attach(optimizer, steps_per_epoch=STEPS, epochs=EPOCHS)
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            parameter.grad = parameter.detach() + 0.1 * torch.randn(20, generator=generator)
            optimizer.step()
        scheduler.step()
        trial.report(test_error=float(parameter.detach().square().sum()), seconds=1.0)


def run(train=quadratic, arms=("leap",), seeds=3, **options):
    return flatter.compare(train, arms, seeds, quiet=True, **options)


def by_name(comparison):
    return {arm.name: arm for arm in comparison.arms}


def curves(comparison):
    """All that was recorded but the time of the wall clock."""
    return {(r.arm, r.seed): [dict(epoch) for epoch in r.epochs] for r in comparison.records}


# Arms and controls.


def test_each_method_is_followed_by_its_control():
    names = [arm.name for arm in with_controls(map(parse_arm, ("leap", "lr_dropout", "ralr", "gaussian_peak")))]
    assert names == [
        "vanilla", "leap", "lr_dropout", "lr_dropout (control)", "ralr", "ralr (control)", "gaussian_peak",
        "gaussian_peak (control)",
    ]  # fmt: skip


def test_controls_have_the_methods_mean_and_its_window():
    arms = {arm.name: arm for arm in with_controls(map(parse_arm, ("leap", "lr_dropout(keep=0.3)", "random_lr")))}
    assert arms["leap"].control == "vanilla"  # its mean factor is 1
    (dropout,) = arms["lr_dropout(keep=0.3) (control)"].perturbations
    assert dropout.distribution == Constant(0.3)
    (random_lr,) = arms["random_lr (control)"].perturbations
    assert random_lr.distribution == Constant(4.0)
    assert random_lr.window == flatter.random_lr().window


def test_control_of_a_composition_matches_the_product_of_means():
    arm = flatter.Arm("both", [flatter.leap(0.1), flatter.ralr()])
    control = with_controls([arm])[-1]
    assert [p.distribution for p in control.perturbations] == [Constant(1.5)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("leap(sigma=0.1)", flatter.leap(0.1)),
        ("lr_dropout( keep = 0.7 )", flatter.lr_dropout(0.7)),
        ("random_lr(alpha=4,beta=0.5)", flatter.random_lr(4, 0.5)),
        ("ralr", flatter.ralr()),
    ],
)
def test_parse_arm(text, expected):
    assert parse_arm(text).perturbations == (expected,)


def test_split_arms():
    assert split_arms("leap(sigma=0.1), random_lr(alpha=8,beta=0.5),ralr") == [
        "leap(sigma=0.1)", "random_lr(alpha=8,beta=0.5)", "ralr",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leep", "no arm 'leep'.*leap"),
        ("leap(simga=0.1)", "leap has no setting 'simga'.*sigma"),
        ("leap(sigma=big)", "sigma must be a number, got 'big'"),
        ("leap(sigma=-1)", "must not be negative"),
        ("lr_dropout(keep=2)", r"keep is a probability"),
        ("gaussian_peak(height=0.5)", "height is a multiple"),
        ("random_lr(beta=0)", "beta is the share"),
    ],
)
def test_bad_arms(text, message):
    with pytest.raises(ArmError, match=message):
        parse_arm(text)


def test_two_arms_of_one_name_are_refused():
    with pytest.raises(ArmError, match="two arms are named 'a'"):
        with_controls([flatter.Arm("a", flatter.leap()), flatter.Arm("a", flatter.ralr())])


# What is run and recorded.


def test_arms_of_a_seed_are_paired_and_f_equal_1_changes_nothing():
    comparison = run(arms=[flatter.Arm("nothing", flatter.leap(0.0)), "leap"])
    got = curves(comparison)
    for seed in range(3):
        assert got["nothing", seed] == got["vanilla", seed]
        assert got["leap", seed] != got["vanilla", seed]
    judged = by_name(comparison)["nothing"].vs_vanilla
    assert judged.differences == (0.0, 0.0, 0.0)
    assert judged.verdict == "inconclusive"


def test_summary_is_of_the_final_epoch():
    comparison = run(arms=["lr_dropout"])
    for arm in comparison.arms:
        final = [r.epochs[-1]["test_error"] for r in comparison.records if r.arm == arm.name]
        assert arm.mean == pytest.approx(sum(final) / 3)
        assert arm.n == 3
        assert arm.time_ratio == 1.0
    dropout, vanilla = by_name(comparison)["lr_dropout"], by_name(comparison)["vanilla"]
    assert dropout.vs_vanilla.mean == pytest.approx(dropout.mean - vanilla.mean)
    control = by_name(comparison)["lr_dropout (control)"]
    assert dropout.vs_control.mean == pytest.approx(dropout.mean - control.mean)


def test_effective_and_scheduled_rates_are_recorded():
    got = curves(run(arms=["ralr", "lr_dropout", "random_lr"], seeds=1))
    assert {epoch["scheduled_lr"] for trial in got.values() for epoch in trial} == {0.1}
    effective = {name: [epoch["effective_lr"] for epoch in trial] for (name, _), trial in got.items()}
    assert effective["vanilla"] == [0.1] * EPOCHS
    assert effective["lr_dropout"] == [pytest.approx(0.05)] * EPOCHS
    assert effective["ralr (control)"] == [pytest.approx(0.15)] * EPOCHS
    assert effective["random_lr (control)"] == pytest.approx([0.1, 0.1, 0.4, 0.4, 0.4])
    assert effective["random_lr"][:2] == [0.1, 0.1]
    assert len(set(effective["random_lr"][2:])) == 3
    assert all(0.1 <= rate <= 0.3 for rate in effective["ralr"])


def test_peak_arm_replaces_the_schedule_and_its_control_has_its_mean():
    def train(trial):
        parameter = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        scheduler = trial.attach(
            optimizer,
            steps_per_epoch=2,
            epochs=10,
            scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.1, 20),
            interval="step",
        )
        for _ in range(20):
            parameter.grad = torch.ones(3)
            optimizer.step()
            trial.report(test_error=1.0)
            scheduler.step()

    got = curves(run(train, arms=["gaussian_peak", "laplacian_peak"], seeds=1))
    rates = {name: [epoch["effective_lr"] for epoch in trial] for (name, _), trial in got.items()}
    assert rates["gaussian_peak"][0] == pytest.approx(0.1)
    assert max(rates["gaussian_peak"]) == pytest.approx(0.3, rel=0.02)
    assert rates["gaussian_peak"][-1] == pytest.approx(3e-5)
    for shape in ("gaussian_peak", "laplacian_peak"):
        control = rates[f"{shape} (control)"]
        assert sum(control) == pytest.approx(sum(rates[shape]))
        assert control[0] / control[-1] == pytest.approx(rates["vanilla"][0] / rates["vanilla"][-1])


def test_peak_control_refuses_a_scheduler_that_waits_for_a_metric():
    def train(trial):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        trial.attach(optimizer, steps_per_epoch=1, epochs=2, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
        optimizer.step()
        trial.report(test_error=1.0)

    with pytest.raises(TrialError, match="ReduceLROnPlateau"):
        run(train, arms=["gaussian_peak"], seeds=1)


# Failures are outcomes.


def failing(error, arm="leap", seed=1):
    def train(trial):
        quadratic(trial)
        if trial.arm.name == arm and trial.seed == seed:
            if isinstance(error, BaseException):
                raise error
            trial.report(test_error=error)

    return train


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), math.nan, math.inf])
def test_a_crash_or_a_nan_is_a_recorded_outcome(error):
    comparison = run(failing(error), arms=["leap", "lr_dropout"])
    leap = by_name(comparison)["leap"]
    assert (leap.n, leap.failed) == (2, 1)
    assert leap.vs_vanilla.verdict == "failed"
    (record,) = [r for r in comparison.records if r.status == "failed"]
    assert (record.arm, record.seed) == ("leap", 1)
    assert "out of memory" in record.error or "final test_error is" in record.error
    assert by_name(comparison)["lr_dropout"].vs_vanilla.verdict == "inconclusive"


def test_a_crash_of_vanilla_ends_the_comparison():
    with pytest.raises(RuntimeError, match="no data"):
        run(failing(RuntimeError("no data"), arm="vanilla"))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda trial: None, "without a single trial.report"),
        (lambda trial: trial.report(test_error=1.0), "must call trial.attach"),
    ],
)
def test_a_training_function_that_does_not_use_its_trial(train, message):
    with pytest.raises(TrialError, match=message):
        run(train)


def test_a_metric_that_is_not_reported():
    with pytest.raises(TrialError, match="reports test_error, but the comparison judges 'accuracy'"):
        run(metric="accuracy")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seeds": 0}, "seeds must be"), ({"seeds": [1, 1]}, "seeds must be"), ({"level": 1.5}, "level is the share")],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


# The store.


def test_an_interrupted_comparison_continues_and_repeats_nothing(tmp_path):
    whole = run(arms=["leap", "ralr"])
    calls = []

    def interrupted(trial):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append((trial.arm.name, trial.seed))
        quadratic(trial)

    total = 4 * 3
    while len(calls) < total:
        stop_after = len(calls) + 5
        if stop_after >= total:
            stop_after = -1
            continued = run(interrupted, arms=["leap", "ralr"], out=tmp_path)
        else:
            with pytest.raises(KeyboardInterrupt):
                run(interrupted, arms=["leap", "ralr"], out=tmp_path)
    assert len(set(calls)) == len(calls) == total
    assert curves(continued) == curves(whole)
    assert [vars_of(arm) for arm in continued.arms] == [vars_of(arm) for arm in whole.arms]
    assert (tmp_path / "report.html").is_file()


def vars_of(arm):
    return {name: getattr(arm, name) for name in arm.__slots__}


def test_more_seeds_and_arms_use_what_is_there(tmp_path):
    counted = []

    def train(trial):
        counted.append((trial.arm.name, trial.seed))
        quadratic(trial)

    run(train, arms=["leap"], seeds=2, out=tmp_path)
    assert len(counted) == 4
    run(train, arms=["leap", "lr_dropout"], seeds=3, out=tmp_path)
    assert len(counted) == 4 + 2 + 3 * 2
    run(train, arms=[flatter.Arm("another name", flatter.leap())], seeds=3, out=tmp_path)
    assert len(counted) == 12  # what was done counts, not what it was called
    run(train, arms=["leap"], seeds=3, settings={"width": 3}, out=tmp_path)
    assert len(counted) == 18  # another setting is another trial


def test_failed_trials_are_run_again_only_on_request(tmp_path):
    counted = []

    def train(trial):
        counted.append(trial.arm.name)
        quadratic(trial)
        if trial.arm.name == "leap" and len(counted) < 5:
            raise RuntimeError("out of memory")

    assert by_name(run(train, seeds=2, out=tmp_path))["leap"].failed == 2
    assert by_name(run(train, seeds=2, out=tmp_path))["leap"].failed == 2
    assert len(counted) == 4
    assert by_name(run(train, seeds=2, out=tmp_path, retry_failed=True))["leap"].failed == 0


def test_a_store_that_is_not_one_is_refused_and_kept(tmp_path):
    path = tmp_path / "trials.sqlite"
    path.write_bytes(b"not a database, but dear to somebody" * 100)
    with pytest.raises(StoreError, match=r"cannot use .*trials.sqlite.*another output folder"):
        run(out=tmp_path)
    assert path.read_bytes() == b"not a database, but dear to somebody" * 100


def test_a_store_of_a_newer_schema_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "trials.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="newer flatter"):
        run(out=tmp_path)


def test_a_damaged_record_is_refused(tmp_path):
    run(seeds=1, out=tmp_path)
    connection = sqlite3.connect(tmp_path / "trials.sqlite")
    with connection:
        connection.execute("UPDATE trials SET record = ?", (json.dumps({"key": 1}),))
    connection.close()
    with pytest.raises(StoreError, match="damaged"):
        run(seeds=1, out=tmp_path)


def test_records_survive_the_store_with_nan_and_infinity(tmp_path):
    comparison = run(failing(math.inf, seed=0), seeds=1)
    record = next(r for r in comparison.records if r.status == "failed")
    with Store(tmp_path / "s.sqlite") as store:
        store.put(record)
        assert store.get(record.key) == record
        assert store.get("another") is None


# A built-in task, for real.


def test_digits_task(tmp_path):
    options = {"arms": ["leap"], "seeds": 2, "settings": {"epochs": 2}, "out": tmp_path, "quiet": True}
    comparison = compare_task("digits-mlp", **options)
    assert comparison.task == "digits-mlp"
    assert all(0 < arm.mean < 60 for arm in comparison.arms)
    again = compare_task("digits-mlp", **options)
    assert curves(again) == curves(comparison)  # from the store, times included
    page = (tmp_path / "report.html").read_text()
    assert "digits-mlp" in page


def test_trial_keeps_the_users_seed_and_arm():
    trial = Trial(parse_arm("leap"), 7)
    assert trial.seed == 7
    assert trial.epochs == []

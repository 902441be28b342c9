"""The comparison: pairing, controls, the store, interruption, the training function's contract."""

import dataclasses
import functools
import json
import math
import pathlib
import platform
import sqlite3
import sys
import threading
from datetime import datetime, timezone

import numpy as np
import pytest
import torch

import flatwise
from flatwise.distributions import Constant
from flatwise.studies import CompareError, compare_task
from flatwise.study.arms import ArmError, parse_arm, split_arms, with_controls
from flatwise.study.comparison import known_direction
from flatwise.study.executors import ExecutorError
from flatwise.study.identify import NotIdentifiableError
from flatwise.study.spec import StudyError
from flatwise.study.store import Store, StoreError
from flatwise.study.task import Settings, Task
from flatwise.study.trial import Trial, TrialError

STEPS, EPOCHS = 4, 5


def quadratic(trial, final=None):
    """Noisy gradient descent on a quadratic: quick, and its loss depends on rate, noise and seed.

    ``final``, where given, is reported in place of the last epoch's error.
    """
    generator = torch.Generator().manual_seed(trial.seed)
    parameter = torch.randn(20, generator=generator).requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    scheduler = trial.attach(optimizer, steps_per_epoch=STEPS, epochs=EPOCHS)
    for epoch in range(EPOCHS):
        for _ in range(STEPS):
            parameter.grad = parameter.detach() + 0.1 * torch.randn(20, generator=generator)
            optimizer.step()
        scheduler.step()
        error = float(parameter.detach().square().sum())
        trial.report(test_error=error if final is None or epoch < EPOCHS - 1 else final, seconds=1.0)


def run(train=quadratic, arms=("leap",), seeds=3, **options):
    return flatwise.compare(train, arms, seeds, quiet=True, **options)


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
    assert random_lr.window == flatwise.random_lr().window


def test_control_of_a_composition_matches_the_product_of_means():
    arm = flatwise.Arm("both", [flatwise.leap(0.1), flatwise.ralr()])
    control = with_controls([arm])[-1]
    assert [p.distribution for p in control.perturbations] == [Constant(1.5)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("leap(sigma=0.1)", flatwise.leap(0.1)),
        ("lr_dropout( keep = 0.7 )", flatwise.lr_dropout(0.7)),
        ("random_lr(alpha=4,beta=0.5)", flatwise.random_lr(4, 0.5)),
        ("ralr", flatwise.ralr()),
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
        with_controls([flatwise.Arm("a", flatwise.leap()), flatwise.Arm("a", flatwise.ralr())])


# What is run and recorded.


def test_arms_of_a_seed_are_paired_and_f_equal_1_changes_nothing():
    comparison = run(arms=[flatwise.Arm("nothing", flatwise.leap(0.0)), "leap"])
    got = curves(comparison)
    for seed in range(3):
        assert got["nothing", seed] == got["vanilla", seed]
        assert got["leap", seed] != got["vanilla", seed]
    judged = by_name(comparison)["nothing"].vs_vanilla
    assert judged.differences == (0.0, 0.0, 0.0)
    assert (judged.verdict, judged.p, judged.seeds_needed) == ("does nothing", 1.0, None)


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
            steps_per_epoch=1,
            epochs=20,
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
        scheduler = trial.attach(
            optimizer, steps_per_epoch=1, epochs=2, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau
        )
        for _ in range(2):
            optimizer.step()
            scheduler.step(1.0)
            trial.report(test_error=1.0)

    with pytest.raises(TrialError, match="ReduceLROnPlateau"):
        run(train, arms=["gaussian_peak"], seeds=1)


def scheduled_training(factory):
    """A training with a factory for schedulers that is given the training's optimizer too."""

    def train(trial):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        made = factory(optimizer)
        scheduler = trial.attach(optimizer, steps_per_epoch=1, epochs=4, scheduler=made)
        for _ in range(4):
            optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
            trial.report(test_error=1.0)

    return train


class SchedulerWrapper:
    """A foreign wrapper, like Accelerate's: it has no attribute ``optimizer``."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    def step(self):
        self.scheduler.step()


def schedulers_made_before():
    from torch.optim import lr_scheduler as s

    def cosine(o):
        return s.CosineAnnealingLR(o, 4)

    return {
        "plain": cosine,
        "chained": lambda o: s.ChainedScheduler([s.ConstantLR(o), cosine(o)]),
        "sequential": lambda o: s.SequentialLR(o, [s.LinearLR(o, 0.1, total_iters=2), cosine(o)], [2]),
        "plateau": s.ReduceLROnPlateau,
        "wrapped": lambda o: SchedulerWrapper(cosine(o)),
    }


@pytest.mark.parametrize("kind", schedulers_made_before())
def test_a_scheduler_made_before_has_no_control(kind):
    def factory(optimizer):
        mine = schedulers_made_before()[kind](optimizer)
        return lambda _: mine

    with pytest.raises(TrialError, match="must make a new scheduler for the optimizer it is given") as error:
        run(scheduled_training(factory), arms=["gaussian_peak"], seeds=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", schedulers_made_before())
def test_a_scheduler_of_another_optimizer_is_refused(kind):
    other = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)

    with pytest.raises(TrialError, match="must make a new scheduler for the optimizer it is given"):
        run(scheduled_training(lambda _: lambda _: schedulers_made_before()[kind](other)), seeds=1)


@pytest.mark.parametrize("kind", ["plain", "chained", "sequential", "wrapped"])
def test_a_new_scheduler_of_any_kind_has_a_control(kind):
    got = curves(run(scheduled_training(lambda _: schedulers_made_before()[kind]), arms=["gaussian_peak"], seeds=1))
    rates = {name: [epoch["effective_lr"] for epoch in trial] for (name, _), trial in got.items()}
    assert sum(rates["gaussian_peak (control)"]) == pytest.approx(sum(rates["gaussian_peak"]))


# Failures are outcomes.


def failing(error, arm="leap", seed=1):
    """Trains, but one trial ends in an exception (given as its message) or in a number that is not finite."""

    def train(trial):
        fails = trial.arm.name == arm and trial.seed == seed
        quadratic(trial, error if fails and not isinstance(error, str) else None)
        if fails and isinstance(error, str):
            raise RuntimeError(error)

    return train


@pytest.mark.parametrize("error", ["out of memory", math.nan, math.inf])
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
        run(failing("no data", arm="vanilla"))


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
    with pytest.raises(TrialError, match="reports test_error in epoch 1, but the comparison judges 'accuracy': Pass"):
        run(metric="accuracy")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seeds": 0}, "seeds must be"), ({"seeds": [1, 1]}, "seeds must be"), ({"level": 1.5}, "level must lie in")],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


# The store.


class Log(list):
    """A training function's globals are part of its identity, by their state as pickle sees it; of a log, none is."""

    limit = math.inf

    def __reduce__(self):
        return Log, ()


CALLS = Log()


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def counted(trial):
    if len(CALLS) >= CALLS.limit:
        raise KeyboardInterrupt
    CALLS.append((trial.arm.name, trial.seed))
    quadratic(trial)


def test_an_interrupted_comparison_continues_and_repeats_nothing(tmp_path):
    whole = run(arms=["leap", "ralr"])
    for CALLS.limit in (5, 10):
        with pytest.raises(KeyboardInterrupt):
            run(counted, arms=["leap", "ralr"], out=tmp_path)
        assert len(CALLS) == CALLS.limit
    del CALLS.limit
    continued = run(counted, arms=["leap", "ralr"], out=tmp_path)
    assert len(set(CALLS)) == len(CALLS) == 4 * 3
    assert curves(continued) == curves(whole)
    assert [vars_of(arm) for arm in continued.arms] == [vars_of(arm) for arm in whole.arms]
    assert (tmp_path / "report.html").is_file()


def test_what_is_reused_is_said(tmp_path, capsys, monkeypatch):
    def said(**options):
        flatwise.compare(counted, ["ralr"], controls=False, out=tmp_path, **options)
        return " ".join(capsys.readouterr().err.split())

    assert "trials reused" not in said(seeds=2)
    today = datetime.now(timezone.utc).date().isoformat()
    assert f"4 of 4 trials reused, from {today}." in said(seeds=2)
    assert f"4 of 6 trials reused, from {today}." in said(seeds=3)
    assert "None of the 6 trials in the folder is reused: they have another" in said(seeds=2, settings={"a": 1})
    assert "different kinds of machines" not in said(seeds=3)
    here = flatwise.study.work.environment()
    other = {**here, "cpu": "Another CPU", "cpu_capability": "AVX2"}
    monkeypatch.setattr(flatwise.study.work, "environment", lambda: other)
    kinds = f"({here['cpu']}, {here['cpu_capability']}; Another CPU, AVX2)"
    assert "different kinds" not in said(seeds=3)  # nothing is run here
    assert kinds in said(seeds=4)
    assert "different kinds" not in said(seeds=range(10, 12))  # all are


def test_a_record_names_the_processor(tmp_path):
    (record, *_) = run(arms=[], seeds=1, out=tmp_path).records
    assert record.environment["processor"] == platform.machine()
    assert record.environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    if platform.system() == "Linux" and platform.machine() == "x86_64":
        assert "sse2" in record.environment["instructions"].split()
        assert record.environment["cpu"]


def vars_of(arm):
    return {name: getattr(arm, name) for name in arm.__slots__}


def test_more_seeds_and_arms_use_what_is_there(tmp_path):
    run(counted, arms=["leap"], seeds=2, out=tmp_path)
    assert len(CALLS) == 4
    run(counted, arms=["leap", "lr_dropout"], seeds=3, out=tmp_path)
    assert len(CALLS) == 4 + 2 + 3 * 2
    run(counted, arms=[flatwise.Arm("another name", flatwise.leap())], seeds=3, out=tmp_path)
    assert len(CALLS) == 12  # what was done counts, not what it was called
    run(counted, arms=["leap"], seeds=3, settings={"width": 3}, out=tmp_path)
    assert len(CALLS) == 18  # another setting is another trial


def fails_at_first(trial):
    counted(trial)
    if trial.arm.name == "leap" and len(CALLS) < 5:
        raise RuntimeError("out of memory")


def test_failed_trials_are_run_again_only_on_request(tmp_path):
    assert by_name(run(fails_at_first, seeds=2, out=tmp_path))["leap"].failed == 2
    assert by_name(run(fails_at_first, seeds=2, out=tmp_path))["leap"].failed == 2
    assert len(CALLS) == 4
    assert by_name(run(fails_at_first, seeds=2, out=tmp_path, retry_failed=True))["leap"].failed == 0


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
    with pytest.raises(StoreError, match="newer flatwise"):
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


# Trials are told apart by all that decides them.


def rate_trainer(lr):
    def train(trial):
        parameter = torch.ones(3, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=lr)
        trial.attach(optimizer, steps_per_epoch=1, epochs=1)
        parameter.grad = torch.ones(3)
        optimizer.step()
        trial.report(test_error=float(parameter.detach().sum()), seconds=1.0)

    return train


def partial_trainer(lr):
    return functools.partial(lambda trial, lr: rate_trainer(lr)(trial), lr=lr)


class ObjectTrainer:
    def __init__(self, lr):
        self.lr = lr

    def __call__(self, trial):
        rate_trainer(self.lr)(trial)


@pytest.mark.parametrize("make", [rate_trainer, partial_trainer, ObjectTrainer])
def test_a_training_function_with_other_values_is_another(make, tmp_path):
    small, large, again = (run(make(lr), seeds=1, out=tmp_path) for lr in (0.05, 0.5, 0.05))
    assert small.arms[0].mean == pytest.approx(3 * 0.95)
    assert large.arms[0].mean == pytest.approx(3 * 0.5)
    assert curves(again) == curves(small)


def test_settings_are_shown_and_a_change_runs_all_anew(tmp_path):
    @dataclasses.dataclass
    class Mine:
        folder: pathlib.Path
        dtype: torch.dtype = torch.float32

    for settings, calls in ((Mine(pathlib.Path("a")), 4), (Mine(pathlib.Path("a")), 4), (Mine(pathlib.Path("b")), 8)):
        shown = run(counted, arms=["ralr"], seeds=2, controls=False, settings=settings, out=tmp_path).settings
        assert (shown["folder"], shown["dtype"]) == (str(settings.folder), "torch.float32")
        assert len(CALLS) == calls
    for wrong in ([1], {"lock": threading.Lock()}):
        with pytest.raises(CompareError, match="settings must"):
            run(settings=wrong)


def test_a_training_function_that_cannot_be_told_from_another(tmp_path):
    data = threading.Lock()

    def train(trial):
        assert data
        quadratic(trial)

    assert run(train, seeds=1).arms[0].n == 1
    with pytest.raises(NotIdentifiableError, match=r"depends on 'data' around .*train, a lock, which"):
        run(train, seeds=1, out=tmp_path)


def test_another_metric_in_the_same_folder(tmp_path):
    def train(trial):
        parameter = torch.ones(1, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        trial.attach(optimizer, steps_per_epoch=1, epochs=1)
        optimizer.step()
        trial.report(good=0.5, bad=math.nan)

    assert by_name(run(train, metric="bad", better="lower", out=tmp_path))["leap"].failed == 3
    assert by_name(run(train, metric="good", better="lower", out=tmp_path))["leap"].failed == 0
    with pytest.raises(TrialError, match="judges 'other'"):
        run(train, metric="other", better="lower", out=tmp_path)


def test_bounded_perturbations_have_no_control():
    arms = with_controls([parse_arm("random_lr(max_lr=0.3)")])
    assert [arm.name for arm in arms] == ["vanilla", "random_lr(max_lr=0.3)"]
    assert "[-inf, 0.3]" in arms[1].description
    assert "40% to 100%" in arms[1].description
    assert run(arms=arms[1:], seeds=2).arms[1].vs_control is None


def test_a_control_of_ones_own():
    with pytest.raises(ArmError, match="not among the arms"):
        with_controls([flatwise.Arm("a", flatwise.leap(), control="b")])
    comparison = run(arms=[flatwise.Arm("a", flatwise.leap(), control="b"), flatwise.Arm("b", flatwise.leap(0.5))])
    assert by_name(comparison)["a"].vs_control.n == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"better": "up"}, "better must be 'lower' or 'higher'"),
        ({"settings": {"path": object()}}, "settings must be plain data"),
        ({"arms": [flatwise.leap()]}, r"flatwise.Arm\(name, perturbation\)"),
        ({"seeds": 2.0}, "seeds must be"),
        ({"seeds": True}, "seeds must be"),
        ({"arms": "leap(sigma=0.1),what"}, "no arm 'what'"),
        ({"arms": "gaussian_peak(height=inf)"}, "height"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_trial(options, message):
    def train(trial):
        raise AssertionError("a trial was started")

    with pytest.raises(ValueError, match=message):
        run(train, **options)


def test_an_optimizer_that_cannot_be_perturbed_stops_in_the_first_trial():
    def train(trial):
        optimizer = torch.optim.ASGD([torch.ones(1, requires_grad=True)])
        trial.attach(optimizer, steps_per_epoch=1, epochs=1)

    with pytest.raises(ValueError, match="ASGD cannot be perturbed"):
        run(train)


def test_a_peak_needs_two_steps():
    with pytest.raises(TrialError, match="at least two"):
        run(rate_trainer(0.1), arms=["gaussian_peak"], seeds=1)


def test_rates_held_in_tensors_are_noted_as_they_were():
    def train(trial):
        parameter = torch.ones(1, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=torch.tensor(0.1))
        scheduler = trial.attach(
            optimizer, steps_per_epoch=1, epochs=3, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1)
        )
        for _ in range(3):
            parameter.grad = torch.ones(1)
            optimizer.step()
            scheduler.step()
            trial.report(test_error=1.0)

    rates = [epoch["scheduled_lr"] for epoch in curves(run(train, seeds=1))["vanilla", 0]]
    assert rates == pytest.approx([0.1, 0.01, 0.001])


def test_arms_take_turns_in_being_first(tmp_path):
    order = []

    def train(trial):
        order.append((trial.seed, trial.arm.name))
        quadratic(trial)

    run(train, arms=["leap", "ralr"], seeds=2)
    assert [name for seed, name in order if seed == 0] == ["vanilla", "leap", "ralr", "ralr (control)"]
    assert [name for seed, name in order if seed == 1] == ["leap", "ralr", "ralr (control)", "vanilla"]


def test_too_few_seeds_are_said_to_be(capsys):
    flatwise.compare(quadratic, ["leap"], 5)
    assert "with 5 seeds no verdict can be reached" in " ".join(capsys.readouterr().err.split())
    flatwise.compare(quadratic, ["leap"], 6)
    assert "no verdict can" not in capsys.readouterr().err


def test_names_and_messages_are_never_read_as_markup(tmp_path, capsys):
    out = tmp_path / "x[/red]y"
    arm = flatwise.Arm("a[/b]", flatwise.leap())
    flatwise.compare(failing("see [/tmp/x]", arm="a[/b]", seed=0), [arm], 2, out=out)
    captured = capsys.readouterr()
    assert "a[/b], seed 0 failed: RuntimeError: see [/tmp/x]" in captured.err
    assert "x[/red]y" in captured.err


def test_the_page_is_written_although_nobody_reads_the_table_to_its_end(tmp_path, monkeypatch):
    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("flatwise.studies.show", gone)
    with pytest.raises(BrokenPipeError):
        flatwise.compare(quadratic, ["leap"], 3, out=tmp_path)
    assert "leap" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("seconds", [np.float32(1.5), torch.tensor(1.5), 1.5])
def test_seconds_may_be_any_number(tmp_path, seconds):
    def train(trial):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        trial.attach(optimizer, steps_per_epoch=1, epochs=1)
        optimizer.step()
        trial.report(test_error=1.0, seconds=seconds)

    (record, *_) = run(train, seeds=1, out=tmp_path / "out").records
    assert type(record.epochs[0]["seconds"]) is float
    assert record.epochs[0]["seconds"] == 1.5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scheduled_lr", "flatwise records scheduled_lr itself: report the metric 'scheduled_lr' under another name"),
        ("effective_lr", "flatwise records effective_lr itself"),
        ("error_\ud800", "cannot be stored"),
    ],
)
def test_metrics_that_cannot_be_kept_under_their_names_are_refused(tmp_path, name, message):
    with pytest.raises(TrialError, match=message) as error:
        run(lambda trial: quadratic_with(trial, name, 1.0), metric=name, better="lower", seeds=1)
    str(error.value).encode()


# Which way is better.


@pytest.mark.parametrize(
    ("direction", "names"),
    [
        (
            "lower",
            "test_error val_loss loss valLoss perplexity test_ppl rmse MSE nll mae wer fid top5_error top1_err ece "
            "negative_log_likelihood brier_score cross_entropy error_rate",
        ),
        (
            "higher",
            "accuracy test_acc acc1 Accuracy f1 f1_score macro_f1 auc val_auroc bleu map mAP50 AP mean_iou mIoU r2 "
            "score top5 top_1 precision neg_mean_squared_error log_likelihood reward psnr hits@10",
        ),
    ],
)
def test_the_metrics_name_says_which_way_is_better(direction, names):
    for name in names.split():
        assert known_direction(name) == direction, name
    better, worse = (1.0, 2.0) if direction == "lower" else (2.0, 1.0)

    def train(trial):
        noise = 0.001 * trial.seed + 0.0001 * trial.seed**2
        quadratic_with(trial, names.split()[0], (better if trial.arm.name == "leap" else worse) + noise)

    comparison = run(train, metric=names.split()[0], seeds=8)
    assert comparison.better == direction
    assert by_name(comparison)["leap"].vs_vanilla.verdict == "helps"


def quadratic_with(trial, name, value):
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    trial.attach(optimizer, steps_per_epoch=1, epochs=1)
    optimizer.step()
    trial.report(**{name: value})


UNCLEAR = (
    "one_minus_accuracy 1-accuracy 1/loss accuracy_drop accuracy_gap time_to_accuracy steps_to_accuracy test_acc_std "
    "testAccStd accuracy_variance reward_variance recall_gap not_accuracy minus_loss inverse_loss error_reduction "
    "loss_decrease score_gap neg_loss_gap fpr_at_95_recall"
)


@pytest.mark.parametrize("name", ["metric", "x", "value", "good", "steps", *UNCLEAR.split()])
def test_a_metric_whose_name_says_nothing_is_refused(name):
    with pytest.raises(ValueError, match=f"the name of the metric '{name}' does not say .* pass better="):
        run(metric=name)
    with pytest.raises(ValueError, match="does not say"):
        Task("t", "", Settings(epochs=1, batch_size=1, learning_rate=0.1), None, None, metric=name)


def test_what_is_said_wins_with_a_warning():
    with pytest.warns(UserWarning, match="'accuracy' higher values are usually better"):
        comparison = run(lambda trial: quadratic_with(trial, "accuracy", 1.0), metric="accuracy", better="lower")
    assert comparison.better == "lower"


# What a training function tells attach is checked.


def trainer(told=(4, 5), ran=(4, 5), interval="epoch", calls=None, own=True, reports=None, skipped=(), value=None):
    """A training that may differ from what it tells: steps per epoch and epochs, told and run."""

    def train(trial):
        parameter = torch.ones(2, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=0.01)
        make = (lambda o: torch.optim.lr_scheduler.StepLR(o, 1000)) if own else None
        scheduler = trial.attach(optimizer, steps_per_epoch=told[0], epochs=told[1], scheduler=make, interval=interval)
        done = 0
        for epoch in range(ran[1]):
            for step in range(ran[0]):
                if (epoch, step) not in skipped:
                    parameter.grad = torch.ones(2) * (1 + trial.seed)
                    optimizer.step()
                if (calls or interval) == "step":
                    scheduler.step()
            if (calls or interval) == "epoch":
                scheduler.step()
            if reports is None or epoch in reports:
                done += 1
                trial.report(test_error=float(parameter.detach().sum()) if value is None else value)

    return train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ran": (4, 3)}, r"told epochs=5, but 3 epochs were reported.*stops early cannot be compared"),
        ({"told": (4, 100), "ran": (4, 1)}, r"told epochs=100, but 1 epoch was reported"),
        ({"ran": (4, 6)}, r"told epochs=5, but this is report 6"),
        ({"ran": (5, 5)}, r"told steps_per_epoch=4, so 4 steps in 1 epoch, but optimizer.step was called 5 times"),
        (
            {"ran": (2, 5)},
            r"told steps_per_epoch=4, so \d+ steps in \d epochs?, but optimizer.step was called \d+ t",
        ),
        ({"told": (400, 5), "ran": (100, 5)}, r"so 400 steps in 1 epoch, but optimizer.step was called 100 times"),
        ({"calls": "never"}, r"interval='epoch', so 2 scheduler steps in 2 epochs.*was stepped 0 times"),
        ({"interval": "step", "calls": "never"}, r"interval='step', so 8 scheduler steps.*stepped 0 times"),
        (
            {"interval": "step", "calls": "epoch"},
            r"interval='step', so \d+ scheduler steps.*stepped \d times",
        ),
        ({"calls": "step"}, r"interval='epoch', so 2 scheduler steps in 2 epochs.*stepped 8 times"),
        ({"reports": (1, 3)}, r"steps_per_epoch=4, so 4 steps in 1 epoch, but optimizer.step was called 8 times"),
    ],
)
def test_a_training_that_does_not_do_what_it_says(options, message):
    with pytest.raises(TrialError, match=message):
        run(trainer(**options), seeds=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interval": "step"},
        {"own": False, "calls": "never"},  # a constant rate needs no steps
        {"told": (100, 3), "ran": (100, 3), "skipped": [(0, 1), (0, 2), (1, 50)]},  # a gradient scaler's
        {"told": (100, 3), "ran": (100, 3), "interval": "step", "skipped": [(0, 1), (0, 2), (1, 50)]},
        {"told": (4, 1), "ran": (4, 1)},
    ],
)
def test_a_training_that_does_what_it_says(options):
    assert run(trainer(**options), seeds=1).arms[1].failed == 0


def test_a_forgotten_scheduler_is_found_by_the_peak_arm():
    with pytest.raises(TrialError, match="stepped 0 times"):
        run(trainer(own=False, calls="never"), arms=["gaussian_peak"], seeds=1)


@pytest.mark.parametrize("scheduler", ["chained", "sequential", "restarts", "plateau"])
def test_every_scheduler_is_counted(scheduler):
    from torch.optim import lr_scheduler as s

    makers = {
        "chained": lambda o: s.ChainedScheduler([s.StepLR(o, 9), s.ConstantLR(o)]),
        "sequential": lambda o: s.SequentialLR(o, [s.ConstantLR(o), s.StepLR(o, 9)], milestones=[2]),
        "restarts": lambda o: s.CosineAnnealingWarmRestarts(o, 2),
        "plateau": s.ReduceLROnPlateau,
    }

    def train(trial, steps):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        made = trial.attach(optimizer, steps_per_epoch=1, epochs=4, scheduler=makers[scheduler])
        for epoch in range(4):
            optimizer.step()
            for _ in range(steps):
                made.step(*([1.0] if scheduler == "plateau" else []))
            trial.report(test_error=float(epoch + trial.seed))

    assert run(functools.partial(train, steps=1), seeds=1).arms[0].n == 1
    for wrong in (0, 2):
        with pytest.raises(TrialError, match=r"scheduler that it returned was stepped \d times"):
            run(functools.partial(train, steps=wrong), seeds=1)


def test_a_short_trial_of_a_method_is_its_outcome_and_a_diverged_one_may_return():
    def train(trial):
        trainer(ran=(4, 2) if trial.arm.name == "leap" and trial.seed == 1 else (4, 5))(trial)

    records = {(r.arm, r.seed): r for r in run(train, seeds=3).records}
    assert records["leap", 1].status == "failed"
    assert "but 2 epochs were reported" in records["leap", 1].error
    (vanilla, _) = run(trainer(ran=(4, 2), value=math.nan), seeds=3).arms
    assert vanilla.failed == 3


def test_attach_refuses_what_makes_no_sense():
    for told in ((0, 5), (4, 0)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            run(trainer(told=told), seeds=1)

    def twice(trial):
        trainer()(trial)
        trainer()(trial)

    with pytest.raises(TrialError, match="attach was called twice"):
        run(twice, seeds=1)


def test_a_misspelled_metric_costs_one_epoch():
    epochs = []

    def train(trial):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        trial.attach(optimizer, steps_per_epoch=1, epochs=50)
        for _ in range(50):
            epochs.append(1)
            optimizer.step()
            trial.report(test_eror=1.0, loss=2.0)

    with pytest.raises(TrialError, match=r"reports test_eror, loss in epoch 1, .*did you mean 'test_eror'"):
        run(train)
    assert len(epochs) == 1


def test_a_metric_may_be_left_out_between_the_first_and_the_last_epoch():
    def train(trial, last=True):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        trial.attach(optimizer, steps_per_epoch=1, epochs=4)
        for epoch in range(4):
            optimizer.step()
            metrics = {"loss": 1.0 + trial.seed} | ({"test_error": math.nan} if epoch == 0 else {})
            trial.report(**metrics | ({"test_error": 1.5 + trial.seed} if epoch == 3 and last else {}))

    assert run(train).arms[0].n == 3
    with pytest.raises(TrialError, match="reports loss in epoch 4"):
        run(functools.partial(train, last=False))


# Seeds that are not independent, arms that do nothing, arms that cannot be compared.


def deaf(trial):
    """A training that does not look at its seed: only the noise does."""
    parameter = torch.linspace(1, 2, 20).requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    trial.attach(optimizer, steps_per_epoch=STEPS, epochs=EPOCHS)
    for _ in range(EPOCHS):
        for _ in range(STEPS):
            parameter.grad = parameter.detach().sin()
            optimizer.step()
        trial.report(test_error=float(parameter.detach().square().sum()))


def test_one_training_counted_as_ten_has_no_verdict():
    comparison = run(deaf, arms=["leap(sigma=0.5)", "lr_dropout"], seeds=10)
    assert comparison.arms[0].repeats == tuple(range(1, 10))
    assert {arm.vs_vanilla.verdict for arm in comparison.arms[1:]} == {"not independent"}
    assert all(math.isnan(arm.vs_vanilla.p) for arm in comparison.arms[1:])


def test_two_equal_seeds_are_enough_to_bar_a_verdict():
    def train(trial):
        seed, trial.seed = trial.seed, 3 if trial.seed == 7 else trial.seed
        quadratic(trial)
        trial.seed = seed

    comparison = run(train, arms=["lr_dropout"], seeds=10)
    assert comparison.arms[0].repeats == (7,)
    assert by_name(comparison)["lr_dropout"].vs_vanilla.verdict == "not independent"


def reported(values, own=lambda trial: 0.0):
    """A training whose epochs report given errors; ``own`` adds to each arm and seed its own."""

    def train(trial):
        optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
        scheduler = trial.attach(optimizer, steps_per_epoch=1, epochs=len(values))
        for value in values:
            optimizer.step()
            scheduler.step()
            trial.report(test_error=value + own(trial))

    return train


@pytest.mark.parametrize(
    "values",
    [
        [12.5],  # one error rate
        [30.0, 12.5, 12.5],  # a few
        [0.1, 1 / 3, 0.0],
        [90.2] * 20,  # collapsed
        [math.log(10)] * 20,  # collapsed, as a loss
        [100 * k / 1563 for k in (700, 500, 400, 390)],
        [math.inf, math.nan, 12.0],
    ],
)
def test_ties_of_discrete_metrics_are_not_repeats(values):
    comparison = run(reported(values), seeds=8)
    assert all(arm.repeats == () for arm in comparison.arms)
    assert comparison.arms[1].vs_vanilla.verdict == "inconclusive"


@pytest.mark.parametrize(
    "values",
    [
        [2.3, 0.71828182845, 0.31415926535],
        [0.318274651289, 0.2],
        [100 * k / 1563 for k in (900, 700, 600, 500, 400, 390, 380, 370, 360)],  # discrete, but many
        [float(torch.tensor(2.3871234)), float(torch.tensor(1.9871233))],
    ],
)
def test_equal_curves_are_repeats(values):
    assert run(reported(values), seeds=3).arms[0].repeats in ((1, 2), ())
    if sum(v != round(v, 4) for v in values) > 1:
        assert run(reported(values), seeds=2).arms[0].repeats == (1,)


def test_an_arm_that_is_its_control_to_the_bit_does_nothing_more():
    def train(trial):
        return reported([1.0 + 0.1 * trial.seed + math.sqrt(2) / (e + 1) for e in range(3)],
                        lambda t: -0.5 if t.arm.name != "vanilla" else 0.0)(trial)  # fmt: skip

    comparison = run(train, arms=["lr_dropout"], seeds=8)
    dropout = by_name(comparison)["lr_dropout"]
    assert (dropout.vs_vanilla.verdict, dropout.vs_control.verdict) == ("helps", "does nothing")


def test_arms_with_different_numbers_of_epochs_are_not_compared():
    def train(trial):
        epochs = 4 if trial.arm.name == "leap" else 3
        return reported([1.0 + 0.1 * trial.seed + math.sqrt(2) / (e + 1) for e in range(epochs)])(trial)

    comparison = run(train, seeds=8)
    assert by_name(comparison)["leap"].vs_vanilla.verdict == "not comparable"


# What the store remembers.


def shifted(trial):
    """Arms that differ from vanilla by a constant and some noise."""
    shift = {"leap": 0.2, "lr_dropout": 0.9, "ralr": 0.2}.get(trial.arm.name, 0.0)
    wobble = math.sin(12.9898 * trial.seed + 78.233 * len(trial.arm.name)) * 0.3
    reported([3.0 + math.sqrt(trial.seed + 2), 1.0 + shift + wobble + math.sqrt(trial.seed + 2) / 100])(trial)


def test_a_family_does_not_shrink_on_a_second_look(tmp_path):
    arms = ["leap", "lr_dropout", "ralr", "random_lr", "gaussian_peak"]
    first = run(shifted, arms=arms, seeds=10, out=tmp_path)
    alone = run(shifted, arms=["leap"], seeds=10, out=tmp_path)
    fresh = run(shifted, arms=["leap"], seeds=10)
    judged = [by_name(comparison)["leap"].vs_vanilla for comparison in (first, alone, fresh)]
    assert judged[0] == judged[1]
    assert judged[2].p_corrected < judged[1].p_corrected  # what it would be without memory
    assert set(alone.earlier_arms) == set(arms) - {"leap"}
    assert first.earlier_arms == fresh.earlier_arms == ()
    # Arms without records of these seeds count as ones that showed nothing.
    more = by_name(run(shifted, arms=["lr_dropout"], seeds=12, out=tmp_path))["lr_dropout"].vs_vanilla
    assert more.p_corrected >= 5 * more.p
    # Another subject is another family.
    assert run(shifted, arms=["leap"], seeds=10, out=tmp_path, settings={"width": 2}).earlier_arms == ()


def test_looking_again_with_more_seeds_is_remembered(tmp_path):
    assert run(shifted, seeds=6, out=tmp_path).earlier_seeds == ()
    assert run(shifted, seeds=6, out=tmp_path).earlier_seeds == ()
    assert run(shifted, seeds=8, out=tmp_path).earlier_seeds == (tuple(range(6)),)
    assert run(shifted, seeds=9, out=tmp_path).earlier_seeds == (tuple(range(6)), tuple(range(8)))
    assert "This is not the first look" in (tmp_path / "report.html").read_text()


def test_a_failed_trial_keeps_its_traceback(tmp_path):
    comparison = run(failing("out of memory"), out=tmp_path, name="t", settings={"a": 1})
    (record,) = [r for r in comparison.records if r.status == "failed"]
    assert record.traceback.startswith("Traceback (most recent call last):")
    assert "raise RuntimeError(error)" in record.traceback
    assert "raise RuntimeError(error)" in (tmp_path / "report.html").read_text()
    with Store(tmp_path / "trials.sqlite", read_only=True) as store:
        assert store.get(record.key).traceback == record.traceback


# Other executors.


def test_a_function_of_a_module_is_compared_in_worker_processes(tmp_path):
    two = flatwise.ExecutorChoice("processes", workers=2)
    there = run(quadratic, seeds=2, executor=two, out=tmp_path)
    assert curves(there) == curves(run(quadratic, seeds=2))
    assert curves(run(quadratic, seeds=2, out=tmp_path)) == curves(there)  # nothing is run again


def test_a_function_that_cannot_be_sent_is_refused():
    with pytest.raises(ExecutorError, match="must be a function of a module and plain data, to be sent to workers"):
        run(lambda trial: None, executor="processes")
    with pytest.raises(StudyError, match="there is no executor 'threads'"):
        run(executor="threads")


def test_a_function_that_is_another_in_a_worker_is_refused(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "EPOCHS", 4)  # the worker imports what the file says
    with pytest.raises(StudyError, match="is another in a worker than in this program"):
        run(quadratic, seeds=1, executor="processes")


def test_a_record_is_written_once_and_not_read_back(tmp_path, monkeypatch):
    read, written = [], []
    get, put = Store.get, Store.put
    monkeypatch.setattr(Store, "get", lambda store, key: read.append(key) or get(store, key))
    monkeypatch.setattr(Store, "put", lambda store, record: written.append(record.key) or put(store, record))
    run(seeds=2, out=tmp_path)
    assert (len(read), len(set(written)), len(written)) == (0, 4, 4)
    run(seeds=3, out=tmp_path)
    assert (len(read), len(set(read)), len(written)) == (4, 4, 6)

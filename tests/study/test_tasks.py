"""The built-in tasks: one seed decides a trial, settings are checked, metrics are what they say."""

import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from fake_trial import FakeTrial, equal
from flatwise import methods
from flatwise.distributions import Constant
from flatwise.perturbation import Perturbation
from flatwise.study.arms import Arm
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.registry import TASKS, UnknownTaskError, all_tasks, get_task
from flatwise.study.task import Settings, SettingsError
from flatwise.study.tasks import classification as classifier
from flatwise.study.tasks import training as running
from flatwise.study.tasks.classification import Classification, MlpSettings, build_mlp, error_percent, train_mlp
from flatwise.study.tasks.training import disturb_labels
from flatwise.study.trial import Trial

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
QUICK = MlpSettings(epochs=3, batch_size=64, learning_rate=0.05)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Layers this small gain nothing from a second thread, and wait for it where other tests keep the cores busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return get_task("digits-mlp").load(None)


def run(data, settings=QUICK, seed=0, widths=(64, 16, 10)):
    trial = FakeTrial(seed)
    train_mlp(trial, settings, data, widths=widths)
    return trial


# Tasks


def test_name_and_what_is_judged():
    (task,) = TASKS.values()
    assert get_task("digits-mlp") is task
    assert (task.name, task.metric, task.unit, task.better) == ("digits-mlp", "test_error", "%", "lower")


def test_unknown_task_names_the_closest_and_all():
    with pytest.raises(UnknownTaskError, match=r"no task 'digit-mlp': did you mean 'digits-mlp'\?") as caught:
        get_task("digit-mlp")
    for name in all_tasks():
        assert name in str(caught.value)
    with pytest.raises(UnknownTaskError, match=r"no task 'zzz': The tasks are digits-mlp"):
        get_task("zzz")


def test_widths_and_parameter_count(digits):
    trial = FakeTrial()
    get_task("digits-mlp").train(trial, QUICK, digits)
    assert [tuple(p.shape) for p in trial.initial if p.ndim == 2] == [(64, 64), (10, 64)]
    assert sum(p.numel() for p in trial.initial) == 4_810


def test_relu_between_layers_and_none_at_the_end():
    assert [type(layer).__name__ for layer in build_mlp((5, 4, 3, 2))] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def test_digits_with_its_own_settings_learns(digits):
    task = get_task("digits-mlp")
    trial = FakeTrial(seed=1)
    task.train(trial, task.settings, digits)
    assert len(trial.epochs) == task.settings.epochs
    assert trial.epochs[-1]["test_error"] < 6
    assert trial.epochs[-1]["val_error"] < 6
    assert trial.epochs[-1]["train_loss"] < 0.1 < trial.epochs[0]["train_loss"]


# One seed decides a trial, and nothing else


def test_one_seed_one_result_whatever_the_global_state(digits):
    first = run(digits, seed=5)
    torch.rand(3)
    second = run(digits, seed=5)
    assert first.metrics == second.metrics
    assert equal(first.initial, second.initial)
    assert equal(first.last, second.last)


def test_other_seeds_have_other_weights_and_another_order(digits, monkeypatch):
    first, second = run(digits, seed=0), run(digits, seed=1)
    assert not equal(first.initial, second.initial)

    initialized = classifier.initialized
    monkeypatch.setattr(classifier, "initialized", lambda build, seed: initialized(build, 0))
    first, second = run(digits, seed=0), run(digits, seed=1)
    assert equal(first.initial, second.initial)
    assert not equal(first.last, second.last)  # so the order of the data differs too


def test_initial_weights_are_torchs_default(digits):
    # SeedSequence(7) gives the seed of the weights first.
    seed = int(np.random.SeedSequence(7).generate_state(2, np.uint64)[0])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        expected = [p.detach() for p in build_mlp((64, 16, 10)).parameters()]
    assert equal(run(digits, seed=7).initial, expected)


def test_global_random_state_does_not_move(digits):
    before = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
    run(digits)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert pickle.dumps(np.random.get_state()) == before[1]
    assert random.getstate() == before[2]


def test_arms_of_a_real_trial_start_alike_and_only_the_perturbation_differs(digits):
    vanilla, leap = Trial(Arm("vanilla"), 3), Trial(Arm("leap", methods.leap(0.5)), 3)
    for trial in (vanilla, leap):
        train_mlp(trial, QUICK, digits, widths=(64, 16, 10))
    plain = run(digits, seed=3)
    for epoch, expected in zip(vanilla.epochs, plain.metrics, strict=True):
        assert {name: epoch[name] for name in expected} == expected
    assert leap.epochs[0]["train_loss"] == pytest.approx(plain.epochs[0]["train_loss"], rel=0.2)
    assert leap.epochs[0]["train_loss"] != plain.epochs[0]["train_loss"]


# Steps, batches, schedule


@pytest.mark.parametrize(("batch_size", "steps"), [(64, 15), (899, 1), (5000, 1), (898, 2)])
def test_last_smaller_batch_is_kept(digits, batch_size, steps):
    trial = run(digits, QUICK.updated({"batch_size": batch_size}))
    assert (trial.steps_per_epoch, trial.planned_epochs, trial.interval) == (steps, 3, "epoch")
    assert trial.steps == 3 * steps


def test_every_example_is_used_once_per_epoch_in_a_new_order(digits, monkeypatch):
    seen = []
    original = torch.nn.functional.cross_entropy

    def spy(outputs, targets):
        seen.append(targets)
        return original(outputs, targets)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", spy)
    numbered = Classification(
        train_x=torch.randn(899, 64, generator=torch.Generator().manual_seed(0)),
        train_y=torch.arange(899),
        val_x=digits.val_x,
        val_y=digits.val_y,
        test_x=digits.test_x,
        test_y=digits.test_y,
        classes=899,
    )
    run(numbered, QUICK.updated({"epochs": 2}), widths=(64, 899))
    first, second = torch.cat(seen[:15]), torch.cat(seen[15:])
    assert torch.equal(first.sort().values, torch.arange(899))
    assert torch.equal(second.sort().values, torch.arange(899))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("schedule", "epochs", "rates"),
    [
        ("constant", 4, [1, 1, 1, 1]),
        ("cosine", 4, [(1 + math.cos(math.pi * e / 4)) / 2 for e in (1, 2, 3, 4)]),
        ("step", 4, [1, 0.1, 0.01, 0.01]),
        ("step", 1, [0.01]),  # both cuts after the only epoch
    ],
)
def test_schedules(digits, schedule, epochs, rates):
    # The rate is read after the scheduler's step, so it is the next epoch's.
    trial = run(digits, QUICK.updated({"schedule": schedule, "epochs": epochs}))
    assert trial.rates == pytest.approx([0.05 * r for r in rates], abs=1e-12)


def test_short_step_schedule_begins_with_the_full_rate(digits):
    trial = FakeTrial()
    rates = []
    trial._after_step = lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
    train_mlp(trial, QUICK.updated({"schedule": "step", "epochs": 1}), digits, widths=(64, 10))
    assert set(rates) == {0.05}


def test_schedule_that_changes_at_every_step_is_stepped_at_every_step(digits):
    trial = FakeTrial()
    rates = []
    trial._after_step = lambda optimizer, args, kwargs: rates.append(optimizer.param_groups[0]["lr"])
    train_mlp(trial, QUICK.updated({"schedule": "cyclic", "epochs": 2}), digits, widths=(64, 10))
    assert trial.interval == "step"
    # Up to three times the rate in 8 epochs of 15 steps.
    assert rates == pytest.approx([0.05 * (1 + 2 * step / (8 * 15)) for step in range(30)])


# Regularization


def reference(data, seed, *, build=lambda: build_mlp((64, 16, 10)), scheduler=None, labels=None, epochs=2):
    """A training of its own with QUICK's settings. Returns the final parameters and the mean training losses."""
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(2, np.uint64)]
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        model = build()
    order = torch.Generator().manual_seed(seeds[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = scheduler(optimizer) if scheduler else None
    losses = []
    for epoch in range(epochs):
        targets = labels[epoch] if labels else data.train_y
        total = 0.0
        for batch in torch.randperm(len(data.train_x), generator=order).split(64):
            loss = torch.nn.functional.cross_entropy(model(data.train_x[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        if scheduler:
            scheduler.step()
        losses.append(total / len(data.train_x))
    return [p.detach() for p in model.parameters()], losses


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        ("constant", None),
        ("cosine", lambda optimizer: CosineAnnealingLR(optimizer, 4)),
        ("step", lambda optimizer: MultiStepLR(optimizer, [2, 3], 0.1)),
    ],
)
def test_defaults_train_bit_for_bit_as_the_plain_loop_does(digits, schedule, scheduler):
    trial = run(digits, QUICK.updated({"epochs": 4, "schedule": schedule}), seed=4)
    parameters, losses = reference(digits, 4, scheduler=scheduler, epochs=4)
    assert equal(trial.last, parameters)
    assert [epoch["train_loss"] for epoch in trial.epochs] == pytest.approx(losses, rel=1e-6)


def model_of(parameters):
    model = build_mlp((64, 16, 10))
    with torch.no_grad():
        for p, values in zip(model.parameters(), parameters, strict=True):
            p.copy_(values)
    return model


def test_label_noise_is_new_in_every_epoch_and_in_training_alone(digits):
    trial = run(digits, QUICK.updated({"epochs": 2, "label_noise": 0.3}), seed=4)
    noise = torch.Generator().manual_seed(int(np.random.SeedSequence(4).generate_state(3, np.uint64)[2]))
    labels = [disturb_labels(digits.train_y, 0.3, 10, noise) for _ in range(2)]
    assert not torch.equal(*labels)
    parameters, losses = reference(digits, 4, labels=labels)
    assert equal(trial.last, parameters)
    assert [epoch["train_loss"] for epoch in trial.epochs] == pytest.approx(losses, rel=1e-6)
    model = model_of(trial.last)
    assert trial.epochs[-1]["val_error"] == error_percent(model, digits.val_x, digits.val_y)
    assert trial.epochs[-1]["test_error"] == error_percent(model, digits.test_x, digits.test_y)


class Masked(torch.nn.Module):
    """Dropout written out."""

    def __init__(self, generator, dropout):
        super().__init__()
        self.generator, self.dropout = generator, dropout

    def forward(self, x):
        return x * (torch.empty(x.shape).bernoulli_(1 - self.dropout, generator=self.generator) / (1 - self.dropout))


def test_dropout_masks_are_the_seeds_and_only_in_training(digits):
    trial = run(digits, QUICK.updated({"epochs": 2, "dropout": 0.2}), seed=4)

    def build():
        masks = torch.Generator().manual_seed(int(np.random.SeedSequence(4).generate_state(4, np.uint64)[3]))
        plain = build_mlp((64, 16, 10))
        return torch.nn.Sequential(plain[0], plain[1], Masked(masks, 0.2), plain[2])

    parameters, losses = reference(digits, 4, build=build)
    assert equal(trial.last, parameters)
    assert [epoch["train_loss"] for epoch in trial.epochs] == pytest.approx(losses, rel=1e-6)
    model = model_of(trial.last)
    assert trial.epochs[-1]["val_error"] == error_percent(model, digits.val_x, digits.val_y)


def test_dropout_and_label_noise_leave_weights_order_and_global_state_alone(digits):
    changed = QUICK.updated({"dropout": 0.1, "label_noise": 0.1})
    before = torch.get_rng_state()
    plain, noisy, again = run(digits, seed=2), run(digits, changed, seed=2), run(digits, changed, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(plain.initial, noisy.initial)
    assert not equal(plain.last, noisy.last)
    assert equal(noisy.last, again.last)


def test_arms_of_a_seed_see_the_same_masks_and_wrong_labels(digits, monkeypatch):
    seen = []
    original = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional, "cross_entropy", lambda x, y: (seen.append((x.detach(), y)), original(x, y))[1]
    )
    settings = QUICK.updated({"dropout": 0.2, "label_noise": 0.2, "epochs": 2})
    # A factor of 0 at every step: the weights stay, so outputs differ between steps by batch and mask alone.
    still = Perturbation(Constant(0.0), "all", "step")
    runs = []
    for arm in (Arm("still", still), Arm("also still", [still, methods.leap(0.5)])):
        seen.clear()
        train_mlp(Trial(arm, 3), settings, digits, widths=(64, 16, 10))
        runs.append(list(seen))
    for (x, y), (x2, y2) in zip(*runs, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_flatness_of_a_model_with_dropout_is_that_without_it(digits):
    settings = QUICK.updated({"dropout": 0.5, "epochs": 1})
    flatness = FlatnessSettings(max_batches=1, max_iter=3, radii=(0.1,), directions=2)
    first, second = (Trial(Arm("vanilla"), 3, flatness=flatness) for _ in range(2))
    for trial in (first, second):
        train_mlp(trial, settings, digits, widths=(64, 16, 10))
    assert first.flatness.missing == {}
    assert first.flatness.values == second.flatness.values


# Metrics


def test_train_loss_is_the_mean_over_examples(digits):
    # A rate too small to change a bit: the loss of the epoch is the loss of the initial weights.
    trial = run(digits, QUICK.updated({"learning_rate": 1e-30}))
    model = build_mlp((64, 16, 10))
    with torch.no_grad():
        for p, initial in zip(model.parameters(), trial.initial, strict=True):
            p.copy_(initial)
        expected = torch.nn.functional.cross_entropy(model(digits.train_x), digits.train_y).item()
        error = (model(digits.val_x).argmax(1) != digits.val_y).sum().item() / 359 * 100
    assert trial.epochs[0]["train_loss"] == pytest.approx(expected, rel=1e-6)
    assert trial.epochs[0]["val_error"] == pytest.approx(error, rel=1e-12)


def test_error_is_in_percent():
    outputs = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for batch_size in (None, 1, 2, 5):
        error = error_percent(torch.nn.Identity(), outputs, torch.tensor([0, 1, 1]), batch_size)
        assert error == pytest.approx(100 / 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_no_error_rate(value):
    outputs = torch.tensor([[1.0, 0.0], [value, 0.0]])
    assert math.isnan(error_percent(torch.nn.Identity(), outputs, torch.tensor([0, 0])))


def test_divergence_is_reported_as_it_is(digits):
    trial = run(digits, QUICK.updated({"learning_rate": 1e20}))
    assert len(trial.epochs) == 3
    for metric in ("train_loss", "val_error", "test_error"):
        assert math.isnan(trial.epochs[-1][metric])


def test_seconds_are_those_of_training_alone(digits, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(running.time, "perf_counter", lambda: clock[0])

    class Tick(torch.autograd.Function):
        """A second for every backward pass."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            clock[0] += 1
            return gradient

    original = torch.nn.functional.cross_entropy
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", lambda x, y: Tick.apply(original(x, y)))

    def slow_evaluation(*args):
        clock[0] += 1000
        return error_percent(*args)

    monkeypatch.setattr(classifier, "error_percent", slow_evaluation)
    assert [epoch["seconds"] for epoch in run(digits).epochs] == [15, 15, 15]


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs = 0: input should be greater than or equal to 1"),
        ({"epochs": 1.5}, r"epochs = 1\.5: input should be a valid integer"),
        ({"batch_size": 0}, "batch_size = 0: input should be greater than or equal to 1"),
        ({"learning_rate": 0}, "learning_rate = 0: input should be greater than 0"),
        ({"learning_rate": math.nan}, "learning_rate = nan: input should be a finite number"),
        ({"learning_rate": "fast"}, "learning_rate = 'fast': input should be a valid number"),
        ({"momentum": 1}, "momentum = 1: input should be less than 1"),
        ({"momentum": -0.1}, r"momentum = -0\.1: input should be greater than or equal to 0"),
        ({"weight_decay": -1}, "weight_decay = -1: input should be greater than or equal to 0"),
        ({"optimizer": "sdg"}, "optimizer = 'sdg': input should be 'sgd', 'nesterov', .* or 'adagrad'"),
        ({"schedule": "warm"}, "schedule = 'warm': input should be 'constant', 'cosine', .* or 'warm-restarts'"),
        ({"optimizer": "adagrad", "momentum": 0.9}, r"momentum = 0\.9: adagrad has no momentum: leave it away"),
        ({"optimizer": "nesterov", "momentum": 0}, "momentum = 0: nesterov without momentum is plain sgd"),
        ({"label_noise": 1}, "label_noise = 1: input should be less than 1"),
        ({"dropout": 1}, "dropout = 1: input should be less than 1"),
        ({"device": "tpu"}, "device = 'tpu': input should be 'cpu' or 'cuda'"),
        ({"learning_rat": 1}, "no setting 'learning_rat', did you mean 'learning_rate'"),
        ({"zzz": 1}, "no setting 'zzz'; The settings are epochs, batch_size, learning_rate"),
        ({"epochs": 0, "momentum": 2}, "epochs = 0: .*; momentum = 2: "),
    ],
)
def test_wrong_settings(changes, message):
    with pytest.raises(SettingsError, match=message) as caught:
        QUICK.updated(changes)
    assert "\n" not in str(caught.value)


def test_settings_are_frozen_and_updated_leaves_the_original():
    assert QUICK.updated({"epochs": "7"}) == MlpSettings(epochs=7, batch_size=64, learning_rate=0.05)
    assert QUICK.epochs == 3
    with pytest.raises(ValueError, match="frozen"):
        QUICK.epochs = 4


def test_unknown_setting_is_refused_at_construction():
    with pytest.raises(ValueError, match="extra"):
        Settings(epochs=1, batch_size=1, learning_rate=1, lr=1)


def test_task_that_cannot_honour_a_setting_has_no_such_setting():
    # A task's own class of settings says what it can do: what only others can is an unknown name.
    for setting in ("label_noise", "dropout"):
        with pytest.raises(SettingsError, match=f"there is no setting '{setting}'"):
            Settings(epochs=1, batch_size=1, learning_rate=1).updated({setting: 0.1})


def test_cuda_that_is_not_there(digits, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=r"device = 'cuda', but torch .* sees no CUDA device: use device = 'cpu'"):
        run(digits, QUICK.updated({"device": "cuda"}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_starts_from_the_same_weights_in_the_same_order(digits):
    state = torch.cuda.get_rng_state()
    cpu, cuda = run(digits), run(digits, QUICK.updated({"device": "cuda"}))
    assert equal(cpu.initial, [p.cpu() for p in cuda.initial])
    for here, there in zip(cpu.metrics, cuda.metrics, strict=True):
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-3)
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_task_can_be_sent_to_another_process():
    task = get_task("digits-mlp")
    copy = pickle.loads(pickle.dumps(task))
    assert (copy.name, copy.settings, copy.load) == (task.name, task.settings, task.load)
    assert (copy.train.func, copy.train.keywords) == (task.train.func, task.train.keywords)

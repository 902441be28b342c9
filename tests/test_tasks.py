"""The built-in tasks: one seed decides a trial, settings are checked, metrics are what they say."""

import math
import pickle
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from flatter import methods
from flatter.study.arms import Arm
from flatter.study.data import Classification
from flatter.study.tasks import TASKS, Settings, SettingsError, UnknownTaskError, get_task, mlp
from flatter.study.tasks.mlp import build_mlp, error_percent, train_mlp
from flatter.study.tasks.optimization import build_optimizer
from flatter.study.trial import Trial

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
QUICK = Settings(epochs=3, batch_size=64, learning_rate=0.05)


class FakeTrial:
    """What a trial does to a training function, without a perturbation; keeps what it sees."""

    def __init__(self, seed=0):
        self.seed = seed
        self.epochs = []
        self.rates = []
        self.steps = 0

    def attach(self, optimizer, *, steps_per_epoch, epochs, scheduler=None, interval="epoch"):
        self.optimizer, self.steps_per_epoch, self.planned_epochs, self.interval = (
            optimizer,
            steps_per_epoch,
            epochs,
            interval,
        )
        self.initial = self.parameters()
        optimizer.register_step_post_hook(self._after_step)
        self.scheduler = scheduler(optimizer) if scheduler else LambdaLR(optimizer, lambda epoch: 1.0)
        return self.scheduler

    def _after_step(self, optimizer, args, kwargs):
        self.steps += 1

    def report(self, *, seconds, **metrics):
        self.epochs.append({"seconds": seconds, **metrics})
        self.rates.append(self.scheduler.get_last_lr()[0])
        self.last = self.parameters()

    def measure_flatness(self, model, loss, data):
        self.measured = [(tuple(x.shape), len(y)) for x, y in data]

    def parameters(self):
        return [p.detach().clone() for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def metrics(self):
        return [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in self.epochs]


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


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Tasks


def test_names_and_what_is_judged():
    assert list(TASKS) == [
        "digits-mlp",
        *(f"mnist-mlp-{n}" for n in (3, 4, 6, 8, 10)),
        *(f"{data}-{network}" for data in ("cora", "citeseer", "pubmed") for network in ("gcn", "gat", "gin", "sage")),
    ]
    for name, task in TASKS.items():
        assert get_task(name) is task
        assert (task.name, task.metric, task.unit, task.better) == (name, "test_error", "%", "lower")


def test_unknown_task_names_the_closest_and_all():
    with pytest.raises(UnknownTaskError, match=r"no task 'mnist-mlp3': did you mean 'mnist-mlp-3'\?") as caught:
        get_task("mnist-mlp3")
    for name in TASKS:
        assert name in str(caught.value)
    with pytest.raises(UnknownTaskError, match=r"no task 'zzz': The tasks are digits-mlp, "):
        get_task("zzz")


@pytest.mark.parametrize(
    ("name", "widths", "parameters"),
    [
        ("digits-mlp", (64, 64, 10), 4_810),
        # LEAP, Table 6.
        ("mnist-mlp-3", (784, 100, 10), 79_510),
        ("mnist-mlp-4", (784, 256, 100, 10), 227_670),
        ("mnist-mlp-6", (784, 256, 128, 64, 32, 10), 244_522),
        ("mnist-mlp-8", (784, 256, 128, 64, 64, 32, 32, 10), 249_738),
        ("mnist-mlp-10", (784, 256, 128, 64, 64, 32, 32, 16, 16, 10), 250_378),
    ],
)
def test_widths_and_parameter_counts(name, widths, parameters):
    features, classes = widths[0], widths[-1]
    x, y = torch.zeros(4, features), torch.zeros(4, dtype=torch.int64)
    data = Classification(train_x=x, train_y=y, val_x=x, val_y=y, test_x=x, test_y=y, classes=classes)
    trial = FakeTrial()
    get_task(name).train(trial, QUICK, data)
    weights = [tuple(p.shape) for p in trial.initial if p.ndim == 2]
    assert weights == [(outputs, inputs) for inputs, outputs in pairwise(widths)]
    assert sum(p.numel() for p in trial.initial) == parameters


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


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no MNIST in ../shared/data beside the checkout")
def test_mnist_task_loads_and_learns():
    task = get_task("mnist-mlp-3")
    data = task.load(SHARED)
    trial = FakeTrial()
    task.train(trial, task.settings.updated({"epochs": 1}), data)
    assert trial.steps == 391
    assert trial.epochs[0]["test_error"] < 10


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

    initialized = mlp._initialized
    monkeypatch.setattr(mlp, "_initialized", lambda widths, seed: initialized(widths, 0))
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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.001}),
        ("adam", {"lr": 0.05, "betas": (0.8, 0.999), "weight_decay": 0.001, "decoupled_weight_decay": False}),
        ("adamw", {"lr": 0.05, "betas": (0.8, 0.999), "weight_decay": 0.001, "decoupled_weight_decay": True}),
    ],
)
def test_optimizers_use_every_setting(name, expected):
    settings = QUICK.updated({"optimizer": name, "momentum": 0.8, "weight_decay": 0.001})
    group = build_optimizer(settings, build_mlp((2, 2)).parameters()).param_groups[0]
    assert {key: group[key] for key in expected} == expected


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
    assert error_percent(torch.nn.Identity(), outputs, torch.tensor([0, 1, 1])) == pytest.approx(100 / 3)


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
    monkeypatch.setattr(mlp.time, "perf_counter", lambda: clock[0])

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

    monkeypatch.setattr(mlp, "error_percent", slow_evaluation)
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
        ({"optimizer": "sdg"}, "optimizer = 'sdg': input should be 'sgd', 'adam' or 'adamw'"),
        ({"schedule": "warm"}, "schedule = 'warm': input should be 'constant', 'cosine' or 'step'"),
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
    assert QUICK.updated({"epochs": "7"}) == Settings(epochs=7, batch_size=64, learning_rate=0.05)
    assert QUICK.epochs == 3
    with pytest.raises(ValueError, match="frozen"):
        QUICK.epochs = 4


def test_unknown_setting_is_refused_at_construction():
    with pytest.raises(ValueError, match="extra"):
        Settings(epochs=1, batch_size=1, learning_rate=1, lr=1)


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


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_task_can_be_sent_to_another_process(task):
    copy = pickle.loads(pickle.dumps(task))
    assert (copy.name, copy.settings, copy.load) == (task.name, task.settings, task.load)
    assert (copy.train.func, copy.train.keywords) == (task.train.func, task.train.keywords)

"""MLPs and the LSTM: their sizes, what the LSTM computes and begins with, that both learn, and the LSTM's flatness."""

import math
import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fake_trial import FakeTrial, equal
from flatwise.study.arms import Arm
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.registry import get_task
from flatwise.study.task import SettingsError
from flatwise.study.tasks.classification import Classification
from flatwise.study.trial import Trial
from flatwise_papers.tasks import classifiers as text
from flatwise_papers.tasks.classifiers import MLP_TASKS, SentimentLstm, TextSettings, train_lstm

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"

QUICK = TextSettings(epochs=2, batch_size=32, learning_rate=0.01, optimizer="adam", dropout=0.2)
WORDS, LENGTH = 30, 12


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(text, "VOCABULARY_SIZE", WORDS)
    monkeypatch.setattr(text, "WIDTH", 16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    """A review is positive if the word 2 comes after the word 3: a bag of words cannot tell."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(4, WORDS, (600, LENGTH), generator=generator)
    places = torch.stack([torch.randperm(LENGTH, generator=generator)[:2] for _ in range(600)])
    x.scatter_(1, places, torch.tensor([2, 3]).expand(600, 2))
    y = (places[:, 0] > places[:, 1]).long()
    return Classification(x[:400], y[:400], x[400:500], y[400:500], x[500:], y[500:], classes=2)


def run(data, settings=QUICK, seed=0):
    trial = FakeTrial(seed)
    train_lstm(trial, settings, data)
    return trial


def build(dropout=0.0, words=WORDS, width=16):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SentimentLstm(words, width, dropout, torch.Generator().manual_seed(1))


# MLPs on MNIST


@pytest.mark.parametrize(
    ("name", "widths", "parameters"),
    [
        # LEAP, Table 6.
        ("mnist-mlp-3", (784, 100, 10), 79_510),
        ("mnist-mlp-4", (784, 256, 100, 10), 227_670),
        ("mnist-mlp-6", (784, 256, 128, 64, 32, 10), 244_522),
        ("mnist-mlp-8", (784, 256, 128, 64, 64, 32, 32, 10), 249_738),
        ("mnist-mlp-10", (784, 256, 128, 64, 64, 32, 32, 16, 16, 10), 250_378),
        # LRD, section IV-A: two hidden layers of 1000.
        ("mnist-fcnet", (784, 1000, 1000, 10), 1_796_010),
    ],
)
def test_widths_and_parameter_counts(name, widths, parameters):
    task = get_task(name)
    assert (task.name, task.metric, task.unit, task.better) == (name, "test_error", "%", "lower")
    x, y = torch.zeros(4, widths[0]), torch.zeros(4, dtype=torch.int64)
    data = Classification(train_x=x, train_y=y, val_x=x, val_y=y, test_x=x, test_y=y, classes=widths[-1])
    trial = FakeTrial()
    task.train(trial, task.settings.updated({"epochs": 1}), data)
    weights = [tuple(p.shape) for p in trial.initial if p.ndim == 2]
    assert weights == [(outputs, inputs) for inputs, outputs in pairwise(widths)]
    assert sum(p.numel() for p in trial.initial) == parameters


@pytest.mark.skipif(not (SHARED / "mnist").is_dir(), reason="no MNIST in ../shared/data beside the checkout")
def test_mnist_task_loads_and_learns():
    task = get_task("mnist-mlp-3")
    data = task.load(SHARED)
    trial = FakeTrial()
    task.train(trial, task.settings.updated({"epochs": 1}), data)
    assert trial.steps == 391
    assert trial.epochs[0]["test_error"] < 10


@pytest.mark.parametrize("task", MLP_TASKS, ids=[task.name for task in MLP_TASKS])
def test_task_can_be_sent_to_another_process(task):
    copy = pickle.loads(pickle.dumps(task))
    assert (copy.name, copy.settings, copy.load) == (task.name, task.settings, task.load)
    assert (copy.train.func, copy.train.keywords) == (task.train.func, task.train.keywords)


# The LSTM


def test_parameter_count_of_the_task():
    words, width = 20_000, 128
    expected = words * width + 4 * width * (width + width + 2) + width + 1
    assert expected == 2_692_225
    assert sum(p.numel() for p in build(words=words, width=width).parameters()) == expected


def test_settings_of_the_task():
    task = get_task("imdb-lstm")
    assert (task.metric, task.unit, task.better) == ("test_error", "%", "lower")
    s = task.settings
    assert (s.optimizer, s.learning_rate, s.batch_size, s.epochs, s.dropout) == ("adam", 1e-3, 32, 15, 0.2)
    with pytest.raises(SettingsError, match="dropout = 1: "):
        s.updated({"dropout": 1})


def test_initialization_is_kerass():
    parameters = dict(build().named_parameters())
    assert parameters["embedding.weight"].abs().max() <= 0.05
    assert parameters["embedding.weight"].std().item() == pytest.approx(0.1 / math.sqrt(12), rel=0.1)
    recurrent = parameters["lstm.weight_hh_l0"]
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(16))
    assert parameters["lstm.weight_ih_l0"].abs().max() <= math.sqrt(6 / (16 + 64))
    forget = torch.zeros(64)
    forget[16:32] = 1
    assert torch.equal(parameters["lstm.bias_ih_l0"], forget)
    assert torch.equal(parameters["lstm.bias_hh_l0"], torch.zeros(64))
    assert torch.equal(parameters["output.bias"], torch.zeros(1))


def lstm_by_hand(model, embedded):
    p = dict(model.lstm.named_parameters())
    h = c = torch.zeros(len(embedded), 16)
    for t in range(embedded.shape[1]):
        gates = embedded[:, t] @ p["weight_ih_l0"].T + p["bias_ih_l0"] + h @ p["weight_hh_l0"].T + p["bias_hh_l0"]
        i, f, g, o = gates.chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h @ model.output.weight.T + model.output.bias


def test_outputs_are_those_of_the_equations_and_the_loss_that_of_a_sigmoid(data):
    model = build(dropout=0.5).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # outputs well away from 0
    x, y = data.train_x[:7], data.train_y[:7]
    logit = lstm_by_hand(model, model.embedding(x))
    for outputs in (model(x), model(x).detach()):
        torch.testing.assert_close(outputs, torch.cat([torch.zeros(7, 1), logit], dim=1), rtol=1e-4, atol=1e-6)
    binary = F.binary_cross_entropy_with_logits(logit[:, 0], y.float())
    torch.testing.assert_close(F.cross_entropy(model(x), y), binary)


def test_one_dropout_mask_for_all_words_of_a_review(data):
    model = build(dropout=0.5).train()
    seen = []
    model.lstm.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    x = data.train_x[:50]
    model(x)
    ratio = seen[0] / model.embedding(x).detach()
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio))
    assert ratio[:, 0].round().unique().tolist() == [0, 2]
    assert not torch.equal(ratio[0], ratio[1])  # another one for every review
    model.eval()
    model(x)
    assert torch.equal(seen[1], model.embedding(x).detach())


def test_learns_the_order_of_words(data):
    trial = run(data, QUICK.updated({"epochs": 20}))
    assert trial.epochs[-1]["test_error"] < 10
    assert trial.epochs[-1]["val_error"] < 10
    assert trial.steps == 20 * 13


def test_one_seed_one_result_and_no_global_state_moves(data):
    state = torch.get_rng_state()
    first, second, other = run(data, seed=1), run(data, seed=1), run(data, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.metrics == second.metrics
    assert equal(first.last, second.last)
    assert not equal(first.initial, other.initial)


def test_every_setting_is_used(data):
    plain = run(data, seed=1)
    for changes in ({"dropout": 0.0}, {"label_noise": 0.2}, {"gradient_centralization": True}, {"momentum": 0.5}):
        changed = run(data, QUICK.updated(changes), seed=1)
        assert equal(changed.initial, plain.initial)
        assert not equal(changed.last, plain.last)


def test_evaluation_in_parts_is_the_evaluation(data, monkeypatch):
    whole = run(data)
    monkeypatch.setattr(text, "EVALUATION_BATCH", 7)
    assert run(data).metrics == whole.metrics


def test_tuning_reports_no_test_error(data):
    assert "test_error" not in run(data.without_test()).epochs[-1]


def test_flatness_is_measured(data):
    flatness = FlatnessSettings(max_batches=1, max_iter=3, radii=(0.1,), directions=2)
    trial = Trial(Arm("vanilla"), 0, flatness=flatness)
    train_lstm(trial, QUICK.updated({"epochs": 1}), replace(data, train_x=data.train_x[:64], train_y=data.train_y[:64]))
    assert trial.flatness.missing == {}
    assert trial.flatness.values["loss"] < 1

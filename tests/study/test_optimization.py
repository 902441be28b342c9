"""Settings to optimizers: every setting is used, every default is sensible; and LRD's comparators against formulas."""

from typing import get_args

import pytest
import torch

from flatwise._attach import perturb
from flatwise.distributions import Constant
from flatwise.perturbation import Perturbation
from flatwise.study.task import USUAL_MOMENTUM, OptimizerName, Settings
from flatwise.study.tasks.classification import build_mlp
from flatwise.study.tasks.training import Dropout, build_optimizer, centralize_gradients, disturb_labels

PLAIN = Settings(epochs=1, batch_size=1, learning_rate=0.05)
OPTIMIZERS = list(get_args(OptimizerName))


def group(**changes):
    return build_optimizer(PLAIN.updated(changes), build_mlp((2, 2)).parameters()).param_groups[0]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Optimizers


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "nesterov": False}),
        ("nesterov", torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.8, "alpha": 0.99}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.999), "amsgrad": False, "decoupled_weight_decay": False}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.8, 0.999), "amsgrad": True, "decoupled_weight_decay": False}),
        ("radam", torch.optim.RAdam, {"betas": (0.8, 0.999), "decoupled_weight_decay": False}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.999), "decoupled_weight_decay": True}),
    ],
)
def test_every_setting_is_used(name, kind, expected):
    settings = PLAIN.updated({"optimizer": name, "momentum": 0.8, "weight_decay": 0.001})
    optimizer = build_optimizer(settings, build_mlp((2, 2)).parameters())
    assert type(optimizer) is kind
    expected = {"lr": 0.05, "weight_decay": 0.001, **expected}
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


def test_adagrad_has_all_but_momentum():
    adagrad = group(optimizer="adagrad", weight_decay=0.001)
    assert (adagrad["lr"], adagrad["weight_decay"]) == (0.05, 0.001)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_can_be_exchanged_and_have_the_usual_momentum(name):
    used = group(optimizer=name)
    usual = {"rmsprop": 0.0, "adagrad": None}.get(name, 0.9)
    assert used["betas"][0] == usual if "betas" in used else used.get("momentum") == usual
    assert list(USUAL_MOMENTUM) == OPTIMIZERS


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_can_be_perturbed_per_element(name):
    # With factor 0 the bits stay: so the noise reaches the whole update, weight decay and centralization included.
    settings = PLAIN.updated({"optimizer": name, "weight_decay": 0.1, "gradient_centralization": True})
    model = build_mlp((4, 3))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(settings, model.parameters())
    perturb(optimizer, Perturbation(Constant(0.0), "element", "step"), seed=0)
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


# Gradient centralization


def test_centralized_gradients_against_the_formula():
    shapes = [(3, 4), (3, 2, 5, 5), (7,), ()]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator())) for shape in shapes]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator(1))
    given = [p.grad.clone() for p in parameters]
    centralize_gradients(optimizer)
    torch.testing.assert_close(parameters[0].grad, given[0] - given[0].mean(1, keepdim=True))
    torch.testing.assert_close(parameters[1].grad, given[1] - given[1].mean((1, 2, 3), keepdim=True))
    for p, gradient in zip(parameters[2:], given[2:], strict=True):
        assert torch.equal(p.grad, gradient)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_centralization_is_that_of_the_gradient_with_l2_as_in_the_authors_code(name):
    """Five steps against the same optimizer, fed Φ(g + λw) by hand; the decoupled decay stays outside of Φ."""
    decay = 0.1
    decoupled = name == "adamw"
    start = torch.randn(3, 4, generator=generator(), dtype=torch.float64)
    one, other = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = PLAIN.updated({"optimizer": name})
    centralized = build_optimizer(settings.updated({"weight_decay": decay, "gradient_centralization": True}), [one])
    by_hand = build_optimizer(settings.updated({"weight_decay": decay if decoupled else 0.0}), [other])
    for step in range(5):
        gradient = torch.randn(3, 4, generator=generator(step), dtype=torch.float64)
        one.grad = gradient.clone()
        whole = gradient if decoupled else gradient + decay * other.detach()
        other.grad = whole - whole.mean(1, keepdim=True)
        centralized.step()
        by_hand.step()
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    if name == "sgd":  # the known property: the mean of each row of weights never moves
        torch.testing.assert_close(one.mean(1), start.mean(1))


def test_parameters_without_a_gradient_are_left_out():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = build_optimizer(PLAIN.updated({"gradient_centralization": True, "weight_decay": 1.0}), [parameter])
    optimizer.step()
    assert parameter.grad is None
    assert torch.equal(parameter, torch.ones(2, 2))


# Label noise


def test_disturbed_labels_are_other_classes_uniformly():
    labels = torch.arange(100_000) % 5
    disturbed = disturb_labels(labels, 0.2, 5, generator())
    shifts = torch.bincount((disturbed - labels) % 5, minlength=5) / len(labels)
    assert shifts[0].item() == pytest.approx(0.8, abs=0.006)  # five standard deviations
    assert shifts[1:].tolist() == pytest.approx([0.05] * 4, abs=0.0035)
    assert (disturbed.min(), disturbed.max(), disturbed.dtype) == (0, 4, torch.int64)


def test_every_label_is_wrong_with_probability_one():
    labels = torch.arange(1000) % 2
    assert torch.equal(disturb_labels(labels, 1.0, 2, generator()), 1 - labels)


def test_labels_are_not_changed_in_place_and_nothing_is_drawn_without_noise():
    labels, g = torch.arange(1000) % 10, generator()
    before, state = labels.clone(), g.get_state()
    assert torch.equal(disturb_labels(labels, 0.0, 10, g), before)
    assert torch.equal(g.get_state(), state)
    disturb_labels(labels, 0.5, 10, g)
    assert torch.equal(labels, before)


# Dropout


def test_dropout_drops_and_rescales_in_training_mode_alone():
    dropout = Dropout(0.1, generator())
    x = torch.ones(100_000, requires_grad=True)
    state = torch.get_rng_state()
    y = dropout(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert (y == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert y.detach().unique().tolist() == pytest.approx([0, 1 / 0.9])
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the same mask on the way back
    assert not torch.equal(dropout(x), y)  # a new mask at every call
    dropout.eval()
    assert dropout(x) is x

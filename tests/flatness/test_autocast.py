"""Under an outer autocast the losses are those of the weights that were placed, not of the casts of earlier ones."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatwise import flatness
from flatwise.flatness import BatchLoss, measuring

CE = nn.CrossEntropyLoss()


def casting(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def example():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, y = torch.randn(20, 4), torch.randint(0, 3, (20,))
    return model, [(x[:12], y[:12]), (x[12:], y[12:])]


def fresh_loss(model, weights, data):
    """The loss of a new model with these weights."""
    new = copy.deepcopy(model)
    nn.utils.vector_to_parameters(weights.clone(), new.parameters())
    with torch.no_grad(), casting():
        return sum(len(x) * CE(new(x), y).item() for x, y in data) / sum(len(x) for x, y in data)


def weights_of(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


class Casting(nn.Module):
    """A model with an autocast of its own, whose cache is on."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return self.model(x)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("within", [False, True], ids=["outer", "outer and within"])
def test_paths_are_those_of_fresh_models(within, cached):
    model, data = example()
    torch.manual_seed(1)
    direction = torch.randn(weights_of(model).shape)
    direction /= direction.norm()
    distances = [-2.0, -0.5, 0, 0.5, 2.0]
    expected = [fresh_loss(model, weights_of(model) + a * direction, data) for a in distances]
    with casting(cache_enabled=cached):
        model(data[0][0])  # the user's own casts are in the cache
        curves = flatness.loss_along(Casting(model) if within else model, CE, data, [direction], distances)
    assert curves.curve().losses[0] == pytest.approx(expected, rel=1e-6)
    assert len(set(expected)) == 5
    # An autocast in the block, around the calls.
    with measuring(Casting(model) if within else model, CE, data) as objective, casting(cache_enabled=cached):
        own = objective.vector()
        losses = [objective.loss(own + a * direction) for a in distances]
        assert losses == pytest.approx(expected, rel=1e-6)
        assert objective.loss() == pytest.approx(expected[2], rel=1e-6)


def test_an_autocast_in_the_loss_and_in_the_model_alone():
    model, data = example()
    torch.manual_seed(1)
    direction = torch.randn(weights_of(model).shape)
    expected = [fresh_loss(model, weights_of(model) + a * direction / direction.norm(), data) for a in (0.5, 1)]

    def loss(model, batch):
        with casting():
            return CE(model(batch[0]), batch[1])

    for measured, function in ((model, BatchLoss(loss)), (Casting(model), lambda o, t: CE(o.float(), t))):
        for outer in (nullcontext(), casting()):
            with outer:
                curve = flatness.loss_along(measured, function, data, [direction], [0.5, 1]).curve()
            assert curve.losses[0] == pytest.approx(expected, rel=1e-6)


def test_surfaces_and_level_sets_are_not_flat():
    model, data = example()
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    third = copy.deepcopy(model)
    third[0].weight.data.mul_(-1)
    models = {"a": model, "b": other, "c": third}
    plain = flatness.plane_surface(models, CE, data, xs=[0, 1], ys=[0, 1])
    slope = flatness.average_slope(model, CE, data, 3.0, directions=2)
    with casting():
        surface = flatness.plane_surface(models, CE, data, xs=[0, 1], ys=[0, 1])
        cast = flatness.average_slope(model, CE, data, 3.0, directions=2)
        eigenvectors = flatness.loss_surface(model, CE, data, "eigenvectors", xs=[0, 1], ys=[0, 1])
        fooling = flatness.fooling_path(model, CE, data)
        noise = flatness.input_noise_paths(model, CE, data, directions=1)
    for one, two in zip(plain.grids[0].losses, surface.grids[0].losses, strict=True):
        assert one == pytest.approx(two, rel=0.02) and one != two
    assert cast.entry().slopes == pytest.approx(slope.entry().slopes, rel=0.02)
    assert len({loss for row in eigenvectors.grids[0].losses for loss in row}) == 4
    assert len(set(fooling.curve().losses[0])) == len(set(noise.curve().losses[0])) == 11


@pytest.mark.parametrize("single", [True, False])
def test_derivatives_are_those_of_the_cast_model(single):
    """Against central differences of the gradient of a model that is built anew, and against float32."""
    model, data = example()
    if single:
        data = data[0]
    batches = [data] if single else data
    samples = sum(len(x) for x, _ in batches)
    with casting():
        norm = flatness.gradient_norm(model, CE, data)
        with measuring(model, CE, data) as objective:
            own = objective.vector()
            gradient = objective.gradient()[1]
            elsewhere = objective.gradient(own + 0.5)[1]
            hessian = objective.hvp(torch.eye(objective.size))
            again = objective.hvp(torch.eye(objective.size))
            hessian_elsewhere = objective.hvp(torch.eye(objective.size), own + 0.5)
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
    for weights, found in ((own, gradient), (own + 0.5, elsewhere)):
        new = copy.deepcopy(model)
        nn.utils.vector_to_parameters(weights.clone(), new.parameters())
        expected = torch.zeros_like(own)
        for x, y in batches:
            with casting():
                value = CE(new(x), y)
            parts = torch.autograd.grad(value, list(new.parameters()))
            expected += torch.cat([part.flatten() for part in parts]) * len(x) / samples
        torch.testing.assert_close(found, expected)
    assert norm == pytest.approx(gradient.norm().item(), rel=1e-6)
    with measuring(model, CE, data, dtype=torch.float64) as objective:
        exact = objective.hvp(torch.eye(objective.size))
        exact_elsewhere = objective.hvp(torch.eye(objective.size), own + 0.5)
    assert torch.equal(hessian, again)
    for cast, true in ((hessian, exact), (hessian_elsewhere, exact_elsewhere)):
        assert (cast - true).norm() < 0.02 * true.norm()
    assert (hessian - hessian_elsewhere).norm() > 0.1 * hessian.norm()


def test_the_laboratorys_own_arithmetic_is_not_cast():
    """Eigenvectors that are combined in bfloat16 are not orthogonal to more than three digits."""
    model, data = example()
    x, y = data[0]
    exact = flatness.top_eigenvalues(model, CE, (x, y), 3, vectors=True, dtype=torch.float64)
    with casting():
        found = flatness.top_eigenvalues(model, CE, (x, y), 3, vectors=True, tol=1e-2)
        trace = flatness.trace(model, CE, (x, y), tol=0, max_probes=20)
    torch.testing.assert_close(found.vectors @ found.vectors.T, torch.eye(3), rtol=0, atol=1e-5)
    assert found.values == pytest.approx(exact.values, rel=0.02)
    plain = flatness.trace(model, CE, (x, y), tol=0, max_probes=20)
    assert trace.samples == pytest.approx(plain.samples, abs=0.1)


def test_the_model_under_no_grad_first():
    """A cast that was kept without its graph would take the gradient away."""
    model, data = example()

    def loss(model, batch):
        with torch.no_grad():
            scale = model(batch[0]).abs().max().clamp_min(1)
        return CE(model(batch[0]) / scale, batch[1])

    plain = flatness.gradient_norm(model, BatchLoss(loss), data)
    with casting():
        assert flatness.gradient_norm(model, BatchLoss(loss), data) == pytest.approx(plain, rel=0.02)


def test_the_users_cache_is_on_again_and_right():
    model, data = example()
    x, y = data[0]
    with casting():
        before = model(x)
        flatness.gradient_norm(model, CE, data)
        assert torch.is_autocast_cache_enabled()
        assert torch.equal(model(x), before)
        F.cross_entropy(before, y).backward()
    assert model[0].weight.grad is not None


def test_another_default_device_and_dtype_change_nothing():
    """Every tensor of the instruments names its device: on the meta device it would have no values."""
    model, data = example()

    def measured():
        return (
            flatness.top_eigenvalues(model, CE, data, 3),
            flatness.trace(model, CE, data, max_probes=12),
            flatness.random_weight_paths(model, CE, data, directions=2, distances=[1]),
            flatness.input_noise_paths(model, CE, data, directions=1),
            flatness.validation_paths(model, CE, data, data[0][0], trials=1),
            flatness.fooling_path(model, CE, data),
            flatness.loss_surface(model, CE, data, xs=[0, 1], ys=[0, 1]),
        )

    expected = measured()
    with torch.device("meta"):
        assert str(measured()) == str(expected)
    torch.set_default_dtype(torch.float64)
    try:
        assert str(measured()) == str(expected)
    finally:
        torch.set_default_dtype(torch.float32)

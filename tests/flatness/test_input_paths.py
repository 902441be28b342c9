"""Loss against perturbations of the inputs, on linear models, whose loss is known everywhere."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatwise import flatness
from flatwise.flatness import BatchLoss, FlatnessError
from flatwise.flatness.input_paths import unit_noise

MSE = nn.MSELoss()


def approx(values):
    return pytest.approx(values, rel=1e-12)


def linear(seed=0, samples=23):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 2, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 1, dtype=torch.float64))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(1, 6, generator=generator))
    return model, x, y


def batches(x, y):
    return [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]  # the last one is smaller


# Noise.


def test_the_noise_has_norm_1_and_no_preferred_direction():
    noise = torch.stack(unit_noise(torch.Size([2, 3]), 4000, 0))
    assert noise.shape == (4000, 2, 3)
    torch.testing.assert_close(noise.flatten(1).norm(dim=1), torch.ones(4000).double())
    assert noise.mean(0).abs().max() < 5 / math.sqrt(6 * 4000)
    torch.testing.assert_close(noise.square().mean(0), torch.full((2, 3), 1 / 6).double(), atol=0.01, rtol=0)


def test_a_linear_loss_has_the_slope_of_its_gradient_along_the_noise():
    model, x, y = linear()
    paths = flatness.input_noise_paths(
        model, lambda output, target: output.mean(), batches(x, y), directions=3, distances=[-2, 0, 5], seed=4
    )
    slopes = [float(model[1].weight.detach() @ noise.flatten()) for noise in unit_noise(x.shape[1:], 3, 4)]
    center = model(x).mean().item()
    rows = [[center + distance * slope for distance in (-2, 0, 5)] for slope in slopes]
    assert paths.curve().center == approx(center)
    assert paths.curve().losses == tuple(approx(row) for row in rows)
    assert paths.curve().mean == approx([sum(column) / 3 for column in zip(*rows, strict=True)])
    assert len({round(slope, 9) for slope in slopes}) == 3


def test_a_quadratic_loss_is_known_at_every_distance():
    model, x, y = linear()
    paths = flatness.input_noise_paths(model, MSE, batches(x, y), directions=2, distances=[0.5, 3], seed=1)
    for noise, row in zip(unit_noise(x.shape[1:], 2, 1), paths.curve().losses, strict=True):
        assert row == approx([MSE(model(x + distance * noise), y).item() for distance in (0.5, 3)])


def test_default_distances_reach_the_mean_norm_of_the_inputs():
    model, x, y = linear()
    data = {"train": batches(x, y), "test": batches(3 * x, y)}
    paths = flatness.input_noise_paths(model, MSE, data, directions=1)
    assert len(paths.distances) == 11 and paths.distances[0] == 0
    assert paths.distances[-1] == approx(x.flatten(1).norm(dim=1).mean().item())
    assert paths.curve(data="test").mean[0] == paths.curve(data="test").center


def test_models_and_data_sets_have_the_same_noise():
    model, x, y = linear(0)
    other, _, _ = linear(1)
    together = flatness.input_noise_paths(
        {"a": model, "b": other}, MSE, {"train": batches(x, y), "test": (2 * x, y)}, distances=[1, 2]
    )
    for name, one in (("a", model), ("b", other)):
        for data, batch in (("train", (x, y)), ("test", (2 * x, y))):
            alone = flatness.input_noise_paths(one, MSE, batch, distances=[1, 2]).curve()
            for row, expected in zip(together.curve(name, data).losses, alone.losses, strict=True):
                assert row == approx(expected)


def test_the_batches_are_not_written_to_and_a_shuffling_loader_is_the_same_at_every_distance():
    model, x, y = linear()
    before = x.clone()
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    ordered = flatness.input_noise_paths(model, MSE, (x, y), directions=2, distances=[0, 1])
    shuffled = flatness.input_noise_paths(model, MSE, loader, directions=2, distances=[0, 1])
    assert shuffled.curve().losses == tuple(approx(row) for row in ordered.curve().losses)
    assert torch.equal(x, before)


class Pair(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


def test_batches_of_other_kinds():
    model, x, y = linear()
    expected = flatness.input_noise_paths(model, MSE, (x, y), directions=2)
    with_pair = BatchLoss(lambda model, batch: MSE(model(batch.image), batch.label))
    assert flatness.input_noise_paths(model, with_pair, [Pair(x, y)], directions=2) == expected
    assert flatness.input_noise_paths(model, MSE, [[x, y]], directions=2) == expected
    alone = BatchLoss(lambda model, batch: model(batch).mean())
    assert flatness.input_noise_paths(model, alone, x, directions=1, distances=[0]).curve().center == approx(
        model(x).mean().item()
    )


def test_scalars_as_samples_and_inputs_of_zeros():
    model = nn.Linear(1, 1).double()
    loss = BatchLoss(lambda model, batch: model(batch[:, None]).mean())
    path = flatness.input_noise_paths(model, loss, torch.zeros(4).double(), directions=1)
    assert path.distances[-1] == 1
    assert abs(path.curve().mean[-1] - path.curve().center) == approx(abs(model.weight.item()))


def test_dtype_and_a_loss_with_tensors_of_its_own():
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))
    weight = loss.weight
    data = (torch.randn(5, 2, 3), torch.randint(0, 3, (5,)))
    single = flatness.input_noise_paths(model, loss, data, directions=1)
    double = flatness.input_noise_paths(model, loss, data, directions=1, dtype=torch.float64)
    assert loss.weight is weight and weight.dtype == torch.float32
    assert single.curve().mean == pytest.approx(double.curve().mean, rel=1e-5)
    assert single != double


def test_losses_that_are_not_finite_are_outcomes():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(model.weight)
    data = (torch.ones(2, 1).double(), torch.zeros(2, 1).double())

    def loss(output, target):  # noise of ±1 in one feature: inputs of 0 and 2, or -1 and 3
        return output.log().mean()

    path = flatness.input_noise_paths(model, loss, data, directions=5, distances=[0, 1, 2])
    assert path.curve().center == 0
    signs = [noise.item() for noise in unit_noise(torch.Size([1]), 5, 0)]
    assert set(signs) == {1.0, -1.0}
    for sign, row in zip(signs, path.curve().losses, strict=True):
        up = [0, math.log(2), math.log(3)]
        assert row == pytest.approx(up if sign > 0 else [0, -math.inf, math.nan], nan_ok=True)
    assert path.curve().mean[1] == -math.inf and math.isnan(path.curve().mean[2])


def test_progress_and_max_batches():
    model, x, y = linear()
    calls = []
    paths = flatness.input_noise_paths(
        model, MSE, batches(x, y), directions=2, max_batches=2, progress=lambda *call: calls.append(call)
    )
    assert calls == [(i, 22) for i in range(1, 23)]
    assert paths.curve().center == approx(MSE(model(x[:20]), y[:20]).item())


# Towards validation inputs.


def test_on_the_way_to_the_nearest_validation_input():
    model, x, y = linear()
    validation = linear(5, 40)[1]
    paths = flatness.validation_paths(model, MSE, batches(x, y), validation, nearest=1, trials=2, fractions=[0, 0.5, 1])
    squares = (x.flatten(1)[:, None] - validation.flatten(1)[None]).square().sum(2)
    closest = validation[squares.argmin(1)]
    losses = [MSE(model(x + a * (closest - x)), y).item() for a in (0, 0.5, 1)]
    assert paths.curve().losses == (approx(losses), approx(losses))  # there is only one to draw
    assert paths.distances == (0.0, 0.5, 1.0)


def seen_at_the_end(x, y, validation, **options):
    """The inputs that the model sees at fraction 1, by trial, shape (trials, samples, ...)."""
    seen = []

    class Sees(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, inputs):
            seen.append(inputs.clone())
            return self.weight * inputs.mean()

    flatness.validation_paths(
        Sees(), lambda output, target: output, batches(x, y), validation, fractions=[1], **options
    )
    return torch.cat(seen[3:]).view(-1, *x.shape)  # after the three batches as they are


@pytest.mark.parametrize("chunk", [1 << 24, 300])
def test_each_trial_draws_for_each_input_from_its_ten_nearest(chunk, monkeypatch):
    monkeypatch.setattr("flatwise.flatness.input_paths.DISTANCES", chunk)
    _, x, y = linear()
    validation = linear(5, 60)[1]
    seen = seen_at_the_end(x, y, validation, trials=100)
    squares = (x.flatten(1)[:, None] - validation.flatten(1)[None]).square().sum(2)
    nearest = squares.argsort(1)[:, :10]
    counts = torch.zeros(len(x), 10)
    for trial in seen:
        index = (trial.flatten(1)[:, None] - validation.flatten(1)[None]).square().sum(2).argmin(1)
        torch.testing.assert_close(validation[index], trial)
        assert (nearest == index[:, None]).any(1).all()
        counts += nearest == index[:, None]
    assert counts.min() > 0  # each of the ten, 100 draws: missed with probability 3e-5
    chi_square = ((counts - 10) ** 2 / 10).sum().item()
    freedom = 23 * 9
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_the_draws_are_seeded_and_own():
    _, x, y = linear()
    validation = linear(5, 60)[1]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = seen_at_the_end(x, y, validation, trials=2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(seen_at_the_end(x, y, validation, trials=2, seed=0), first)
    assert not torch.equal(seen_at_the_end(x, y, validation, trials=2, seed=1), first)
    assert not torch.equal(first[0], first[1])


def test_validation_data_in_every_form_and_its_generator():
    model, x, y = linear()
    inputs, targets = linear(5, 30)[1:]
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=7, shuffle=True, generator=generator)
    paths = [
        flatness.validation_paths(model, MSE, (x, y), validation, nearest=1, trials=1)
        for validation in (inputs, (inputs, targets), [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])], loader)
    ]
    assert torch.equal(generator.get_state(), before)
    for path in paths:
        assert path.curve().mean == approx(paths[0].curve().mean)
    few = flatness.validation_paths(model, MSE, [(x, y)], [(inputs[:4],), (inputs[4:],)], nearest=1, max_batches=1)
    assert few == flatness.validation_paths(model, MSE, [(x, y)], inputs[:4], nearest=1)


def test_models_are_compared_towards_the_same_neighbours():
    a, x, y = linear(0)
    b = linear(1)[0]
    validation = linear(5, 30)[1]
    both = flatness.validation_paths({"a": a, "b": b}, MSE, {"train": (x, y)}, validation)
    assert both.curve("b").losses == flatness.validation_paths(b, MSE, (x, y), validation).curve().losses
    assert both.distances == tuple(i / 10 for i in range(11))


# What is wrong.

X = torch.ones(4, 3)
Y = torch.ones(4, 1)
BAD_DATA = {
    "empty": ([], "the data are empty"),
    "token ids": (
        (torch.ones(4, 3, dtype=torch.long), Y),
        "batch 0: the inputs must be floating-point, .* torch.int64",
    ),
    "nested": ([({"x": X}, Y)], "batch 0: the inputs must be a tensor, first in a batch .* got a dict"),
    "a dict": ([{"x": X}], "batch 0: the inputs must be a tensor, .* got a dict"),
    "shapes": ([(X, Y), (torch.ones(4, 2), Y)], r"batch 1: all samples must have one shape .* got \(2,\) after \(3,\)"),
    "NaN": ((X * math.nan, Y), "batch 0: the loss is nan at the model's own weights"),
}


@pytest.mark.parametrize(("data", "message"), BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data(data, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.input_noise_paths(nn.Linear(3, 1), MSE, data)
    with pytest.raises(FlatnessError, match=message):
        flatness.validation_paths(nn.Linear(3, 1), MSE, data, torch.ones(12, 3))


def test_a_batch_that_the_model_refuses():
    refused = (torch.ones(4, 2), Y)
    for measure in (flatness.input_noise_paths, lambda *a: flatness.validation_paths(*a, torch.ones(12, 2))):
        with pytest.raises(FlatnessError, match="batch 0: the model or the loss failed: RuntimeError"):
            measure(nn.Linear(3, 1), MSE, refused)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (torch.ones(9, 3), "nearest is 10, but there are only 9 validation inputs"),
        (torch.ones(12, 2), r"validation inputs have shape \(2,\), but the data's \(3,\)"),
        ([], "the validation data are empty"),
        ([(X, Y), (torch.ones(4, 2), Y)], r"validation batch 1: samples have shape \(2,\) after \(3,\)"),
        (torch.ones(12, 3, dtype=torch.long), "validation batch 0: the inputs must be floating-point"),
    ],
)
def test_bad_validation_data(validation, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.validation_paths(nn.Linear(3, 1), MSE, (X, Y), validation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nearest": 0}, "nearest must be a whole number"),
        ({"trials": 0}, "trials must be a whole number"),
        ({"fractions": []}, "fractions must be finite numbers"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.validation_paths(nn.Linear(3, 1), MSE, (X, Y), torch.ones(12, 3), **options)
    with pytest.raises(FlatnessError, match="directions must be a whole number"):
        flatness.input_noise_paths(nn.Linear(3, 1), MSE, (X, Y), directions=0)

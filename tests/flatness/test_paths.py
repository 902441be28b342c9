"""Loss along directions of the weights, against quadratics whose loss is known everywhere."""

import dataclasses
import json
import math

import pytest
import torch
from quadratic import LOSS, ONE, SIZE, TEST, TRAIN, Quadratic, expected, hessian
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatwise import flatness
from flatwise.flatness import BatchLoss, FlatnessError
from flatwise.flatness._vectors import random_directions, selected


def approx(values):
    return pytest.approx(values, rel=1e-12)


def moved(model, offset):
    """The state dict of a model at other weights."""
    parts = flatness.by_parameter(model, offset)
    return {name: p.detach() + parts[name] for name, p in model.named_parameters()}


def offset(seed=3):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draws(model, data=TRAIN, **options):
    options = {"count": 10, "seed": 0, "normalize": "unit", "names": selected(model, "all")} | options
    with flatness.measuring(model, LOSS, data) as objective:
        return list(random_directions(**options)(objective))


# Towards other weights.


def test_loss_towards_other_weights():
    model, d = Quadratic(), offset()
    path = flatness.weight_path(model, LOSS, TRAIN, moved(model, d), distances=[-2, 0, 0.5])
    assert path.end == approx(d.norm().item())
    assert path.distances == (-2.0, 0.0, 0.5)
    assert path.curve().losses == (approx([expected(r * d / d.norm()) for r in path.distances]),)
    assert path.curve().center == expected(0 * d)


def test_default_distances_reach_both_ways_to_the_other_end_through_0():
    model, d = Quadratic(), offset()
    path = flatness.weight_path(model, LOSS, TRAIN, towards=moved(model, d))
    assert len(path.distances) == 21
    assert path.distances[0] == -path.end and path.distances[10] == 0 and path.distances[-1] == path.end
    assert path.curve().mean[-1] == approx(expected(d))
    assert path.curve().mean == approx(path.curve().mean[::-1])  # a quadratic is even about its minimum
    assert path.curve().mean[10] == path.curve().center


@pytest.mark.parametrize(
    "form",
    [
        lambda state: state,
        lambda state: {**state, "minimum": torch.zeros(1), "more": "that"},
        lambda state: list(state.values()),
        lambda state: iter(state.values()),
        lambda state: nn.utils.parameters_to_vector(state.values()),
        lambda state: {name: value.requires_grad_() for name, value in state.items()},
    ],
    ids=["dict", "state dict", "list", "iterator", "vector", "parameters"],
)
def test_forms_of_other_weights(form):
    model, d = Quadratic(), offset()
    assert flatness.weight_path(model, LOSS, TRAIN, form(moved(model, d))) == flatness.weight_path(
        model, LOSS, TRAIN, moved(model, d)
    )


def test_weights_at_the_peak_and_back_on_a_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    data = (torch.randn(9, 4).double(), torch.randn(9, 2).double())
    w_peak = {name: p + 0.3 * torch.randn_like(p) for name, p in model.state_dict().items()}
    path = flatness.weight_path(model, nn.MSELoss(), data, w_peak)
    model.load_state_dict(w_peak)
    assert path.curve().mean[-1] == approx(nn.MSELoss()(model(data[0]), data[1]).item())


def test_two_models_and_two_data_sets_along_the_same_direction():
    a, b, d = Quadratic(1), Quadratic(2), offset()
    both = flatness.weight_path({"a": a, "b": b}, LOSS, {"train": TRAIN, "test": TEST}, moved(a, d))
    assert [(c.model, c.data) for c in both.curves] == [("a", "train"), ("a", "test"), ("b", "train"), ("b", "test")]
    for model in "ab":  # each from its own minimum, so the same curve
        for data, factor in (("train", 1), ("test", 3)):
            losses = [expected(r * d / d.norm(), factor) for r in both.distances]
            assert both.curve(model, data).mean == approx(losses)
    # And the same as alone, with the direction's origin given.
    origin = moved(a, 0 * d)
    alone = flatness.weight_path(b, LOSS, TRAIN, moved(a, d), origin=origin)
    assert alone.curve().mean == approx(both.curve("b", "train").mean)


def test_a_mapping_with_tensors_is_one_batch():
    model = Quadratic()
    loss = BatchLoss(lambda model, batch: model(batch["x"]).mean())
    path = flatness.weight_path(model, loss, {"x": ONE}, moved(model, offset()))
    assert path.curve("model", "data").center == expected(0 * offset())


def test_results_are_plain_data():
    path = flatness.weight_path(Quadratic(), LOSS, {"train": TRAIN}, moved(Quadratic(), offset()))
    text = json.dumps(dataclasses.asdict(path))
    assert json.loads(text)["curves"][0]["losses"] == [list(path.curve().losses[0])]
    with pytest.raises(dataclasses.FrozenInstanceError):
        path.end = 0


def test_which_curve():
    paths = flatness.weight_path({"a": Quadratic(), "b": Quadratic()}, LOSS, TRAIN, moved(Quadratic(), offset()))
    assert paths.curve("b") is paths.curves[1]
    with pytest.raises(FlatnessError, match="2 entries have model=None"):
        paths.curve()
    with pytest.raises(FlatnessError, match=r"0 entries have model='c'.*\('a', 'data'\)"):
        paths.curve("c")


# Random directions.


def test_unit_directions_and_their_mean():
    model = Quadratic()
    paths = flatness.random_weight_paths(model, LOSS, TRAIN, directions=4, distances=[0.5, 2], seed=7)
    along = draws(model, count=4, seed=7)
    assert [d.norm().item() for d in along] == approx([1.0] * 4)
    rows = [[expected(r * d) for r in (0.5, 2)] for d in along]
    assert paths.curve().losses == tuple(approx(row) for row in rows)
    assert paths.curve().mean == approx(torch.tensor(rows, dtype=torch.float64).mean(0).tolist())
    assert len(set(paths.curve().losses)) == 4


def test_default_distances_reach_the_norm_of_the_chosen_weights():
    model = Quadratic()
    every = flatness.random_weight_paths(model, LOSS, TRAIN, directions=1).distances
    first = flatness.random_weight_paths(model, LOSS, TRAIN, directions=1, parameters=["bias"]).distances
    assert (len(every), every[5], every[-1]) == (11, 0.0, approx(model.flat().norm().item()))
    assert first[-1] == -first[0] == approx(model.bias.norm().item())
    assert flatness.random_weight_paths(model, LOSS, TRAIN, directions=1, normalize="filter").distances[-1] == 1


def test_seeds_are_those_of_an_own_generator():
    def paths(seed):
        return flatness.random_weight_paths(Quadratic(), LOSS, TRAIN, directions=2, distances=[1], seed=seed)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = paths(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert paths(0) == first != paths(1)
    assert not set(paths(0).curve().losses) & set(paths(1).curve().losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_directions_for_every_dtype(dtype):
    model = nn.Linear(5, 3)
    with flatness.measuring(model, nn.MSELoss(), (torch.ones(2, 5), torch.ones(2, 3)), dtype=dtype) as objective:
        (direction,) = random_directions(1, 0, "unit", selected(model, "all"))(objective)
    assert direction.dtype == dtype
    reference = torch.randn(18, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(direction.float(), reference / reference.norm())


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))
    return model, (torch.randn(5, 2, 4, 4), torch.randint(0, 4, (5,)))


def test_filter_normalisation():
    model, data = network()
    with torch.no_grad():
        model[4].weight[2] = 0
    with flatness.measuring(model, nn.CrossEntropyLoss(), data) as objective:
        directions = list(random_directions(2, 0, "filter", selected(model, "all"))(objective))
        parts = [objective.split(direction) for direction in directions]
    assert not torch.equal(*directions)
    for part in parts:
        for name in ("0.weight", "4.weight"):
            own = model.get_parameter(name).detach().flatten(1)
            torch.testing.assert_close(part[name].flatten(1).norm(dim=1), own.norm(dim=1))
        assert not part["4.weight"][2].any()  # a filter of zeros has no scale: it stays
        for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
            assert not part[name].any()


def test_filter_normalised_curves_do_not_change_when_relu_layers_are_rescaled():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    data = (torch.randn(20, 4).double(), torch.randn(20, 3).double())

    def mean(normalize):
        return flatness.random_weight_paths(
            model, nn.MSELoss(), data, normalize=normalize, distances=[0.3, 1], directions=3
        ).curve()

    before = {kind: mean(kind) for kind in ("filter", "unit")}
    with torch.no_grad():
        model[0].weight *= 10
        model[0].bias *= 10
        model[2].weight /= 10
    assert mean("filter").mean == pytest.approx(before["filter"].mean, rel=1e-10)
    assert mean("unit").center == pytest.approx(before["unit"].center, rel=1e-10)
    assert mean("unit").mean != pytest.approx(before["unit"].mean, rel=0.1)


def test_selected_parameters_move_alone_and_with_the_same_draws():
    model, data = network()
    with flatness.measuring(model, nn.CrossEntropyLoss(), data) as objective:

        def direction(parameters, normalize="unit"):
            (vector,) = random_directions(1, 0, normalize, selected(model, parameters))(objective)
            return objective.split(vector)

        every, first = direction("all"), direction("first")
        assert {name for name, part in first.items() if part.any()} == {"0.weight", "0.bias"}
        assert {name for name, part in every.items() if part.any()} == set(every)
        ratio = (first["0.weight"] / every["0.weight"]).unique()
        assert ratio.max() - ratio.min() < 1e-5  # the same direction, of norm 1 again
        assert {name for name, part in direction(["4", "1.bias"]).items() if part.any()} == {
            "4.weight",
            "4.bias",
            "1.bias",
        }
        assert {name for name, part in direction("first", "filter").items() if part.any()} == {"0.weight"}


def test_the_first_layer_has_the_first_parameter_of_two_dimensions():
    model = nn.ModuleDict({"norm": nn.LayerNorm(4), "body": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))})
    assert selected(model, "first") == {"body.0.weight", "body.0.bias"}
    model.body[0].bias.requires_grad_(False)
    assert selected(model, "first") == {"body.0.weight"}


# The fooling direction.


def test_the_fooling_direction_is_the_gradients():
    model = Quadratic()
    shift = offset()
    model.load_state_dict(moved(model, shift), strict=False)
    gradient = hessian() @ shift
    path = flatness.fooling_path(model, LOSS, {"train": TRAIN, "test": TEST}, distances=[0, 0.5])
    at = shift + 0.5 * gradient / gradient.norm()
    assert path.curve(data="train").losses[0] == approx([expected(shift), expected(at)])
    assert path.curve(data="test").losses[0] == approx([expected(shift, 3), expected(at, 3)])


def test_the_fooling_direction_is_each_models_own_and_the_steepest():
    models = {}
    for name, seed in (("a", 3), ("b", 4)):
        models[name] = Quadratic()
        models[name].load_state_dict(moved(models[name], offset(seed)), strict=False)
    small = [1e-4]
    fooling = flatness.fooling_path(models, LOSS, TRAIN, distances=small)
    for name, model in models.items():
        rise = fooling.curve(name).mean[0] - fooling.curve(name).center
        assert rise == pytest.approx(1e-4 * flatness.gradient_norm(model, LOSS, TRAIN), rel=1e-3)
        random = flatness.random_weight_paths(model, LOSS, TRAIN, distances=small, directions=20).curve()
        assert all(row[0] - random.center < rise for row in random.losses)
    assert flatness.fooling_path(models, LOSS, TRAIN).distances[-1] == approx(models["a"].flat().norm().item() / 10)


def test_the_fooling_direction_of_some_parameters():
    model, shift = Quadratic(), offset()
    model.load_state_dict(moved(model, shift), strict=False)
    gradient = hessian() @ shift
    gradient[:6] = 0
    path = flatness.fooling_path(model, LOSS, TRAIN, parameters=["bias"], distances=[2])
    assert path.curve().mean == approx([expected(shift + 2 * gradient / gradient.norm())])


# Given directions.


def test_along_eigenvectors():
    model = Quadratic()
    top = flatness.top_eigenvalues(model, LOSS, TRAIN, 2, vectors=True, tol=1e-6)
    paths = flatness.loss_along(model, LOSS, TRAIN, top.vectors, [1.0, 3.0])
    for value, row in zip(top.values, paths.curve().losses, strict=True):
        assert row == pytest.approx([expected(0 * offset()) + value * r**2 / 2 for r in (1, 3)], rel=1e-6)


def test_given_directions_are_normalised():
    model, d = Quadratic(), offset()
    assert flatness.loss_along(model, LOSS, TRAIN, [5 * d], [2.0]).curve().mean == approx([expected(2 * d / d.norm())])


# What is not finite, and what is wrong.


def test_losses_that_are_not_finite_are_outcomes():
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 1.0)
    data = (torch.ones(2, 1).double(), torch.zeros(2, 1).double())

    def loss(output, target):  # 1/w: infinite at 0, and NaN left of it
        return (1 / output.clamp_min(0).sqrt()).mean() if (output >= 0).all() else output.mean() * math.nan

    path = flatness.weight_path(model, loss, data, [torch.zeros(1, 1)], distances=[-1, 0, 0.75, 1, 2])
    assert path.curve().mean[:3] == approx([math.sqrt(1 / 2), 1, 2])
    assert path.curve().mean[3] == math.inf and math.isnan(path.curve().mean[4])
    both = flatness.LossCurve("m", "d", 1.0, ((1.0, math.inf, math.inf), (3.0, 2.0, -math.inf)))
    assert both.mean[:2] == (2.0, math.inf) and math.isnan(both.mean[2])


def test_progress():
    calls = []
    models, data = {"a": Quadratic(), "b": Quadratic()}, {"train": TRAIN, "test": TEST}

    def note(done, most):
        calls.append((done, most))

    flatness.random_weight_paths(models, LOSS, data, directions=3, distances=[0, 1], progress=note)
    assert calls == [(i, 24) for i in range(1, 25)]
    calls.clear()
    flatness.fooling_path(moved_models(), LOSS, data, distances=[0, 1], progress=note)
    assert calls == [(i, 8) for i in range(1, 9)]


def moved_models():
    models = {"a": Quadratic(1), "b": Quadratic(2)}
    for model in models.values():
        model.load_state_dict(moved(model, offset()), strict=False)
    return models


def test_max_batches():
    data = [(ONE,), (5 * ONE,)]
    path = flatness.weight_path(Quadratic(), LOSS, data, moved(Quadratic(), offset()), max_batches=1)
    assert path == flatness.weight_path(Quadratic(), LOSS, [(ONE,)], moved(Quadratic(), offset()))


def frozen(model):
    model.bias.requires_grad_(False)
    return model


GOOD = moved(Quadratic(), offset())
PATH_ERRORS = {
    "empty loader": (Quadratic(), DataLoader(TensorDataset(torch.ones(0, 4))), GOOD, "the data are empty"),
    "empty list": (Quadratic(), {"train": TRAIN, "test": []}, GOOD, "model 'model', data 'test': the data are empty"),
    "no models": ({}, TRAIN, GOOD, "no model was given"),
    "no data": (Quadratic(), {}, GOOD, "no data set was given"),
    "equal ends": (Quadratic(), TRAIN, Quadratic().state_dict(), "two ends of the path is 0: it has no direction"),
    "missing": (Quadratic(), TRAIN, {"matrix": GOOD["matrix"]}, "towards has no 'bias'"),
    "shape": (
        Quadratic(),
        TRAIN,
        {**GOOD, "bias": torch.ones(3)},
        r"'bias' has shape \(3,\); the model's has \(2,\)",
    ),
    "vector": (Quadratic(), TRAIN, torch.ones(7), r"has shape \(8,\) for this model; got \(7,\)"),
    "too many": (Quadratic(), TRAIN, [torch.ones(2)] * 3, "has 3 tensors, but the model has 2 parameters"),
    "not a tensor": (Quadratic(), TRAIN, {**GOOD, "bias": 3.0}, "'bias' must be a tensor; got a float"),
    "not finite": (Quadratic(), TRAIN, {**GOOD, "bias": GOOD["bias"] * math.nan}, "towards has values that are not"),
    "frozen": (frozen(Quadratic()), TRAIN, GOOD, "differs from the model in 'bias', which does not require a gradient"),
    "all frozen": (Quadratic().requires_grad_(False), TRAIN, GOOD, "no parameter that requires a gradient"),
    "not a model": (lambda x: x, TRAIN, GOOD, "must be a torch.nn.Module"),
    "other shapes": (
        {"a": Quadratic(), "b": nn.Linear(2, 2)},
        TRAIN,
        GOOD,
        r"same names and shapes: 'matrix' is \(3, 2\) in 'a' and missing or frozen in 'b'",
    ),
}


@pytest.mark.parametrize(("model", "data", "towards", "message"), PATH_ERRORS.values(), ids=PATH_ERRORS)
def test_bad_paths(model, data, towards, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.weight_path(model, LOSS, data, towards)


def test_a_frozen_parameter_that_agrees_is_no_error():
    model = frozen(Quadratic())
    same = {**GOOD, "bias": model.bias.detach().clone()}
    by_dict = flatness.weight_path(model, LOSS, TRAIN, same)
    assert flatness.weight_path(model, LOSS, TRAIN, list(same.values())) == by_dict
    assert flatness.weight_path(model, LOSS, TRAIN, [same["matrix"]]) == by_dict
    assert by_dict.curve().mean[-1] == approx(expected(torch.cat([offset()[:6], torch.zeros(2)])))


@pytest.mark.parametrize("distances", [[], [math.nan], [0, math.inf], "ab", 1.0])
def test_bad_distances(distances):
    with pytest.raises(FlatnessError, match="distances must be"):
        flatness.weight_path(Quadratic(), LOSS, TRAIN, GOOD, distances=distances)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 0}, "directions must be a whole number, 1 or more; got 0"),
        ({"normalize": "layer"}, "normalize must be 'unit' or 'filter'; got 'layer'"),
        ({"parameters": "head"}, "'head' is no parameter and no module"),
        ({"parameters": []}, "no names were given"),
        ({"parameters": "bias", "normalize": "filter"}, "filter normalisation leaves nothing to move"),
    ],
)
def test_bad_random_paths(options, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.random_weight_paths(Quadratic(), LOSS, TRAIN, **options)


def test_a_frozen_parameter_cannot_be_chosen():
    model = frozen(Quadratic())
    with pytest.raises(FlatnessError, match="'bias' has none that requires a gradient"):
        flatness.random_weight_paths(model, LOSS, TRAIN, parameters=["matrix", "bias"])


def test_no_fooling_direction_at_an_exact_minimum():
    with pytest.raises(FlatnessError, match="the gradient of model 'model' is 0"):
        flatness.fooling_path(Quadratic(), LOSS, TRAIN)


@pytest.mark.parametrize(
    ("directions", "message"), [([], "no directions were given"), ([torch.zeros(8)], "direction 0 is 0")]
)
def test_bad_directions(directions, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.loss_along(Quadratic(), LOSS, TRAIN, directions, [1.0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_at_the_models_own_weights_is_an_error(value):
    with pytest.raises(FlatnessError, match=rf"batch 1: the loss is {value} at the model's own weights"):
        flatness.weight_path(Quadratic(), LOSS, [(ONE,), (ONE * value,)], GOOD)


# A path for each model.


def test_each_model_moves_towards_its_own_weights():
    a, b = Quadratic(1), Quadratic(2)
    ends = {"b": moved(b, offset(5)), "a": moved(a, offset(4))}
    paths = flatness.weight_path({"a": a, "b": b}, LOSS, {"train": TRAIN, "test": TEST}, ends)
    assert paths.end is None and list(paths.ends) == ["a", "b"]
    for name, model in (("a", a), ("b", b)):
        for data, batches in (("train", TRAIN), ("test", TEST)):
            alone = flatness.weight_path(model, LOSS, batches, ends[name], distances=paths.distances)
            assert paths.curve(name, data).losses == alone.curve().losses
        assert paths.ends[name] == alone.end
    assert paths.distances[-1] == max(paths.ends.values())
    slopes = flatness.average_slope({"a": a, "b": b}, LOSS, TRAIN, 9.0, towards=ends)
    alone = flatness.average_slope(b, LOSS, TRAIN, 9.0, towards=ends["b"])
    assert slopes.entry("b").distances == pytest.approx(alone.entry().distances, rel=2e-3)


def test_paths_of_their_own_may_be_of_different_models_and_have_an_origin():
    a, b = Quadratic(), nn.Linear(2, 2).double()
    loss = BatchLoss(lambda model, batch: sum(p.square().sum() for p in model.parameters()), lambda batch: 1)
    ends = {"a": torch.zeros(8), "b": [torch.zeros(2, 2), torch.zeros(2)]}
    paths = flatness.weight_path({"a": a, "b": b}, loss, [ONE], ends, distances=[1])
    for name, model in (("a", a), ("b", b)):
        norm = torch.cat([p.flatten() for p in model.parameters()]).norm().item()
        assert paths.curve(name).losses == (approx([(norm - 1) ** 2]),)
    origin = {"a": torch.ones(8)}
    path = flatness.weight_path({"a": a}, LOSS, TRAIN, torch.full((8,), 3.0), origin=origin)
    assert path.ends == {"a": approx(2 * 8**0.5)}


@pytest.mark.parametrize(
    ("towards", "message"),
    [
        ({"a": GOOD}, r"towards has weights for \['a'\], but none for model 'b'"),
        ({"a": GOOD, "b": GOOD, "c": GOOD}, r"towards has weights for 'c', but the models are \['a', 'b'\]"),
        ({"a": GOOD, "b": torch.ones(7)}, "towards of model 'b': a vector of all parameters"),
        ({"x": GOOD, "y": GOOD}, r"towards has no 'matrix', a parameter of the model, but \['x', 'y'\]"),
        ({"a": GOOD, "b": Quadratic(2).state_dict()}, "the two ends of the path of model 'b' is 0"),
    ],
)
def test_bad_ends_by_name(towards, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.weight_path({"a": Quadratic(5), "b": Quadratic(2)}, LOSS, TRAIN, towards)

"""The average slope to a level set, on quadratics, where its radius is known along every direction."""

import math

import pytest
import torch
from quadratic import LOSS, SIZE, TEST, TRAIN, Quadratic, expected, hessian
from test_paths import draws, moved, offset
from torch import nn

from flatwise import flatness
from flatwise.flatness import FlatnessError
from flatwise.flatness.surfaces import _crossing

FLOOR = expected(torch.zeros(SIZE, dtype=torch.float64))


def radius(direction, rise):
    return math.sqrt(2 * rise / float(direction @ hessian() @ direction))


@pytest.mark.parametrize("rise", [1e-6, 0.7, 300.0])  # far below the first step, and far above it
def test_slopes_along_random_directions(rise):
    model = Quadratic()
    found = flatness.average_slope(model, LOSS, TRAIN, FLOOR + rise, directions=5, seed=2).entry()
    radii = [radius(d, rise) for d in draws(model, count=5, seed=2)]
    assert found.center == FLOOR
    assert found.distances == pytest.approx(radii, rel=1e-3)
    assert found.slopes == pytest.approx([rise / r for r in radii], rel=1e-3)
    assert found.mean == pytest.approx(sum(rise / r for r in radii) / 5, rel=1e-3)
    assert found.reached == 5


def test_towards_other_weights_and_tolerance():
    model, d = Quadratic(), offset()
    found = flatness.average_slope(model, LOSS, TRAIN, 2.0, towards=moved(model, d), tol=1e-8).entry()
    assert found.distances == pytest.approx([radius(d / d.norm(), 2.0 - FLOOR)], rel=1e-8)


def test_the_level_at_w_peak_is_reached_at_w_peak():
    model, d = Quadratic(), offset()
    path = flatness.weight_path(model, LOSS, TRAIN, moved(model, d))
    level = path.curve().mean[-1]
    found = flatness.average_slope(model, LOSS, TRAIN, level, towards=moved(model, d)).entry()
    assert found.distances == pytest.approx([path.end], rel=1e-3)


def test_models_and_data_sets():
    models = {"a": Quadratic(1), "b": Quadratic(2)}
    slopes = flatness.average_slope(models, LOSS, {"train": TRAIN, "test": TEST}, 5.0, directions=2, tol=1e-9)
    assert slopes.level == 5.0
    assert slopes.entry("a", "train").distances == pytest.approx(slopes.entry("b", "train").distances, rel=1e-6)
    for data, factor in (("train", 1), ("test", 3)):
        radii = [radius(d, 5 / factor - FLOOR) for d in draws(models["a"], count=2)]
        assert slopes.entry("a", data).distances == pytest.approx(radii, rel=1e-6)


def test_selected_parameters():
    model = Quadratic()
    found = flatness.average_slope(model, LOSS, TRAIN, 2.0, parameters=["bias"], directions=3).entry()
    names = frozenset(["bias"])
    assert found.distances == pytest.approx(
        [radius(d, 2.0 - FLOOR) for d in draws(model, count=3, names=names)], rel=1e-3
    )


def test_a_level_that_is_not_reached_is_recorded():
    model = Quadratic()
    near = flatness.average_slope(model, LOSS, TRAIN, 100.0, directions=2, max_distance=1.0).entry()
    assert near.reached == 0
    assert all(map(math.isnan, (*near.distances, *near.slopes, near.mean)))
    radii = sorted(radius(d, 100.0 - FLOOR) for d in draws(model, count=2))
    between = sum(radii) / 2
    part = flatness.average_slope(model, LOSS, TRAIN, 100.0, directions=2, max_distance=between).entry()
    assert part.reached == 1 and math.isnan(part.mean)


@pytest.mark.parametrize("beyond", [math.nan, math.inf])
def test_where_the_loss_stops_being_finite_the_level_is_not_reached(beyond):
    assert math.isnan(_crossing(lambda d: d if d < 3 else beyond, 5.0, 100.0, 1e-3, 50))
    # But a level below that is found, though the search met what is not finite.
    assert _crossing(lambda d: d if d < 3 else beyond, 2.5, 1000.0, 1e-3, 50) == pytest.approx(2.5, rel=1e-3)


def test_max_iter_bounds_the_losses():
    for most in (2, 5, 12):
        calls = []

        def loss_at(distance, calls=calls):
            calls.append(distance)
            return distance

        assert math.isnan(_crossing(loss_at, 1.0, 64 * 64, 1e-9, most))
        assert len(calls) == most


def test_the_distance_is_within_the_limit():
    assert _crossing(lambda d: d, 9.99, 10.0, 1e-6, 99) == pytest.approx(9.99, rel=1e-6)
    assert math.isnan(_crossing(lambda d: d, 10.01, 10.0, 1e-6, 99))


def test_progress():
    calls = []
    flatness.average_slope(
        {"a": Quadratic(), "b": Quadratic()}, LOSS, TRAIN, 2.0, directions=3, progress=lambda *c: calls.append(c)
    )
    assert calls == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": FLOOR}, r"level must be above the loss of the model as it is, 0.25; got 0.25"),
        ({"level": math.inf}, "level must be a finite loss"),
        ({"level": "2"}, "level must be a finite loss; got '2'"),
        ({"tol": 0}, "tol must be a relative tolerance"),
        ({"max_distance": -1}, "max_distance must be a positive distance"),
        ({"max_iter": 1}, "max_iter must be a whole number, 2 or more"),
        ({"directions": 0}, "directions must be a whole number"),
        ({"towards": Quadratic().state_dict()}, "two ends of the path is 0"),
        ({"towards": torch.ones(8), "parameters": "first"}, "parameters applies only to random directions"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.average_slope(Quadratic(), LOSS, TRAIN, **{"level": 2.0, **options})


def test_a_model_of_zeros_has_a_reach():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    data = (torch.eye(2), torch.zeros(2, 1))
    found = flatness.average_slope(model, nn.MSELoss(), data, 0.125, tol=1e-6).entry()  # the loss is ‖w‖²/2
    assert found.distances == pytest.approx([0.5] * 10, rel=1e-5)

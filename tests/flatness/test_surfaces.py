"""Loss surfaces of quadratics, known everywhere."""

import math

import pytest
import torch
from quadratic import LOSS, SIZE, TEST, TRAIN, Quadratic, expected
from test_paths import draws, moved, offset
from torch import nn

from flatwise import flatness
from flatwise.flatness import FlatnessError

XS, YS = (-1.0, 0.0, 0.5), (-2.0, 0.0)


def approx(values):
    return pytest.approx(values, rel=1e-12)


def table(first, second, xs, ys, factor=1.0, origin=0):
    return tuple(approx([expected(origin + x * first + y * second, factor) for x in xs]) for y in ys)


@pytest.mark.parametrize("normalize", ["filter", "unit"])
def test_random_directions(normalize):
    model = Quadratic()
    surface = flatness.loss_surface(model, LOSS, TRAIN, xs=XS, ys=YS, normalize=normalize, seed=5)
    assert surface.grid().losses == table(*draws(model, count=2, seed=5, normalize=normalize), XS, YS)
    assert surface.grid().center == surface.grid().losses[1][1]


def test_a_quadratic_is_symmetric_about_its_minimum():
    surface = flatness.loss_surface(Quadratic(), LOSS, TRAIN)
    losses = surface.grid().losses
    assert surface.xs == surface.ys == tuple(i / 5 for i in range(-5, 6))
    assert len(losses) == 11 == len(losses[0])
    assert losses == tuple(approx(row[::-1]) for row in losses[::-1])
    assert min(min(row) for row in losses) == losses[5][5] == surface.grid().center


def test_given_directions_are_used_as_they_are():
    model, first, second = Quadratic(), offset(3), offset(4)
    for given in ([first, second], torch.stack([first, second]), [flatness.by_parameter(model, first), second]):
        surface = flatness.loss_surface(model, LOSS, TRAIN, given, xs=XS, ys=YS)
        assert surface.grid().losses == table(first, second, XS, YS)


def test_eigenvectors():
    model = Quadratic()
    top = flatness.top_eigenvalues(model, LOSS, TRAIN, 2)
    losses = flatness.loss_surface(model, LOSS, TRAIN, "eigenvectors", xs=XS, ys=YS).grid().losses
    for y, row in zip(YS, losses, strict=True):  # no mixed term, and the curvatures are the eigenvalues
        values = [0.25 + (top.values[0] * x**2 + top.values[1] * y**2) / 2 for x in XS]
        assert row == pytest.approx(values, rel=1e-4)


def test_models_and_data_sets_along_the_same_directions():
    models, data = {"a": Quadratic(1), "b": Quadratic(2)}, {"train": TRAIN, "test": TEST}
    surface = flatness.loss_surface(models, LOSS, data, "eigenvectors", xs=XS, ys=YS)
    assert len(surface.grids) == 4
    for row, other in zip(surface.grid("a", "train").losses, surface.grid("b", "train").losses, strict=True):
        assert row == approx(other)
    for row, other in zip(surface.grid("a", "train").losses, surface.grid("a", "test").losses, strict=True):
        assert [3 * value for value in row] == approx(other)


def three():
    models = {name: Quadratic() for name in "abc"}
    for seed, name in enumerate("bc", 3):
        models[name].load_state_dict(moved(models[name], offset(seed)), strict=False)
    return models


def test_the_plane_of_three_models():
    models, b, c = three(), offset(3), offset(4)
    surface = flatness.plane_surface(models, LOSS, {"train": TRAIN, "test": TEST})
    points = surface.points
    assert points["a"] == (0, 0)
    assert points["b"] == (approx(b.norm().item()), 0)
    assert math.hypot(*points["c"]) == approx(c.norm().item())
    assert math.dist(points["b"], points["c"]) == approx((b - c).norm().item())
    assert points["c"][1] > 0
    for coordinates, axis in ((surface.xs, 0), (surface.ys, 1)):
        values = [point[axis] for point in points.values()]
        extent = max(values) - min(values)
        assert (coordinates[0], coordinates[-1]) == approx((min(values) - extent / 4, max(values) + extent / 4))
    # At the models' own points the loss is theirs.
    for name, vector in (("b", b), ("c", c)):
        x, y = points[name]
        at = flatness.plane_surface(models, LOSS, {"train": TRAIN, "test": TEST}, xs=[x], ys=[y])
        assert at.grid(data="train").losses == (approx([expected(vector)]),)
        assert at.grid(data="test").losses == (approx([expected(vector, 3)]),)
    assert surface.grid("a", "train").center == expected(torch.zeros(SIZE).double())


def test_losses_that_are_not_finite_are_outcomes():
    model = nn.Linear(2, 1, bias=False)
    nn.init.ones_(model.weight)
    data = (torch.eye(2), torch.zeros(2, 1))

    def loss(output, target):
        return output.log().mean()

    losses = flatness.loss_surface(model, loss, data, torch.eye(2), xs=[0, -1, -2], ys=[0]).grid().losses
    assert losses[0][0] == 0 and losses[0][1] == -math.inf and math.isnan(losses[0][2])


def test_progress():
    calls = []
    flatness.loss_surface(Quadratic(), LOSS, TRAIN, xs=XS, ys=YS, progress=lambda *c: calls.append(c))
    assert calls == [(i, 6) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("directions", "options", "message"),
    [
        ("sharpest", {}, "directions must be 'random', 'eigenvectors' or two directions; got 'sharpest'"),
        ([offset()], {}, "a surface has two directions; got 1"),
        ([offset(), -2 * offset()], {}, "the two directions of a surface are parallel"),
        ([offset(), 0 * offset()], {}, "direction 1 is 0"),
        ([offset(), torch.ones(3)], {}, r"direction 1: .* got \(3,\)"),
        ("eigenvectors", {"normalize": "unit"}, "normalize and parameters apply only to random directions"),
        ("random", {"xs": []}, "xs must be finite numbers"),
        ("random", {"ys": [math.nan]}, "ys must be finite numbers"),
    ],
)
def test_bad_surfaces(directions, options, message):
    with pytest.raises(FlatnessError, match=message):
        flatness.loss_surface(Quadratic(), LOSS, TRAIN, directions, **options)


def test_bad_planes():
    models = three()
    with pytest.raises(FlatnessError, match="a plane is spanned by three models"):
        flatness.plane_surface({"a": models["a"], "b": models["b"]}, LOSS, TRAIN)
    line = {**models, "c": Quadratic()}
    line["c"].load_state_dict(moved(line["c"], -2 * offset(3)), strict=False)
    with pytest.raises(FlatnessError, match="the three models are on one line"):
        flatness.plane_surface(line, LOSS, TRAIN)
    with pytest.raises(FlatnessError, match="the difference between the first two models is 0"):
        flatness.plane_surface({**models, "b": Quadratic()}, LOSS, TRAIN)

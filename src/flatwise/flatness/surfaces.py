"""Loss over a plane in the space of the weights, and the average slope to a level of the loss.

Arguments, several models and several data sets, and infinite losses: as in :mod:`flatwise.flatness.paths`. The average
slope is that of the peak-LR paper, section 6.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import Unpack

from flatwise.flatness._models_and_data import Models, ModelsAndData, PathOptions, Rows
from flatwise.flatness._vectors import (
    Directions,
    Normalization,
    Selection,
    Weights,
    given_directions,
    norm,
    own_weights,
    random_directions,
    selected,
    unit,
    weights_vector,
)
from flatwise.flatness.curvature import top_eigenvalues
from flatwise.flatness.guard import Autocast, FlatnessError, checked_count
from flatwise.flatness.objective import Loss, Objective
from flatwise.flatness.paths import Measured, checked_distances, pick, symmetric, unit_differences

# Directions whose angle has a smaller sine span no plane.
PARALLEL = 1e-4


@dataclass(frozen=True, slots=True)
class LossGrid(Measured):
    """The losses of one model over one data set, on the grid.

    Attributes:
        model, data: their names.
        center: the loss of the model as it is.
        losses: a row for each y, with the loss at each x. May be infinite or NaN.
    """

    losses: Rows


@dataclass(frozen=True, slots=True)
class LossSurface:
    """The losses of models over data sets on the same grid.

    Attributes:
        xs, ys: coordinates of the grid, in the units of the function that measured them.
        grids: one for every model with every data set.
        points: models that lie in the plane, as (x, y), by name.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    grids: tuple[LossGrid, ...]
    points: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def grid(self, model: str | None = None, data: str | None = None) -> LossGrid:
        """The grid of one model over one data set. Names may be omitted if there is only one.

        Raises:
            FlatnessError: no grid fits, or several.
        """
        return pick(self.grids, model, data)


def loss_surface(
    model: Models,
    loss: Loss,
    data: Any,
    directions: Literal["random", "eigenvectors"] | Sequence[Weights] = "random",
    *,
    xs: Iterable[float] | None = None,
    ys: Iterable[float] | None = None,
    normalize: Normalization = "filter",
    parameters: Selection = "all",
    seed: int = 0,
    **options: Unpack[PathOptions],
) -> LossSurface:
    """The loss ``L(w + x d₁ + y d₂)`` around each model's own weights.

    Args:
        directions: ``"random"`` (the default): two random directions, as in Li et al. 2018. ``"eigenvectors"``: those
            of the two largest eigenvalues of the (first) model's Hessian over the (first) data set, of norm 1. Or two
            directions, each in one of the forms that :func:`flatwise.flatness.weight_path` takes, or a tensor of shape
            ``(2, size)``; they are used as they are, not normalised.
        xs, ys: coordinates; default: 11 from −1 to 1 each. A grid costs a pass over the data at every point.
        normalize: of random directions: ``"filter"`` (the default; coordinates are relative to the weights) or
            ``"unit"``, as for :func:`flatwise.flatness.random_weight_paths`. Several models have the same draws.
        parameters: which ones random directions move, likewise.
        seed: of the random directions, from a generator of their own, and of the eigenvalue iteration.
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: as in :mod:`flatwise.flatness.paths`.

    Raises:
        FlatnessError: bad input; directions that are 0 or parallel; eigenvectors that did not converge.
    """
    compared = ModelsAndData(model, loss, data, **options)
    compared.check_same_parameters()
    across = symmetric(1.0, 5) if xs is None else checked_distances(xs, "xs")
    up = symmetric(1.0, 5) if ys is None else checked_distances(ys, "ys")
    if not isinstance(directions, str) or directions == "eigenvectors":
        if normalize != "filter" or parameters != "all":
            raise FlatnessError("normalize and parameters apply only to random directions: leave them out with others")
        vectors = _top_two(compared, seed) if isinstance(directions, str) else _given(compared.first, directions)
        along = given_directions(vectors)
    elif directions == "random":
        along = random_directions(2, seed, normalize, selected(compared.first, parameters))
    else:
        raise FlatnessError(f"directions must be 'random', 'eigenvectors' or two directions; got {directions!r}")
    return LossSurface(across, up, _grids(compared, along, across, up))


def plane_surface(
    models: Mapping[str, nn.Module],
    loss: Loss,
    data: Any,
    *,
    xs: Iterable[float] | None = None,
    ys: Iterable[float] | None = None,
    **options: Unpack[PathOptions],
) -> LossSurface:
    """The loss over the plane through the weights of three models (Garipov et al. 2018).

    The first model is at (0, 0), the second at (x, 0) with x > 0, the third at (x, y) with y > 0; coordinates are
    Euclidean distances. The loss is that of the first model with other weights: its buffers, such as BatchNorm's
    statistics, stay, and fit the other two worse; ``mode="train"`` takes each batch's own.

    Args:
        models: three models by name, with the same parameters.
        data: one data set, or several by name.
        xs, ys: coordinates; default: 11 each, over the three models and a quarter of their extent around them.
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: as in :mod:`flatwise.flatness.paths`.

    Returns:
        Grids under the first model's name; all three are in ``points``.

    Raises:
        FlatnessError: bad input; not three models, or models on one line.
    """
    if not isinstance(models, Mapping) or len(models) != 3:
        raise FlatnessError("a plane is spanned by three models: give a mapping of three names to models")
    three = ModelsAndData(models, loss, data, **options)
    three.check_same_parameters()
    a, b, c = (own_weights(one) for one in three.models.values())
    b, c = b.to(a) - a, c.to(a) - a
    x_axis = unit(b, "the difference between the first two models")
    x_c = float(x_axis @ c)
    rest = c - x_c * x_axis
    if norm(rest) <= PARALLEL * max(norm(b), norm(c)):
        raise FlatnessError("the three models are on one line: they span no plane")
    y_axis = unit(rest, "the plane")
    points = dict(zip(models, [(0.0, 0.0), (norm(b), 0.0), (x_c, norm(rest))], strict=True))
    own_xs, own_ys = zip(*points.values(), strict=True)
    across = _margin(own_xs) if xs is None else checked_distances(xs, "xs")
    up = _margin(own_ys) if ys is None else checked_distances(ys, "ys")
    name, first = next(iter(models.items()))
    grids = _grids(ModelsAndData({name: first}, loss, data, **options), given_directions([x_axis, y_axis]), across, up)
    return LossSurface(across, up, grids, points)


def _grids(
    compared: ModelsAndData, directions: Directions, xs: Sequence[float], ys: Sequence[float]
) -> tuple[LossGrid, ...]:
    def points(model: str, objective: Objective) -> Iterator[Iterable[torch.Tensor | None]]:
        own = objective.vector()
        first, second = directions(objective)
        for y in ys:
            yield (None if x == y == 0 else own.add(first, alpha=x).add_(second, alpha=y) for x in xs)

    return tuple(LossGrid(*found) for found in compared.losses(points, len(xs) * len(ys)))


def _top_two(compared: ModelsAndData, seed: int) -> list[torch.Tensor]:
    # Products under autocast have two digits, enough for directions.
    cast = Autocast.capture({"cpu", *(p.device.type for p in compared.first.parameters())}).dtypes
    found = top_eigenvalues(
        compared.first,
        compared.loss,
        compared.data[compared.first_data],
        2,
        vectors=True,
        tol=5e-2 if cast else 1e-3,
        seed=seed,
        **compared.options,
    )
    if not found.converged or found.vectors is None:
        raise FlatnessError(
            "the two largest eigenvalues did not converge: compute them by top_eigenvalues(..., 2, vectors=True) with "
            "more max_iter, or dtype=torch.float64, and give its vectors"
        )
    return list(found.vectors)


def _given(model: nn.Module, directions: Sequence[Weights]) -> list[torch.Tensor]:
    vectors = [weights_vector(model, one, f"direction {index}") for index, one in enumerate(directions)]
    if len(vectors) != 2:
        raise FlatnessError(f"a surface has two directions; got {len(vectors)}")
    first, second = (unit(vector, f"direction {index}") for index, vector in enumerate(vectors))
    if norm(second - (first @ second) * first) <= PARALLEL:
        raise FlatnessError("the two directions of a surface are parallel: they span no plane")
    return vectors


def _margin(values: Sequence[float]) -> tuple[float, ...]:
    """11 coordinates over the values and a quarter of their extent around them."""
    low, high = min(values), max(values)
    low, high = low - (high - low) / 4, high + (high - low) / 4
    return tuple(low + (high - low) * index / 10 for index in range(11))


@dataclass(frozen=True, slots=True)
class LevelSlope(Measured):
    """The average slopes of one model's loss over one data set, up to a level.

    Attributes:
        model, data: their names.
        center: the loss of the model as it is, the ε of the paper.
        distances: ``‖w* − w₀‖`` along each direction; NaN where the level was not reached.
        slopes: ``(c − ε)/‖w* − w₀‖`` along each direction; NaN where the level was not reached.
    """

    distances: tuple[float, ...]
    slopes: tuple[float, ...]

    @property
    def reached(self) -> int:
        """Along how many directions the level was reached."""
        return sum(not math.isnan(slope) for slope in self.slopes)

    @property
    def mean(self) -> float:
        """The mean slope over the directions; NaN if the level was not reached along one: then raise max_distance."""
        return sum(self.slopes) / len(self.slopes)


@dataclass(frozen=True, slots=True)
class LevelSlopes:
    """The average slopes of models over data sets, to the same level along the same directions.

    Attributes:
        level: the loss c.
        entries: one for every model with every data set.
    """

    level: float
    entries: tuple[LevelSlope, ...]

    def entry(self, model: str | None = None, data: str | None = None) -> LevelSlope:
        """The slopes of one model over one data set. Names may be omitted if there is only one.

        Raises:
            FlatnessError: no entry fits, or several.
        """
        return pick(self.entries, model, data)


def average_slope(
    model: Models,
    loss: Loss,
    data: Any,
    level: float,
    *,
    towards: Weights | Mapping[str, Weights] | None = None,
    parameters: Selection = "all",
    directions: int = 10,
    max_distance: float | None = None,
    tol: float = 1e-3,
    max_iter: int = 50,
    seed: int = 0,
    **options: Unpack[PathOptions],
) -> LevelSlopes:
    """The average slope ``(c − ε)/‖w* − w₀‖`` from the weights ``w*`` to points ``w₀`` where the loss is ``c``.

    The paper takes for c "the loss at the entrance of the basin", which is unknown in practice, and for ``w₀`` any
    point of the level set. Here c is an argument, and ``w₀`` is where a ray from ``w*`` meets the level: along random
    directions, or towards other weights. Along random directions in many dimensions, distances mostly reflect the mean
    curvature (the trace of the Hessian), not the lowest way out.

    The crossing is bracketed by doubling or halving the distance, then bisected. A ridge that is thinner than the last
    doubling can be stepped over.

    Args:
        level: the loss c; above the loss of every model as it is, over each of the data sets.
        towards: go towards these weights alone, in one of the forms that :func:`flatwise.flatness.weight_path` takes;
            several models have the same direction, from the first one's weights, unless there are weights for each by
            name. Default: random directions.
        parameters: which ones random directions move, as for :func:`flatwise.flatness.random_weight_paths`.
        directions: how many random directions. Default: 10.
        max_distance: look no farther; default: ten times the norm of the (first) model's weights, or of ``towards``'s
            difference if that is more.
        tol: relative tolerance of the distance. Default: 1e-3.
        max_iter: at most so many losses along a direction; if they do not suffice, the level counts as not reached.
            Default: 50.
        seed: of the random directions, from a generator of their own.
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: as in :mod:`flatwise.flatness.paths`,
            but progress counts directions.

    Raises:
        FlatnessError: bad input; a level that is not above the loss; ``towards`` given and equal to the weights.
    """
    checked_count("directions", directions)
    checked_count("max_iter", max_iter, 2)
    if not isinstance(level, (int, float)) or not math.isfinite(level):
        raise FlatnessError(f"level must be a finite loss; got {level!r}")
    if max_distance is not None and not 0 < max_distance < math.inf:
        raise FlatnessError(f"max_distance must be a positive distance; got {max_distance!r}")
    if not 0 < tol < 1:
        raise FlatnessError(f"tol must be a relative tolerance between 0 and 1; got {tol!r}")
    compared = ModelsAndData(model, loss, data, **options)
    reach = 10 * math.sqrt(sum(norm(p.detach().flatten()) ** 2 for p in compared.first.parameters())) or 1.0
    if towards is None:
        compared.check_same_parameters()
        names = selected(compared.first, parameters)
        rays, count = dict.fromkeys(compared.models, random_directions(directions, seed, "unit", names)), directions
    else:
        if parameters != "all":
            raise FlatnessError("parameters applies only to random directions: leave it out where towards is given")
        routes, _ = unit_differences(compared, towards, None)
        rays, count = {name: given_directions([direction]) for name, (direction, _) in routes.items()}, 1
        reach = max(reach, *(distance for _, distance in routes.values()))
    limit = reach if max_distance is None else float(max_distance)
    step = compared.counter(len(compared.pairs) * count)
    entries = []
    for name, one in compared.pairs:
        with compared.measuring(name, one) as objective:
            center, own = objective.loss(), objective.vector()
            if level <= center:
                raise FlatnessError(f"level must be above the loss of the model as it is, {center:g}; got {level:g}")
            distances = []
            for ray in rays[name](objective):
                distances.append(_crossing(_along(objective, own, ray), level, limit, tol, max_iter))
                step()
        slopes = tuple((level - center) / distance for distance in distances)
        entries.append(LevelSlope(name, one, center, tuple(distances), slopes))
    return LevelSlopes(float(level), tuple(entries))


def _along(objective: Objective, own: torch.Tensor, ray: torch.Tensor) -> Callable[[float], float]:
    return lambda distance: objective.loss(own.add(ray, alpha=distance))


def _crossing(loss_at: Callable[[float], float], level: float, limit: float, tol: float, max_iter: int) -> float:
    """A distance in (0, limit] at which the loss reaches the level from below; NaN if none is found.

    An infinite or NaN loss counts as above the level during the search, but is not a crossing: if the loss is below
    the level wherever it is finite, the level is not reached.
    """
    low, high = 0.0, limit / 64  # six doublings reach the limit, exactly
    value = loss_at(high)
    evaluations = 1
    while value < level:  # outwards, to a bracket
        if high >= limit or evaluations == max_iter:
            return math.nan
        low, high = high, 2 * high
        value = loss_at(high)
        evaluations += 1
    while high - low > tol * high and evaluations < max_iter:  # while low is 0, this halves
        middle = (low + high) / 2
        between = loss_at(middle)
        evaluations += 1
        if between < level:
            low = middle
        else:
            high, value = middle, between
    return high if math.isfinite(value) and high - low <= tol * high else math.nan

"""The average slope to a level set of the loss (peak-LR paper, section 6.3).

Arguments, several models and several data sets: as in :mod:`flatwise.flatness.weight_paths`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from flatwise.flatness.compared import Comparison, Models, Progress, counter
from flatwise.flatness.curves import pick
from flatwise.flatness.directions import Selection, given_directions, random_directions, selected
from flatwise.flatness.errors import FlatnessError, checked_count
from flatwise.flatness.guard import Mode
from flatwise.flatness.objective import Loss, Objective
from flatwise.flatness.vectors import Weights, norm
from flatwise.flatness.weight_paths import unit_differences


@dataclass(frozen=True, slots=True)
class LevelSlope:
    """The average slopes of one model's loss over one data set, up to a level.

    Attributes:
        model, data: their names.
        center: the loss of the model as it is, the ε of the paper.
        distances: ``‖w* − w₀‖`` along each direction; NaN where the level was not reached.
        slopes: ``(c − ε)/‖w* − w₀‖`` along each direction; NaN where the level was not reached.
    """

    model: str
    data: str
    center: float
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
        """The slopes of one model over one data set; what there is only one of need not be named.

        Raises:
            FlatnessError: there is none, or several.
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
    max_batches: int | None = None,
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> LevelSlopes:
    """The average slope ``(c − ε)/‖w* − w₀‖`` from the weights ``w*`` to points ``w₀`` where the loss is ``c``.

    The paper takes for c "the loss at the entrance of the basin", which nobody knows, and for ``w₀`` any point of the
    level set. Here c is given, and ``w₀`` is where a ray from ``w*`` meets the level: along random directions, or
    towards other weights. Along random directions in many dimensions, distances mostly reflect the mean curvature
    (the trace of the Hessian), not the lowest way out.

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
        progress: called after each direction as ``progress(directions so far, all directions)``.

    Raises:
        FlatnessError: bad input; a level that is not above the loss; ``towards`` given and equal to the weights.
    """
    _check(level, directions, max_distance, tol, max_iter)
    compared = Comparison.of(model, loss, data, max_batches=max_batches, mode=mode, dtype=dtype)
    reach = 10 * math.sqrt(sum(norm(p.detach().flatten()) ** 2 for p in compared.first.parameters())) or 1.0
    if towards is None:
        compared.check_same_parameters()
        names = selected(compared.first, parameters)
        rays, count = dict.fromkeys(compared.models, random_directions(directions, seed, "unit", names)), directions
    else:
        if parameters != "all":
            raise FlatnessError("parameters chooses what random directions move: leave it out where towards is given")
        routes, _ = unit_differences(compared, towards, None)
        rays, count = {name: given_directions([direction]) for name, (direction, _) in routes.items()}, 1
        reach = max(reach, *(distance for _, distance in routes.values()))
    limit = reach if max_distance is None else float(max_distance)
    step = counter(progress, len(compared.pairs) * count)
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

    A loss that is infinite or NaN counts as above the level while searching, but is no crossing: where the loss is
    finite below the level and not finite beyond, the level is not reached.
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


def _check(level: float, directions: int, max_distance: float | None, tol: float, max_iter: int) -> None:
    checked_count("directions", directions)
    checked_count("max_iter", max_iter, 2)
    if not isinstance(level, (int, float)) or not math.isfinite(level):
        raise FlatnessError(f"level must be a finite loss; got {level!r}")
    if max_distance is not None and not 0 < max_distance < math.inf:
        raise FlatnessError(f"max_distance must be a positive distance; got {max_distance!r}")
    if not 0 < tol < 1:
        raise FlatnessError(f"tol must be a relative tolerance between 0 and 1; got {tol!r}")

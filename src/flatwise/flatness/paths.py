"""Loss against perturbations of the weights (peak-LR paper, section 6.1).

Every function here takes ``model``, ``loss`` and ``data``, and ``max_batches``, ``mode`` and ``dtype``, as
:func:`flatwise.flatness.measuring` explains them. ``model`` may also be several models by name, ``{"vanilla": a,
"peak": b}``, and ``data`` several data sets by name, ``{"train": loader, "test": other}``: each model is measured over
each set, along the same directions. (A mapping with a tensor among its values is one batch.) Models come back as they
were, bit for bit, whatever happens.

Only parameters that require a gradient move. Buffers stay as they are: in ``"eval"`` mode BatchNorm keeps the
statistics of the unmoved weights, so part of the loss at a distance is that they no longer fit; ``mode="train"`` takes
each batch's own. In a model of half precision, steps below its rounding are lost: give ``dtype=torch.float32``.

A loss that is infinite or NaN at some distance is an outcome, and is recorded; at the model's own weights it is an
error. So is a model or a loss that raises.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from flatwise.flatness._models_and_data import Models, ModelsAndData, Progress, counter, parameter_shapes
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
from flatwise.flatness.guard import FlatnessError, Mode, checked_count
from flatwise.flatness.objective import Loss


def weight_path(
    model: Models,
    loss: Loss,
    data: Any,
    towards: Weights | Mapping[str, Weights],
    *,
    origin: Weights | Mapping[str, Weights] | None = None,
    distances: Iterable[float] | None = None,
    max_batches: int | None = None,
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> LossCurves:
    """Loss along the unit direction from the weights to other weights, such as those at the schedule's peak.

    ``L(w_final + α (w_peak − w_final) / ‖w_peak − w_final‖)``, the mean loss over the samples, with α the distance. The
    paper shows α > 0; negative ones show the other side of the minimum.

    Args:
        towards: the other end: a state dict, tensors in the order of ``model.parameters()``, or a flat vector of the
            parameters that require a gradient. Several models then move along the same direction, each from its own
            weights. Or a mapping of the models' names to such ends, ``{"vanilla": w_a, "peak": w_b}``: each model moves
            towards its own.
        origin: where the direction starts, in the same forms; default: the (first) model's own weights, or with an end
            for each model, each one's own.
        distances: Euclidean distances in the space of the weights; default: 21 from minus to plus the distance of the
            (farthest) other end, both and 0 among them.
        progress: called after each loss as ``progress(losses so far, all losses)``.

    Returns:
        Curves of one direction each. ``end`` is the distance of the other end; with one for each model, it is ``None``
        and ``ends`` has the distances by name.

    Raises:
        FlatnessError: bad input, or both ends are equal.
    """
    compared = ModelsAndData.of(model, loss, data, max_batches=max_batches, mode=mode, dtype=dtype)
    routes, shared = unit_differences(compared, towards, origin)
    ends = {name: distance for name, (_, distance) in routes.items()}
    chosen = symmetric(max(ends.values()), 10) if distances is None else checked_distances(distances)
    step = counter(progress, len(compared.pairs) * len(chosen))
    curves: list[LossCurve] = []
    for name, (direction, _) in routes.items():
        curves += curves_along(compared.alone(name), given_directions([direction]), chosen, step)
    if shared:
        return LossCurves(chosen, tuple(curves), next(iter(ends.values())))
    return LossCurves(chosen, tuple(curves), ends=ends)


def random_weight_paths(
    model: Models,
    loss: Loss,
    data: Any,
    *,
    parameters: Selection = "all",
    normalize: Normalization = "unit",
    directions: int = 10,
    distances: Iterable[float] | None = None,
    seed: int = 0,
    max_batches: int | None = None,
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> LossCurves:
    """Loss along random directions of the first layer's weights, of all weights, or of chosen ones.

    The paper does not say how its random perturbations are normalised, nor how long they are. ``"unit"`` is its own
    choice for inputs, and compares models at equal Euclidean distances, which favours large weights where their scale
    does not matter (before BatchNorm, between ReLU layers). ``"filter"`` is free of that.

    Args:
        parameters: ``"all"`` (the default); ``"first"``: the weight and the bias of the first layer, that is, the
            module that holds the first parameter of two or more dimensions in ``model.named_parameters()``; or names of
            parameters or of modules.
        normalize: ``"unit"`` (the default): each direction has norm 1. ``"filter"``: each filter of a direction has the
            norm of the model's own filter, and biases and BatchNorm stay
            (:func:`flatwise.flatness._vectors.filter_normalized`); several models have the same draws, each scaled to
            its own weights, and distances are relative: 1 is a perturbation as large as the weights.
        directions: how many. Default: 10.
        distances: along the normalised directions; default: 11 from −1 to 1, times the norm of the (first) model's
            chosen weights if ``normalize`` is ``"unit"``: up to a perturbation as large as the weights.
        seed: of the directions, which come from a generator of their own. ``"first"`` and ``"all"`` have the same draws
            in the first layer.
        progress: called after each loss as ``progress(losses so far, all losses)``.

    Raises:
        FlatnessError: bad input, or nothing to move.
    """
    checked_count("directions", directions)
    compared = ModelsAndData.of(model, loss, data, max_batches=max_batches, mode=mode, dtype=dtype)
    compared.check_same_parameters()
    names = selected(compared.first, parameters)
    along = random_directions(directions, seed, normalize, names)
    if distances is None:
        chosen = symmetric(_norm_of(compared, names) if normalize == "unit" else 1.0, 5)
    else:
        chosen = checked_distances(distances)
    step = counter(progress, len(compared.pairs) * directions * len(chosen))
    return LossCurves(chosen, curves_along(compared, along, chosen, step))


def fooling_path(
    model: Models,
    loss: Loss,
    data: Any,
    *,
    parameters: Selection = "all",
    distances: Iterable[float] | None = None,
    max_batches: int | None = None,
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> LossCurves:
    """Loss along the fooling direction of the weights: that in which the loss grows fastest, ``∇L(w) / ‖∇L(w)‖``.

    The paper names "weight perturbations along the fooling direction" and cites Szegedy et al. 2013, who perturb
    inputs, by an optimisation; it gives no equation. The unit gradient of the mean loss is our reading: the solution of
    the linearised problem, in the space of the weights. It is each model's own direction, taken over the (first) data
    set and used over all of them. Near a minimum the gradient is small and its direction says little: also look at
    :func:`flatwise.flatness.gradient_norm`, and at :func:`flatwise.flatness.top_eigenvalues` for the direction of the
    strongest curvature.

    Args:
        parameters: as for :func:`random_weight_paths`: the direction is the gradient by these. Default: ``"all"``, as
            in the paper.
        distances: Euclidean; default: 11 from 0 to a tenth of the norm of the (first) model's chosen weights.
        progress: called after each loss as ``progress(losses so far, all losses)``.

    Raises:
        FlatnessError: bad input, or the gradient is exactly 0.
    """
    compared = ModelsAndData.of(model, loss, data, max_batches=max_batches, mode=mode, dtype=dtype)
    compared.check_same_parameters()
    names = selected(compared.first, parameters)
    if distances is None:
        chosen = tuple(_norm_of(compared, names) * index / 100 for index in range(11))
    else:
        chosen = checked_distances(distances)
    step = counter(progress, len(compared.pairs) * len(chosen))
    curves: list[LossCurve] = []
    for name in compared.models:
        first_set = next(iter(compared.data))
        with compared.measuring(name, first_set) as objective:
            gradient = objective.gradient()[1]
            for parameter, part in objective.split(gradient).items():
                if parameter not in names:
                    part.zero_()
        direction = unit(gradient, f"the gradient of model {name!r}")
        curves += curves_along(compared.alone(name), given_directions([direction]), chosen, step)
    return LossCurves(chosen, tuple(curves))


def loss_along(
    model: Models,
    loss: Loss,
    data: Any,
    directions: Sequence[Weights],
    distances: Iterable[float],
    *,
    max_batches: int | None = None,
    mode: Mode = "eval",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
) -> LossCurves:
    """Loss along given directions, such as eigenvectors: ``L(w + α d/‖d‖)``.

    Args:
        directions: the directions ``d``, each in one of the forms that :func:`weight_path` takes; a tensor of shape
            ``(n, size)``, such as the ``vectors`` of :func:`flatwise.flatness.top_eigenvalues`, is n of them.
        distances: Euclidean.
        progress: called after each loss as ``progress(losses so far, all losses)``.

    Raises:
        FlatnessError: bad input, no directions, or one that is 0.
    """
    compared = ModelsAndData.of(model, loss, data, max_batches=max_batches, mode=mode, dtype=dtype)
    compared.check_same_parameters()
    vectors = [
        unit(weights_vector(compared.first, direction, f"direction {index}"), f"direction {index}")
        for index, direction in enumerate(directions)
    ]
    if not vectors:
        raise FlatnessError("no directions were given")
    chosen = checked_distances(distances)
    step = counter(progress, len(compared.pairs) * len(vectors) * len(chosen))
    return LossCurves(chosen, curves_along(compared, given_directions(vectors), chosen, step))


def curves_along(
    compared: ModelsAndData, directions: Directions, distances: Sequence[float], step: Callable[[], None]
) -> tuple[LossCurve, ...]:
    """The loss of every model over every data set at every distance along every direction, from its own weights.

    Args:
        compared: what is measured.
        directions: what gives the directions.
        distances: multiples of the directions.
        step: called after each loss.
    """
    curves = []
    for name, data in compared.pairs:
        with compared.measuring(name, data) as objective:
            center, own = objective.loss(), objective.vector()
            rows = []
            for direction in directions(objective):
                row = []
                for distance in distances:
                    row.append(center if distance == 0 else objective.loss(own.add(direction, alpha=distance)))
                    step()
                rows.append(tuple(row))
        curves.append(LossCurve(name, data, center, tuple(rows)))
    return tuple(curves)


def unit_differences(
    compared: ModelsAndData, towards: Weights | Mapping[str, Weights], origin: Weights | Mapping[str, Weights] | None
) -> tuple[dict[str, tuple[torch.Tensor, float]], bool]:
    """For each model, the unit direction from an origin to other weights, and the distance.

    Args:
        compared: the models.
        towards, origin: weights in a form that :func:`weights_vector` takes, or of each model by its name. The default
            origin is the first model's weights, or each one's own if anything is by name.

    Returns:
        Directions and distances by the models' names, and whether all models share them.

    Raises:
        FlatnessError: weights that do not fit, or both ends are equal; models that share a direction but not the
            parameters.
    """
    by_name = {what: _by_model(compared, one, what) for what, one in (("towards", towards), ("origin", origin))}
    shared = not any(by_name.values())
    if shared:
        compared.check_same_parameters()
    routes: dict[str, tuple[torch.Tensor, float]] = {}
    for name, model in compared.models.items():
        if shared and routes:
            routes[name] = next(iter(routes.values()))
            continue
        ends = []
        for what, given in (("origin", origin), ("towards", towards)):
            given = given[name] if by_name[what] else given  # type: ignore[index]
            label = f"{what} of model {name!r}" if by_name[what] else what
            ends.append(own_weights(model) if given is None else weights_vector(model, given, label))  # type: ignore[arg-type]
        difference = ends[1] - ends[0].to(ends[1].device)
        between = "the difference between the two ends of the path" + ("" if shared else f" of model {name!r}")
        routes[name] = unit(difference, between), norm(difference)
    return routes, shared


def _by_model(compared: ModelsAndData, weights: object, what: str) -> bool:
    """Whether weights are given for each model by name.

    Raises:
        FlatnessError: for some of the models, or for a name that is none.
    """
    if not isinstance(weights, Mapping):
        return False
    parameters = {name for model in compared.models.values() for name in parameter_shapes(model)}
    if set(weights) & parameters or not set(weights) & set(compared.models):
        return False  # a state dict, or meant to be one
    for name in compared.models:
        if name not in weights:
            raise FlatnessError(f"{what} has weights for {list(weights)}, but none for model {name!r}")
    for name in weights:
        if name not in compared.models:
            raise FlatnessError(f"{what} has weights for {name!r}, but the models are {list(compared.models)}")
    return True


def _norm_of(compared: ModelsAndData, names: frozenset[str]) -> float:
    """The norm of the first model's weights with these names; 1 if they are all 0."""
    parts = [norm(p.detach().flatten()) for name, p in compared.first.named_parameters() if name in names]
    return torch.tensor(parts, dtype=torch.float64, device="cpu").norm().item() or 1.0


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The losses of one model over one data set along one or several directions.

    Attributes:
        model, data: their names.
        center: the loss of the model as it is.
        losses: for each direction, the loss at each distance: the mean over the samples. Infinite or NaN where it is.
    """

    model: str
    data: str
    center: float
    losses: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean over the directions at each distance; infinite or NaN if one of them is."""
        return tuple(sum(column) / len(column) for column in zip(*self.losses, strict=True))


@dataclass(frozen=True, slots=True)
class LossCurves:
    """The losses of models over data sets along the same lines.

    Attributes:
        distances: where along each line, in the units that the function which measured them says.
        curves: one for every model with every data set.
        end: for a path between two points, the distance of the other point; else ``None``.
        ends: the same by the models' names, where each has a path of its own; else empty.
    """

    distances: tuple[float, ...]
    curves: tuple[LossCurve, ...]
    end: float | None = None
    ends: Mapping[str, float] = field(default_factory=dict)

    def curve(self, model: str | None = None, data: str | None = None) -> LossCurve:
        """The curve of one model over one data set; what there is only one of need not be named.

        Raises:
            FlatnessError: there is none, or several.
        """
        return pick(self.curves, model, data)


class Named(Protocol):
    """What belongs to one model and one data set."""

    @property
    def model(self) -> str: ...  # noqa: D102

    @property
    def data(self) -> str: ...  # noqa: D102


Entry = TypeVar("Entry", bound=Named)


def pick(entries: Sequence[Entry], model: str | None, data: str | None) -> Entry:
    """The one entry with these names; ``None`` fits any.

    Raises:
        FlatnessError: there is none, or several.
    """
    fitting = [entry for entry in entries if model in (None, entry.model) and data in (None, entry.data)]
    if len(fitting) != 1:
        raise FlatnessError(
            f"{len(fitting)} entries have model={model!r} and data={data!r}, not one; there are (model, data) "
            f"{[(entry.model, entry.data) for entry in entries]}"
        )
    return fitting[0]


def checked_distances(distances: Iterable[float], what: str = "distances") -> tuple[float, ...]:
    """Distances as floats.

    Raises:
        FlatnessError: there are none, or one is not a finite number.
    """
    try:
        values = tuple(float(distance) for distance in distances)
    except (TypeError, ValueError):
        raise FlatnessError(f"{what} must be numbers; got {distances!r}") from None
    if not values or not all(math.isfinite(value) for value in values):
        raise FlatnessError(f"{what} must be finite numbers, at least one; got {values}")
    return values


def symmetric(reach: float, steps: int) -> tuple[float, ...]:
    """``2 · steps + 1`` distances from ``−reach`` to ``reach``, both and 0 exactly among them."""
    return tuple(reach * (index / steps) for index in range(-steps, steps + 1))

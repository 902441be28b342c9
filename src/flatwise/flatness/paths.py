"""Loss against perturbations of the weights (peak-LR paper, section 6.1).

Every function here takes ``model``, ``loss`` and ``data``, and ``max_batches``, ``mode`` and ``dtype``, as
:func:`flatwise.flatness.measuring` explains them. ``model`` may also be several models by name, ``{"vanilla": a,
"peak": b}``, and ``data`` several data sets by name, ``{"train": loader, "test": other}``: each model is measured over
each set, along the same directions. (A mapping with a tensor among its values is one batch.) ``progress`` is called
after each loss as ``progress(losses so far, all losses)``. Models come back bit for bit, also after an error.

Only parameters that require a gradient move. Buffers stay as they are: in ``"eval"`` mode BatchNorm keeps the
statistics of the unmoved weights, and part of the loss at a distance comes from that; ``mode="train"`` takes each
batch's own. In a model of half precision, steps below its rounding are lost: give ``dtype=torch.float32``.

An infinite or NaN loss at some distance is recorded; at the model's own weights it is an error. So is a model or a
loss that raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

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
from flatwise.flatness.guard import FlatnessError, checked_count, trainable
from flatwise.flatness.objective import Loss, Objective


@dataclass(frozen=True, slots=True)
class Measured:
    """Losses of one model over one data set.

    Attributes:
        model, data: their names.
        center: the loss of the model as it is.
    """

    model: str
    data: str
    center: float


@dataclass(frozen=True, slots=True)
class LossCurve(Measured):
    """The losses of one model over one data set along one or several directions.

    Attributes:
        model, data: their names.
        center: the loss of the model as it is.
        losses: for each direction, the loss at each distance: the mean over the samples. May be infinite or NaN.
    """

    losses: Rows

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean over the directions at each distance; infinite or NaN if one of the losses is."""
        return tuple(sum(column) / len(column) for column in zip(*self.losses, strict=True))


@dataclass(frozen=True, slots=True)
class LossCurves:
    """The losses of models over data sets along the same lines.

    Attributes:
        distances: of the points along each line, in the units of the function that measured them.
        curves: one for every model with every data set.
        end: for a path between two points, the distance of the other point; else ``None``.
        ends: the same by the models' names, where each has a path of its own; else empty.
    """

    distances: tuple[float, ...]
    curves: tuple[LossCurve, ...]
    end: float | None = None
    ends: Mapping[str, float] = field(default_factory=dict)

    def curve(self, model: str | None = None, data: str | None = None) -> LossCurve:
        """The curve of one model over one data set. Names may be omitted if there is only one.

        Raises:
            FlatnessError: no curve fits, or several.
        """
        return pick(self.curves, model, data)


Entry = TypeVar("Entry", bound=Measured)


def pick(entries: Sequence[Entry], model: str | None, data: str | None) -> Entry:
    """The only entry with these names; ``None`` fits any.

    Raises:
        FlatnessError: no entry fits, or several.
    """
    fitting = [entry for entry in entries if model in (None, entry.model) and data in (None, entry.data)]
    if len(fitting) != 1:
        raise FlatnessError(
            f"{len(fitting)} entries have model={model!r} and data={data!r}, not one; there are (model, data) "
            f"{[(entry.model, entry.data) for entry in entries]}"
        )
    return fitting[0]


def weight_path(
    model: Models,
    loss: Loss,
    data: Any,
    towards: Weights | Mapping[str, Weights],
    *,
    origin: Weights | Mapping[str, Weights] | None = None,
    distances: Iterable[float] | None = None,
    **options: Unpack[PathOptions],
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
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: see the top of this module.

    Returns:
        Curves of one direction each. ``end`` is the distance of the other end; with one for each model, it is ``None``
        and ``ends`` has the distances by name.

    Raises:
        FlatnessError: bad input, or both ends are equal.
    """
    compared = ModelsAndData(model, loss, data, **options)
    routes, shared = unit_differences(compared, towards, origin)
    ends = {name: distance for name, (_, distance) in routes.items()}
    chosen = symmetric(max(ends.values()), 10) if distances is None else checked_distances(distances)
    directions = {name: given_directions([direction]) for name, (direction, _) in routes.items()}
    curves = curves_along(compared, directions, 1, chosen)
    if shared:
        return LossCurves(chosen, curves, next(iter(ends.values())))
    return LossCurves(chosen, curves, ends=ends)


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
    **options: Unpack[PathOptions],
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
            norm of the model's own filter (a slice of a parameter's first dimension), and biases and BatchNorm stay;
            several models have the same draws, each scaled to its own weights, and distances are relative: 1 is a
            perturbation as large as the weights.
        directions: how many. Default: 10.
        distances: along the normalised directions; default: 11 from −1 to 1, times the norm of the (first) model's
            chosen weights if ``normalize`` is ``"unit"``: up to a perturbation as large as the weights.
        seed: of the directions, which come from a generator of their own. ``"first"`` and ``"all"`` have the same draws
            in the first layer.
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: see the top of this module.

    Raises:
        FlatnessError: bad input, or nothing to move.
    """
    checked_count("directions", directions)
    compared = ModelsAndData(model, loss, data, **options)
    compared.check_same_parameters()
    names = selected(compared.first, parameters)
    along = random_directions(directions, seed, normalize, names)
    reach = _norm_of(compared, names) if normalize == "unit" else 1.0
    chosen = symmetric(reach, 5) if distances is None else checked_distances(distances)
    return LossCurves(chosen, curves_along(compared, dict.fromkeys(compared.models, along), directions, chosen))


def fooling_path(
    model: Models,
    loss: Loss,
    data: Any,
    *,
    parameters: Selection = "all",
    distances: Iterable[float] | None = None,
    **options: Unpack[PathOptions],
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
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: see the top of this module.

    Raises:
        FlatnessError: bad input, or the gradient is exactly 0.
    """
    compared = ModelsAndData(model, loss, data, **options)
    compared.check_same_parameters()
    names = selected(compared.first, parameters)
    if distances is None:
        chosen = tuple(_norm_of(compared, names) * index / 100 for index in range(11))
    else:
        chosen = checked_distances(distances)
    directions = {}
    for name in compared.models:
        with compared.measuring(name, compared.first_data) as objective:
            gradient = objective.gradient()[1]
            for parameter, part in objective.split(gradient).items():
                if parameter not in names:
                    part.zero_()
        directions[name] = given_directions([unit(gradient, f"the gradient of model {name!r}")])
    return LossCurves(chosen, curves_along(compared, directions, 1, chosen))


def loss_along(
    model: Models,
    loss: Loss,
    data: Any,
    directions: Sequence[Weights],
    distances: Iterable[float],
    **options: Unpack[PathOptions],
) -> LossCurves:
    """Loss along given directions, such as eigenvectors: ``L(w + α d/‖d‖)``.

    Args:
        directions: the directions ``d``, each in one of the forms that :func:`weight_path` takes; a tensor of shape
            ``(n, size)``, such as the ``vectors`` of :func:`flatwise.flatness.top_eigenvalues`, is n of them.
        distances: Euclidean.
        **options: ``max_batches``, ``mode``, ``dtype`` and ``progress``: see the top of this module.

    Raises:
        FlatnessError: bad input, no directions, or one that is 0.
    """
    compared = ModelsAndData(model, loss, data, **options)
    compared.check_same_parameters()
    vectors = [
        unit(weights_vector(compared.first, direction, f"direction {index}"), f"direction {index}")
        for index, direction in enumerate(directions)
    ]
    if not vectors:
        raise FlatnessError("no directions were given")
    along = dict.fromkeys(compared.models, given_directions(vectors))
    chosen = checked_distances(distances)
    return LossCurves(chosen, curves_along(compared, along, len(vectors), chosen))


def curves_along(
    compared: ModelsAndData, directions: Mapping[str, Directions], count: int, distances: Sequence[float]
) -> tuple[LossCurve, ...]:
    """The loss of every model over every data set at every distance along every direction, from its own weights.

    Args:
        compared: the models and data.
        directions: what gives the directions, by the models' names.
        count: how many directions it gives.
        distances: multiples of the directions.
    """

    def points(model: str, objective: Objective) -> Iterator[Iterable[torch.Tensor | None]]:
        own = objective.vector()
        for direction in directions[model](objective):
            yield (None if distance == 0 else own.add(direction, alpha=distance) for distance in distances)

    return tuple(LossCurve(*found) for found in compared.losses(points, count * len(distances)))


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
    ends, starts = _by_model(compared, towards, "towards"), _by_model(compared, origin, "origin")
    if ends is None and starts is None:
        compared.check_same_parameters()
        return dict.fromkeys(compared.models, _route(compared.first, towards, origin)), True
    routes = {}
    for name, model in compared.models.items():
        end = towards if ends is None else ends[name]
        start = origin if starts is None else starts[name]
        routes[name] = _route(model, end, start, f" of model {name!r}")
    return routes, False


def _route(model: nn.Module, towards: Any, origin: Any, of: str = "") -> tuple[torch.Tensor, float]:
    """The unit direction between two weights, and their distance. ``of``: whose they are, for messages."""
    start = own_weights(model) if origin is None else weights_vector(model, origin, f"origin{of}")
    end = weights_vector(model, towards, f"towards{of}")
    difference = end - start.to(end.device)
    return unit(difference, f"the difference between the two ends of the path{of}"), norm(difference)


def _by_model(compared: ModelsAndData, weights: Any, what: str) -> Mapping[str, Weights] | None:
    """The weights, if they are given for each model by name; else ``None``.

    Raises:
        FlatnessError: they are given for some of the models, or for an unknown name.
    """
    if not isinstance(weights, Mapping):
        return None
    parameters = {name for model in compared.models.values() for name in trainable(model)}
    if set(weights) & parameters or not set(weights) & set(compared.models):
        return None  # a state dict, or meant to be one
    for name in compared.models:
        if name not in weights:
            raise FlatnessError(f"{what} has weights for {list(weights)}, but none for model {name!r}")
    for name in weights:
        if name not in compared.models:
            raise FlatnessError(f"{what} has weights for {name!r}, but the models are {list(compared.models)}")
    return weights


def _norm_of(compared: ModelsAndData, names: frozenset[str]) -> float:
    """The norm of the first model's weights with these names; 1 if they are all 0."""
    parts = [norm(p.detach().flatten()) for name, p in compared.first.named_parameters() if name in names]
    return torch.tensor(parts, dtype=torch.float64, device="cpu").norm().item() or 1.0


def checked_distances(distances: Iterable[float], what: str = "distances") -> tuple[float, ...]:
    """Distances as floats.

    Raises:
        FlatnessError: an empty list, or a value that is not a finite number.
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

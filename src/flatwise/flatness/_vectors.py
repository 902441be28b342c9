"""Weights and directions as flat vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from typing import Literal, TypeAlias

import torch
from torch import nn

from flatwise.flatness.guard import FlatnessError, naming, trainable
from flatwise.flatness.objective import Objective, split

Weights: TypeAlias = Mapping[str, torch.Tensor] | Iterable[torch.Tensor] | torch.Tensor
Normalization: TypeAlias = Literal["unit", "filter"]
Selection: TypeAlias = str | Iterable[str]
Directions: TypeAlias = Callable[[Objective], Iterator[torch.Tensor]]
"""Gives the directions, vectors of shape (size,), along which an objective's weights move: always the same ones."""


def own_weights(model: nn.Module) -> torch.Tensor:
    """The parameters that require a gradient as one vector, in the order of ``model.named_parameters()``.

    Float32 at least, on the first one's device: what :meth:`flatwise.flatness.Objective.vector` gives.
    """
    own = trainable(model)
    return _joined(own, own)


def weights_vector(model: nn.Module, weights: Weights, what: str) -> torch.Tensor:
    """Other weights of a model as such a vector.

    Args:
        model: whose weights they could be.
        weights: a state dict (buffers and other entries are ignored); tensors in the order of
            ``model.parameters()``, of all parameters or of those that require a gradient; or the flat vector, shape
            ``(size,)``.
        what: what they are, for messages.

    Raises:
        FlatnessError: names, numbers or shapes that do not fit the model; values that are not finite; or a frozen
            parameter that differs from the model's, since nothing here moves it.
    """
    own = trainable(model)
    if isinstance(weights, torch.Tensor):
        with naming(what):
            named = split(weights, {name: parameter.shape for name, parameter in own.items()})
    else:
        named = _by_name(model, own, weights, what)
        _check_fit(model, named, what)
    vector = _joined({name: named[name] for name in own}, own)
    if not vector.isfinite().all():
        raise FlatnessError(f"{what} has values that are not finite")
    return vector


def norm(vector: torch.Tensor) -> float:
    """The Euclidean norm, summed in float64 where the device has it."""
    dtype = None if vector.device.type == "mps" else torch.float64
    return float(torch.linalg.vector_norm(vector, dtype=dtype))


def unit(vector: torch.Tensor, what: str) -> torch.Tensor:
    """The vector over its norm.

    Raises:
        FlatnessError: the vector is 0.
    """
    length = norm(vector)
    if length == 0:
        raise FlatnessError(f"{what} is 0: it has no direction")
    return vector / length


def _by_name(
    model: nn.Module,
    own: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | Iterable[torch.Tensor],
    what: str,
) -> dict[str, torch.Tensor]:
    every = [name for name, _ in model.named_parameters()]
    if isinstance(weights, Mapping):
        for name in own:
            if name not in weights:
                raise FlatnessError(
                    f"{what} has no {name!r}, a parameter of the model, but {list(weights)[:3]}: give "
                    "model.state_dict()"
                )
        return {name: weights[name] for name in every if name in weights}
    given = list(weights)
    for names in (list(own), every):
        if len(given) == len(names):
            return dict(zip(names, given, strict=True))
    raise FlatnessError(
        f"{what} has {len(given)} tensors, but the model has {len(own)} parameters that require a gradient"
    )


def _check_fit(model: nn.Module, named: dict[str, torch.Tensor], what: str) -> None:
    """Raise for values that are not tensors of the model's shapes, or that differ from its frozen parameters."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            if name in named and not torch.equal(named[name].detach().to(parameter), parameter.detach()):
                raise FlatnessError(
                    f"{what} differs from the model in {name!r}, which does not require a gradient and so is not "
                    "moved: call requires_grad_() on it first, or leave it out"
                )
        elif not isinstance(named[name], torch.Tensor):
            raise FlatnessError(f"{what}: {name!r} must be a tensor; got a {type(named[name]).__name__}")
        elif named[name].shape != parameter.shape:
            raise FlatnessError(
                f"{what}: {name!r} has shape {tuple(named[name].shape)}; the model's has {tuple(parameter.shape)}"
            )


def _joined(named: Mapping[str, torch.Tensor], like: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The values as one vector, in the widest dtype of the model's parameters, ``like``, and on the first's device."""
    dtype = reduce(torch.promote_types, (parameter.dtype for parameter in like.values()), torch.float32)
    device = next(iter(like.values())).device
    return torch.cat([value.detach().to(device, dtype).flatten() for value in named.values()])


def given_directions(vectors: Iterable[torch.Tensor]) -> Directions:
    """The same vectors for every model, as they are."""
    kept = list(vectors)

    def directions(objective: Objective) -> Iterator[torch.Tensor]:
        for vector in kept:
            yield vector.to(objective.device, objective.dtype)

    return directions


def random_directions(count: int, seed: int, normalize: Normalization, names: frozenset[str]) -> Directions:
    """Normal directions from a generator of their own: the same draws for every model, device and dtype.

    Args:
        count: how many.
        seed: of the draws.
        normalize: ``"unit"`` or ``"filter"``: see :func:`filter_normalized`, which scales them by each model's own
            filters.
        names: the parameters to move. The draws do not depend on this choice.

    Raises:
        FlatnessError: unknown ``normalize``; when the directions are drawn, also if nothing is left to move.
    """
    if normalize not in ("unit", "filter"):
        raise FlatnessError(f"normalize must be 'unit' or 'filter'; got {normalize!r}")

    def directions(objective: Objective) -> Iterator[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            draws = torch.randn(objective.size, generator=generator, dtype=torch.float32, device="cpu")
            direction = draws.to(objective.device, objective.dtype)
            for name, part in objective.split(direction).items():
                if name not in names:
                    part.zero_()
            filters = normalize == "filter"
            yield filter_normalized(objective, direction) if filters else unit(direction, "the random direction")

    return directions


def filter_normalized(objective: Objective, direction: torch.Tensor) -> torch.Tensor:
    """Scale each filter of a direction to the norm of the model's own filter (Li et al. 2018, section 4).

    ``d_ij ← d_ij / ‖d_ij‖ · ‖w_ij‖`` for filter j of layer i. A filter is a slice of a parameter's first dimension:
    what makes one output channel or neuron, or one row of an embedding. Parameters of fewer than two dimensions
    (biases, BatchNorm) are not moved, as with ``ignore="biasbn"`` in that paper's code. A rescaling of the weights that
    leaves the network's function as it is then leaves the curves as they are.

    Args:
        objective: with the model's own weights.
        direction: shape (size,).

    Returns:
        The scaled direction, of about the norm of the weights.

    Raises:
        FlatnessError: no filter differs from 0.
    """
    scaled = torch.zeros_like(direction)
    own, given = objective.split(objective.vector()), objective.split(direction)
    for name, part in objective.split(scaled).items():
        if part.ndim < 2:
            continue
        lengths, targets = _filter_norms(given[name]), _filter_norms(own[name])
        part.copy_(given[name] * torch.where(lengths > 0, targets / lengths, 0.0))
    if not scaled.any():
        raise FlatnessError(
            "filter normalisation leaves nothing to move: the chosen parameters have no filter that is not 0 "
            "(biases and BatchNorm are left out); use normalize='unit'"
        )
    return scaled


def selected(model: nn.Module, parameters: Selection) -> frozenset[str]:
    """The names of the parameters to move.

    Args:
        model: the model.
        parameters: ``"all"``: all that require a gradient. ``"first"``: the first layer, that is, the module that holds
            the first parameter of two or more dimensions in ``model.named_parameters()``, with its bias (the order in
            which the model defines its layers, not that in which it calls them). Or names of parameters or of modules.

    Raises:
        FlatnessError: a name that is not the model's, or of which nothing requires a gradient; no names.
    """
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    chosen: list[str] = []
    for item in [parameters] if isinstance(parameters, str) else parameters:
        if item == "all":
            found = list(trainable)
        elif item == "first":
            found = _first_layer(model)
        else:
            found = [name for name in trainable if name == item or name.startswith(f"{item}.")]
        if not found:
            raise FlatnessError(
                f"parameters: {item!r} is no parameter and no module with parameters; the model's first parameters "
                f"are {list(trainable)[:3]}"
            )
        moving = [name for name in found if trainable[name]]
        if not moving:
            raise FlatnessError(f"parameters: {item!r} has none that requires a gradient: {found[0]!r} is frozen")
        chosen += moving
    if not chosen:
        raise FlatnessError("parameters: no names were given: there is nothing to move")
    return frozenset(chosen)


def _first_layer(model: nn.Module) -> list[str]:
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            layer = name.rpartition(".")[0]
            return [other for other, _ in model.named_parameters() if other.rpartition(".")[0] == layer]
    raise FlatnessError("the model has no parameter of two or more dimensions: name the parameters to move")


def _filter_norms(part: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(part, dim=tuple(range(1, part.ndim)), keepdim=True)
    return norms

"""Weights and directions as flat vectors, whatever form the user has them in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch
from torch import nn

from flatwise.flatness.errors import FlatnessError

Weights: TypeAlias = Mapping[str, torch.Tensor] | Iterable[torch.Tensor] | torch.Tensor


def own_weights(model: nn.Module) -> torch.Tensor:
    """The parameters that require a gradient as one vector, in the order of ``model.named_parameters()``.

    Float32 at least, on the first one's device: what :meth:`flatwise.flatness.Objective.vector` gives.
    """
    return _joined(_trainable(model), model)


def weights_vector(model: nn.Module, weights: Weights, what: str) -> torch.Tensor:
    """Other weights of a model as such a vector.

    Args:
        model: whose weights they could be.
        weights: a state dict (its buffers, and what else it has, are passed over); tensors in the order of
            ``model.parameters()``, of all parameters or of those that require a gradient; or the flat vector, shape
            ``(size,)``.
        what: what they are, for messages.

    Raises:
        FlatnessError: names, numbers or shapes that do not fit the model; values that are not finite; or a frozen
            parameter that differs from the model's, since nothing here moves it.
    """
    trainable = _trainable(model)
    if isinstance(weights, torch.Tensor):
        size = sum(p.numel() for p in trainable.values())
        if weights.shape != (size,):
            raise FlatnessError(
                f"{what}: a vector of all parameters that require a gradient has shape ({size},) for this model; "
                f"got {tuple(weights.shape)}"
            )
        vector = torch.empty_like(own_weights(model)).copy_(weights.detach())
    else:
        named = _by_name(model, trainable, weights, what)
        _check_shapes(trainable, named, what)
        _check_frozen(model, named, what)
        vector = _joined({name: named[name] for name in trainable}, model)
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
        FlatnessError: it is 0.
    """
    length = norm(vector)
    if length == 0:
        raise FlatnessError(f"{what} is 0: it has no direction")
    return vector / length


def _trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    if not isinstance(model, nn.Module):
        raise FlatnessError(f"model must be a torch.nn.Module; got a {type(model).__name__}")
    trainable = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise FlatnessError("the model has no parameter that requires a gradient: there is nothing to move")
    return trainable


def _by_name(
    model: nn.Module,
    trainable: dict[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor] | Iterable[torch.Tensor],
    what: str,
) -> dict[str, torch.Tensor]:
    if isinstance(weights, Mapping):
        missing = [name for name in trainable if name not in weights]
        if missing:
            raise FlatnessError(
                f"{what} has no {missing[0]!r}, a parameter of the model, but {list(weights)[:3]}: give "
                "model.state_dict()"
            )
        return {name: weights[name] for name, _ in model.named_parameters() if name in weights}
    given = list(weights)
    for names in (list(trainable), [name for name, _ in model.named_parameters()]):
        if len(given) == len(names):
            return dict(zip(names, given, strict=True))
    raise FlatnessError(
        f"{what} has {len(given)} tensors, but the model has {len(trainable)} parameters that require a gradient"
    )


def _check_shapes(trainable: dict[str, torch.Tensor], named: dict[str, torch.Tensor], what: str) -> None:
    for name, parameter in trainable.items():
        value = named[name]
        if not isinstance(value, torch.Tensor):
            raise FlatnessError(f"{what}: {name!r} must be a tensor; got a {type(value).__name__}")
        if value.shape != parameter.shape:
            raise FlatnessError(
                f"{what}: {name!r} has shape {tuple(value.shape)}; the model's has {tuple(parameter.shape)}"
            )


def _check_frozen(model: nn.Module, named: dict[str, torch.Tensor], what: str) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or name not in named:
            continue
        if not torch.equal(named[name].detach().to(parameter), parameter.detach()):
            raise FlatnessError(
                f"{what} differs from the model in {name!r}, which does not require a gradient and so is not moved: "
                "call requires_grad_() on it first, or leave it out"
            )


def _joined(named: dict[str, torch.Tensor], model: nn.Module) -> torch.Tensor:
    dtype, devices = torch.float32, []
    for parameter in model.parameters():
        if parameter.requires_grad:
            dtype = torch.promote_types(dtype, parameter.dtype)
            devices.append(parameter.device)
    vector = torch.empty(sum(math.prod(value.shape) for value in named.values()), dtype=dtype, device=devices[0])
    start = 0
    for value in named.values():
        vector[start : start + value.numel()] = value.detach().flatten()
        start += value.numel()
    return vector

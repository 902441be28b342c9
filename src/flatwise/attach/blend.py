"""Scaling an update after the fact: ``p ← old + f · (new − old)``, where ``new`` is what the plain optimizer wrote."""

from __future__ import annotations

import torch
from torch import Tensor

from flatwise._noise import reference
from flatwise.attach.draw import Draw
from flatwise.attach.shards import Block


def blend(old: Tensor, new: Tensor, factor: Tensor) -> Tensor:
    """``old + factor · (new − old)``, exact at the ends.

    Where the factor is 1 the result has new's bits, where it is 0 old's, and an element that the optimizer did not
    move keeps its bits whatever the factor; so no infinity is multiplied by zero. 16-bit parameters are blended in
    float32 and rounded once.

    Args:
        old: the parameter before the step; floating point or complex.
        new: the parameter after the plain step; same shape and dtype.
        factor: real, broadcasts over them.

    Returns:
        Same shape and dtype as ``new``.
    """
    if new.is_complex():
        parts = blend(torch.view_as_real(old), torch.view_as_real(new), factor.unsqueeze(-1))
        return torch.view_as_complex(parts)
    wide = torch.promote_types(new.dtype, torch.float32)
    was, now, weight = old.to(wide), new.to(wide), factor.to(wide)
    moved = now - was
    # From the nearer end; each operation rounds once, so that every implementation can have the same bits.
    mixed = torch.where(weight.abs() < 0.5, was + weight * moved, now - moved * (1 - weight)).to(new.dtype)
    mixed = torch.where((weight == 0) | (was == now), old, mixed)
    return torch.where(weight == 1, new, mixed)


def blend_(parameter: Tensor, old: Tensor, draws: list[Draw], block: Block) -> None:
    """Scales in place the update that took ``old`` to ``parameter`` by the product of the draws' factors.

    Args:
        parameter: the local part of a parameter, after the plain step.
        old: the same before the step, contiguous or strided as ``parameter`` is.
        draws: one per perturbation; the factors multiply.
        block: where the local part lies in the whole tensor.
    """
    by_element = all(draw.perturbation.scope == "element" for draw in draws)
    start = block.start
    if by_element and start is not None and parameter.is_contiguous() and old.is_contiguous():
        flat, flat_old = parameter.view(-1), old.view(-1)
        # In chunks: the factors of a large tensor would be as large as the tensor.
        for offset, length in reference.runs(start, flat.numel()):
            here = slice(offset, offset + length)
            factor = draws[0].run(start + offset, length, parameter.device)
            for draw in draws[1:]:
                factor = factor * draw.run(start + offset, length, parameter.device)
            flat[here] = blend(flat_old[here], flat[here], factor)
    elif parameter.numel():
        parameter.copy_(blend(old, parameter, block_factor(draws, block, parameter.device)))


def block_factor(draws: list[Draw], block: Block, device: torch.device) -> Tensor:
    """Product of the draws' factors over the elements held here; float32, to broadcast over ``block.local_shape``."""
    factor = draws[0].block(block, device)
    for draw in draws[1:]:
        factor = factor * draw.block(block, device)
    return factor

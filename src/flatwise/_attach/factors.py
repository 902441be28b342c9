"""The factors that perturbations draw for an optimizer at a step, and updates scaled by them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes

from flatwise._attach.parameters import ALL, Block, group_id, local_part, parameter_ids
from flatwise._kernels.forms import KernelForm
from flatwise._noise import reference
from flatwise._noise.keys import derive_keys
from flatwise.perturbation import Perturbation

# Draw so many at a time: it takes as long as one draw, which alone is slower than a small model's step.
_BLOCK = 64


@dataclass(frozen=True)
class Calendar:
    """How optimizer steps make epochs.

    Attributes:
        steps_per_epoch: optimizer steps in one epoch; ``None`` (the default) if no perturbation needs it.
        epochs: epochs of the whole training; ``None`` (the default) if no perturbation needs it.
    """

    steps_per_epoch: int | None = None
    epochs: int | None = None

    def epoch(self, step: int) -> int:
        """0-based epoch of a 0-based step."""
        return 0 if self.steps_per_epoch is None else step // self.steps_per_epoch

    def counter(self, perturbation: Perturbation, step: int) -> int | None:
        """Number of the draw that a step uses: the step, the epoch, or 0; ``None`` outside the window."""
        window = perturbation.window
        if not (window.is_always or window.contains(self.epoch(step), self.epochs or 0)):
            return None
        match perturbation.cadence:
            case "step":
                return step
            case "epoch":
                return self.epoch(step)
            case _:
                return 0


class Acting(NamedTuple):
    """A perturbation that acts at a step.

    Attributes:
        perturbation: the perturbation.
        seed, counter: what its draws are a function of.
        position: its position among the optimizer's perturbations, which tells its draws from the others'.
        form: its distribution as the kernels know it, if they can draw it; else ``None``.
    """

    perturbation: Perturbation
    seed: int
    counter: int
    position: int
    form: KernelForm | None

    def rate_factor(self, group: int) -> float:
        """The factor of one group's rate, for scopes ``"all"`` and ``"group"``; a float32 value."""
        shared_by = ALL if self.perturbation.scope == "all" else group_id(group)
        block, offset = divmod(self.counter, _BLOCK)
        return _rate_factors(self.perturbation, self.seed, block, self.position, shared_by)[offset]

    def draws(self, ids: list[int]) -> list[Draw]:
        """The draw for each parameter, for finer scopes."""
        return draws(self.perturbation, self.seed, self.counter, self.position, ids)


class Noise(NamedTuple):
    """What acts at one step; decided once, when the step begins.

    Attributes:
        coarse: the perturbations that multiply a group's rate.
        fine: those that are finer than a group and scale the update.
        by_kernel: the one in ``fine``, if it is alone and the kernels can draw it; else ``None``.
    """

    coarse: list[Acting]
    fine: list[Acting]
    by_kernel: Acting | None

    def rate_factors(self, group: int) -> list[tuple[float, Bounds]]:
        """The factors of one group's rate, each with the bounds that hold after it."""
        return [(acting.rate_factor(group), acting.perturbation.bounds) for acting in self.coarse]

    def rate_factor(self, group: int) -> float:
        """The product of the factors of one group's rate, without bounds."""
        return math.prod((acting.rate_factor(group) for acting in self.coarse), start=1.0)

    def draws(self, ids: list[int]) -> list[list[Draw]]:
        """For each parameter its draws, one for each perturbation that is finer than a group."""
        if not self.fine:
            return [[] for _ in ids]
        return [list(drawn) for drawn in zip(*(acting.draws(ids) for acting in self.fine), strict=True)]


Bounds = tuple[float, float]


def bounded(rate: float, bounds: Bounds) -> float:
    """The rate, clamped to the bounds."""
    low, high = bounds
    return min(max(rate, low), high)


class Factors:
    """What the perturbations of an optimizer draw: pure functions of (seed, step).

    Attributes:
        perturbations: the perturbations.
        calendar: how steps make epochs.
        forms: for each perturbation that is finer than a group, by position, its distribution as the kernels know it.
        is_fine: whether there are any: then updates are scaled.
        changes: how often :meth:`refresh` has found groups, parameters or names changed.
    """

    def __init__(self, optimizer: Optimizer, perturbations: tuple[Perturbation, ...], calendar: Calendar) -> None:
        self._optimizer = optimizer
        self.perturbations = perturbations
        self.calendar = calendar
        self._ids: dict[Tensor, int] = {}
        # Of each group the parameters' ids in this process, and their names.
        self._structure: list[tuple[list[int], list[str] | None]] | None = None
        self.changes = 0
        self._effective = [(position, p) for position, p in enumerate(perturbations) if not p.is_identity]
        self.forms = {position: _kernel_form(p) for position, p in self._effective if not p.acts_on_rate}
        self.is_fine = bool(self.forms)

    def at(self, seed: int, step: int) -> Noise:
        """What acts at a step."""
        coarse: list[Acting] = []
        fine: list[Acting] = []
        for position, perturbation in self._effective:
            counter = self.calendar.counter(perturbation, step)
            if counter is not None:
                acting = Acting(perturbation, seed, counter, position, self.forms.get(position))
                (fine if position in self.forms else coarse).append(acting)
        return Noise(coarse, fine, fine[0] if len(fine) == 1 and fine[0].form is not None else None)

    def of_parameter(self, seed: int, step: int, parameter: Tensor) -> Tensor:
        """The whole factor of one parameter; float32, broadcasts over the part that this process holds."""
        noise = self.at(seed, step)
        number = noise.rate_factor(self._group_of(parameter))
        rate = torch.tensor(number, dtype=torch.float32, device=parameter.device)
        self.refresh()
        drawn = noise.draws(self.ids([parameter]))[0]
        if not drawn:
            return rate
        local, block = local_part(parameter)
        return rate * block_factor(drawn, block, local.device)

    def effective_lr(self, seed: int, step: int, scheduled: list[float]) -> list[float]:
        """Each group's scheduled rate with the noise in it: exact for coarse perturbations, the mean for finer ones."""
        noise = self.at(seed, step)
        fine_mean = math.prod(acting.perturbation.distribution.mean for acting in noise.fine)
        effective = []
        for index, rate in enumerate(scheduled):
            for factor, bounds in noise.rate_factors(index):
                rate = bounded(rate * factor, bounds)
            effective.append(rate * fine_mean)
        return effective

    def ids(self, parameters: list[Tensor]) -> list[int]:
        """The ids of some of the optimizer's parameters, as of the last :meth:`refresh`."""
        return [self._ids[parameter] for parameter in parameters]

    def refresh(self) -> int:
        """Look at the groups, parameters and names again.

        Returns:
            The number of ``changes``: what was prepared for the parameters is right while it stays the same.

        Raises:
            ValueError: see :func:`flatwise._attach.parameters.parameter_ids`.
        """
        structure = [
            (list(map(id, group["params"])), group.get("param_names")) for group in self._optimizer.param_groups
        ]
        if structure == self._structure:
            return self.changes
        self._ids = parameter_ids(self._optimizer)
        # A copy of the names, because the user may edit the list in place.
        self._structure = [(ids, None if names is None else list(names)) for ids, names in structure]
        self.changes += 1
        return self.changes

    def shares_draws(self, other: Factors) -> bool:
        """Whether some parameter of each would draw the same words, given the same seed."""
        if self.forms.keys().isdisjoint(other.forms):
            return False
        for factors in (self, other):
            factors.refresh()
        return not set(self._ids.values()).isdisjoint(other._ids.values())

    def _group_of(self, parameter: Tensor) -> int:
        for index, group in enumerate(self._optimizer.param_groups):
            if any(parameter is own for own in group["params"]):
                return index
        raise ValueError("this tensor is not one of the optimizer's parameters")


def _kernel_form(perturbation: Perturbation) -> KernelForm | None:
    return perturbation.distribution.kernel_form if perturbation.scope == "element" else None


@lru_cache(maxsize=64)
def _rate_factors(perturbation: Perturbation, seed: int, block: int, position: int, shared_by: int) -> list[float]:
    """The factors of the counters ``block · _BLOCK …``; float32 values."""
    counters = range(block * _BLOCK, (block + 1) * _BLOCK)
    keys = derive_keys(seed, counters, position, [shared_by]).astype(np.uint32).view(np.int32).T.copy()
    with _disable_current_modes():  # under FakeTensorMode these would have no values
        k0, k1 = torch.from_numpy(keys)
        words = reference.words(torch.zeros(_BLOCK, dtype=torch.int32, device="cpu"), (k0, k1))
        factors: list[float] = perturbation.distribution.sample(words).tolist()
    return factors


@dataclass(frozen=True)
class Draw:
    """One perturbation's draw for one parameter at one step, for the scopes that are finer than a group.

    Attributes:
        perturbation: what is drawn.
        seed, counter, position, parameter_id: what the words are a function of.
        key: (k0, k1) of segment 0, derived for all parameters at once.
    """

    perturbation: Perturbation
    seed: int
    counter: int
    position: int
    parameter_id: int
    key: tuple[int, int]

    def segment_key(self, segment: int) -> tuple[int, int]:
        """(k0, k1) of any segment of the tensor."""
        if segment == 0:
            return self.key
        k0, k1 = derive_keys(self.seed, self.counter, self.position, [self.parameter_id], segment)[0].tolist()
        return k0, k1

    def run(self, start: int, count: int, device: torch.device) -> Tensor:
        """Factors of the elements ``start … start + count − 1`` of the whole tensor, all of one segment; float32."""
        return self.perturbation.distribution.sample(reference.words_run(self.segment_key, start, count, device))

    def block(self, block: Block, device: torch.device) -> Tensor:
        """Factors of the elements held here; float32, to broadcast over ``block.local_shape``."""
        size = math.prod(block.shape)
        match self.perturbation.scope:
            case "tensor":
                index, size = torch.zeros((1,) * len(block.shape), dtype=torch.int64, device="cpu"), 1
            case "channel":
                index = block.channel() if block.shape else torch.zeros((), dtype=torch.int64, device="cpu")
            case _:
                index = block.index()
        return self.perturbation.distribution.sample(reference.words_at(self.segment_key, index, size, device))


def draws(perturbation: Perturbation, seed: int, counter: int, position: int, ids: list[int]) -> list[Draw]:
    """One draw for each parameter id; the keys of all of them are derived together."""
    keys = derive_keys(seed, counter, position, ids).tolist()
    return [Draw(perturbation, seed, counter, position, i, (k0, k1)) for i, (k0, k1) in zip(ids, keys, strict=True)]


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
    """Scale in place the update that took ``old`` to ``parameter`` by the product of the draws' factors.

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

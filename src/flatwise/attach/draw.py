"""The factor of a perturbation at one step: one number for a group's rate, or a tensor over a parameter's elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from flatwise._noise import reference
from flatwise._noise.keys import derive_keys
from flatwise.attach.identity import ALL, group_id
from flatwise.attach.shards import Block
from flatwise.perturbation import Perturbation


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

    def acts(self, perturbation: Perturbation, step: int) -> bool:
        """Whether the step lies in the perturbation's window."""
        return perturbation.window.is_always or perturbation.window.contains(self.epoch(step), self.epochs or 0)

    def tick(self, perturbation: Perturbation, step: int) -> int:
        """Number of the draw that this step uses: the step, the epoch, or 0."""
        match perturbation.cadence:
            case "step":
                return step
            case "epoch":
                return self.epoch(step)
            case _:
                return 0


def rate_factor(perturbation: Perturbation, seed: int, tick: int, stream: int, group: int) -> float:
    """The factor of one group's rate, for scopes ``"all"`` and ``"group"``; a float32 value."""
    unit = ALL if perturbation.scope == "all" else group_id(group)
    block, position = divmod(tick, _BLOCK)
    return _rate_factors(perturbation, seed, block, stream, unit)[position]


# Draw so many at a time: it takes as long as one draw, which alone is slower than a small model's step.
_BLOCK = 64


@lru_cache(maxsize=64)
def _rate_factors(perturbation: Perturbation, seed: int, block: int, stream: int, unit: int) -> list[float]:
    """The factors of the ticks ``block · _BLOCK …``; float32 values."""
    ticks = range(block * _BLOCK, (block + 1) * _BLOCK)
    keys = derive_keys(seed, ticks, stream, [unit]).astype(np.uint32).view(np.int32).T.copy()
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
        seed, tick, stream, unit: what the words are a function of.
        key: (k0, k1) of segment 0, derived for all parameters at once.
    """

    perturbation: Perturbation
    seed: int
    tick: int
    stream: int
    unit: int
    key: tuple[int, int]

    def segment_key(self, segment: int) -> tuple[int, int]:
        """(k0, k1) of any segment of the tensor."""
        return self.key if segment == 0 else _key(self.seed, self.tick, self.stream, self.unit, segment)

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


def draws(perturbation: Perturbation, seed: int, tick: int, stream: int, units: list[int]) -> list[Draw]:
    """One draw for each unit; the keys of all of them are derived together."""
    keys = derive_keys(seed, tick, stream, units).tolist()
    return [Draw(perturbation, seed, tick, stream, unit, (k0, k1)) for unit, (k0, k1) in zip(units, keys, strict=True)]


def _key(seed: int, tick: int, stream: int, unit: int, segment: int) -> tuple[int, int]:
    k0, k1 = derive_keys(seed, tick, stream, [unit], segment)[0].tolist()
    return k0, k1

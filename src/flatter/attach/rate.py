"""Putting a noisy rate into an optimizer's groups for the length of one step, and the clean one back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Rate = float | Tensor


def bounded(rate: float, bounds: tuple[float, float]) -> float:
    """The rate, or the bound that it is beyond."""
    low, high = bounds
    return min(max(rate, low), high)


class RateLoan:
    """The clean rates of the groups whose rate is noisy now. A tensor rate is filled in place, never replaced."""

    def __init__(self) -> None:
        self._clean: list[tuple[dict[str, Any], Rate]] = []

    def lend(self, group: dict[str, Any], factor: float, bounds: tuple[float, float]) -> None:
        """Multiplies a group's rate by a factor and clamps it to the bounds, until :meth:`restore`."""
        rate: Rate = group["lr"]
        if isinstance(rate, Tensor):
            self._clean.append((group, rate.clone()))
            with torch.no_grad():
                rate.mul_(factor).clamp_(*bounds)
        else:
            self._clean.append((group, rate))
            group["lr"] = bounded(rate * factor, bounds)

    def restore(self) -> None:
        """Puts every clean rate back; the last one lent goes first, so that composed factors unwind."""
        while self._clean:
            group, clean = self._clean.pop()
            if isinstance(clean, Tensor):
                with torch.no_grad():
                    group["lr"].copy_(clean)
            else:
                group["lr"] = clean


def shared_tensor_rates(optimizer: Optimizer) -> bool:
    """Whether two groups hold the same tensor as their rate: then no group can have one of its own."""
    rates = [id(group["lr"]) for group in optimizer.param_groups if isinstance(group.get("lr"), Tensor)]
    return len(set(rates)) < len(rates)

"""Noisy learning rates in an optimizer's groups for one step, and the clean ones restored after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

Bounds = tuple[float, float]
Factor = tuple[float, Bounds]

UNBOUNDED: Bounds = (-math.inf, math.inf)


def bounded(rate: float, bounds: Bounds) -> float:
    """The rate, clamped to the bounds."""
    low, high = bounds
    return min(max(rate, low), high)


class _Loan(NamedTuple):
    """A group whose rate is noisy now.

    Attributes:
        group: the group.
        holder: what it held as its rate: a number, or the tensor that is filled in place.
        clean: the clean rate.
        noisy: the noisy rate.
        version: the tensor's version with the noisy rate in it; 0 for a number.
    """

    group: dict[str, Any]
    holder: float | Tensor
    clean: float | Tensor
    noisy: float | Tensor
    version: int

    def restore(self) -> None:
        """Restore the clean rate, unless a new one was written meanwhile: that one stays."""
        now = self.group["lr"]
        if isinstance(self.holder, Tensor):
            assert isinstance(self.clean, Tensor)
            if not self._was_filled(self.holder):
                with torch.no_grad():
                    self.holder.copy_(self.clean)
        elif not isinstance(now, Tensor) and now == self.noisy:
            self.group["lr"] = self.clean

    def _was_filled(self, rate: Tensor) -> bool:
        """Whether other code wrote into the tensor. On a GPU it is not read, which would wait for the GPU."""
        if rate.device.type == "cpu":
            assert isinstance(self.noisy, Tensor)
            return not torch.equal(rate, self.noisy)
        return _version(rate) != self.version


class RateLoan:
    """The present noisy rates and their clean values. A tensor is filled in place, never replaced."""

    def __init__(self) -> None:
        self._loans: list[_Loan] = []

    def lend(self, group: dict[str, Any], factors: Sequence[Factor]) -> None:
        """Multiply a group's rate by each factor and clamp it to that factor's bounds, until :meth:`restore`.

        Factors of 1 within the bounds leave the rate's bits unchanged. A tensor that groups share is filled once.
        """
        rate: float | Tensor = group["lr"]
        if isinstance(rate, Tensor):
            self._lend_tensor(group, rate, factors)
            return
        noisy = rate
        for factor, bounds in factors:
            noisy = bounded(noisy * factor, bounds)
        if noisy != rate:
            self._loans.append(_Loan(group, rate, rate, noisy, 0))
            group["lr"] = noisy

    def _lend_tensor(self, group: dict[str, Any], rate: Tensor, factors: Sequence[Factor]) -> None:
        if all(factor == 1.0 and _within(rate, bounds) for factor, bounds in factors):
            return
        if any(loan.holder is rate for loan in self._loans):
            return
        clean = rate.clone()
        with torch.no_grad():
            for factor, bounds in factors:
                rate.mul_(factor)
                if bounds != UNBOUNDED:
                    rate.clamp_(*bounds)
        noisy = rate.clone() if rate.device.type == "cpu" else rate
        self._loans.append(_Loan(group, rate, clean, noisy, _version(rate)))

    def restore(self) -> None:
        """Restore the clean rates, except where a new one was written."""
        while self._loans:
            self._loans.pop().restore()


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _within(rate: Tensor, bounds: Bounds) -> bool:
    # Without bounds a rate on a GPU need not be read.
    return bounds == UNBOUNDED or bounds[0] <= float(rate) <= bounds[1]


def shared_tensor_rates(optimizer: Optimizer) -> bool:
    """Whether two groups share one tensor as their learning rate."""
    rates = [id(group["lr"]) for group in optimizer.param_groups if isinstance(group.get("lr"), Tensor)]
    return len(set(rates)) < len(rates)

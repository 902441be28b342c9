"""One optimizer step with noise in it: what happens before and after the optimizer's own step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatter.attach.blend import blend_
from flatter.attach.factors import Factors
from flatter.attach.rate import RateLoan
from flatter.attach.shards import local_part


class NoisyStep:
    """Puts the noise in before a step and takes it out after; between steps the optimizer is as clean as any.

    Args:
        optimizer: the optimizer.
        factors: what its perturbations draw.
    """

    def __init__(self, optimizer: Optimizer, factors: Factors) -> None:
        self._optimizer = optimizer
        self._factors = factors
        self._rates = RateLoan()
        self._before: list[tuple[Tensor, Tensor]] = []
        self._buffers: dict[Tensor, Tensor] = {}
        self.running = False

    def begin(self, seed: int, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the optimizer's own step: noisy rates go in, and parameters that are scaled later are copied."""
        self._rates.restore()  # a step that was torn down without an exception reaching us
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "flatter.perturb draws its factors on the host, and a CUDA graph would replay one draw for ever: "
                "capture the forward and backward passes only, and step outside the graph"
            )
        self._lend_rates(seed, step)
        if self._factors.fine(step):
            # With a closure the gradients are made inside step: which parameters will move is not known yet.
            has_closure = any(callable(argument) for argument in (*args[1:], *kwargs.values()))
            self._copy(lambda parameter: has_closure or parameter.grad is not None)
        self.running = True

    def finish(self, seed: int, step: int) -> None:
        """After the optimizer's own step: rates are clean again, and updates are scaled."""
        self._rates.restore()
        if self._before:
            drawn = self._factors.draws(seed, step, [parameter for parameter, _ in self._before])
            with torch.no_grad():
                for (parameter, old), of_parameter in zip(self._before, drawn, strict=True):
                    local, block = local_part(parameter)
                    blend_(local, old, of_parameter, block)
        self._before = []
        self.running = False

    def abandon(self) -> None:
        """After an exception inside the step: the rates are clean again, and nothing is scaled."""
        self._rates.restore()
        self._before = []
        self.running = False

    def _lend_rates(self, seed: int, step: int) -> None:
        for of in self._factors.coarse(step):
            bounds = of[1].bounds
            lent: set[int] = set()
            for index, group in enumerate(self._optimizer.param_groups):
                rate = group["lr"]
                factor = self._factors.rate(of, seed, step, index)
                # With factor 1 the rate stays as it is, to the bit; a tensor that groups share is lent once.
                if (factor == 1.0 and _within(rate, bounds)) or id(rate) in lent:
                    continue
                if isinstance(rate, Tensor):
                    lent.add(id(rate))
                self._rates.lend(group, factor, bounds)

    def _copy(self, moves: Callable[[Tensor], bool]) -> None:
        """Copies the local parts of the parameters that may move into buffers that are kept for the next step."""
        with torch.no_grad():
            for group in self._optimizer.param_groups:
                for parameter in filter(moves, group["params"]):
                    local, _ = local_part(parameter)
                    buffer = self._buffers.get(parameter)
                    if buffer is None or not _alike(buffer, local):
                        buffer = self._buffers[parameter] = torch.empty_like(local)
                    self._before.append((parameter, buffer.copy_(local)))


def _alike(one: Tensor, two: Tensor) -> bool:
    return (one.shape, one.stride(), one.dtype, one.device) == (two.shape, two.stride(), two.dtype, two.device)


def _within(rate: float | Tensor, bounds: tuple[float, float]) -> bool:
    if bounds == (-math.inf, math.inf):
        return True  # and a rate on a GPU need not be read
    return bounds[0] <= float(rate) <= bounds[1]

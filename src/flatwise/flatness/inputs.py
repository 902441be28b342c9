"""A loss whose inputs can be moved: a batch is a tensor of inputs, or a tuple or list that starts with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import nn

from flatwise.flatness.batches import Batch, BatchLoss, pair_loss
from flatwise.flatness.compared import Comparison
from flatwise.flatness.errors import FlatnessError
from flatwise.flatness.objective import Loss, Objective

Direction: TypeAlias = Callable[[int, torch.Tensor], torch.Tensor]
"""From the number of a batch and its inputs, what to add to them, times the distance: a tensor that broadcasts."""
Visit: TypeAlias = Callable[[torch.Tensor], None]


class ShiftedInputs:
    """A loss over batches whose inputs are moved to ``inputs + distance · direction``. Made by :func:`shifting`.

    Attributes:
        shape: shape of one sample's inputs, known from :meth:`center` on.
        mean_norm: the mean Euclidean norm of a sample's inputs, likewise.
    """

    def __init__(self, loss: Loss) -> None:
        self.shape: torch.Size | None = None
        self._loss = loss if isinstance(loss, BatchLoss) else pair_loss(loss)
        self._visit: Visit | None = None
        self._distance = 0.0
        self._direction: Direction | None = None
        self._number = 0
        self._norms, self._samples = 0.0, 0

    @property
    def mean_norm(self) -> float:  # noqa: D102
        return self._norms / self._samples

    def center(self, objective: Objective, visit: Visit | None = None) -> float:
        """The loss at the inputs as they are. To be called first: learns their shape.

        Args:
            objective: of this loss.
            visit: called with the inputs of each batch, in order.

        Raises:
            FlatnessError: as :meth:`flatwise.flatness.Objective.loss`, or inputs that cannot be moved.
        """
        self._direction, self._visit = None, visit
        return objective.loss()

    def losses(
        self,
        objective: Objective,
        center: float,
        directions: Iterable[Direction],
        distances: Sequence[float],
        step: Callable[[], None],
    ) -> tuple[tuple[float, ...], ...]:
        """The loss at moved inputs, finite or not: for each direction, at each distance.

        Args:
            objective: of this loss.
            center: what :meth:`center` returned.
            directions: what to add to the inputs.
            distances: multiples of it.
            step: called after each loss.
        """
        # Given to the objective, they say that this is not the model's own loss: a NaN is an outcome then, and another
        # value at the same weights no sign of random data.
        own = objective.vector()
        rows = []
        for self._direction in directions:
            row = []
            for self._distance in distances:
                self._number = 0
                row.append(center if self._distance == 0 else objective.loss(own))
                step()
            rows.append(tuple(row))
        return tuple(rows)

    def count(self, batch: Batch) -> float:
        """What the batch counts. Called once per batch, before :meth:`function`."""
        inputs = first_tensor(batch)
        if self.shape is not None and inputs.shape[1:] != self.shape:
            raise FlatnessError(
                f"all samples must have one shape to be moved alike: got {tuple(inputs.shape[1:])} after "
                f"{tuple(self.shape)}"
            )
        count = self._loss.count(batch)
        if self._direction is None:
            self.shape = inputs.shape[1:]
            flat = inputs.detach().reshape(len(inputs), -1)
            self._norms += float(flat.to(torch.promote_types(flat.dtype, torch.float32)).norm(dim=1).sum())
            self._samples += len(inputs)
            if self._visit is not None:
                self._visit(inputs.detach())
        return count

    def function(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The batch's loss. Called once per batch, in order."""
        if self._direction is not None:
            inputs = first_tensor(batch)
            batch = _with_first(batch, inputs + self._distance * self._direction(self._number, inputs))
        self._number += 1
        return self._loss.function(model, batch)


@contextmanager
def shifting(compared: Comparison, model: str, data: str) -> Iterator[tuple[Objective, ShiftedInputs]]:
    """Lend one model for a ``with`` block, with a loss whose inputs can be moved."""
    shifted = ShiftedInputs(compared.loss)
    with compared.measuring(model, data, BatchLoss(shifted.function, shifted.count)) as objective:
        yield objective, shifted


def first_tensor(batch: Batch) -> torch.Tensor:
    """The inputs of a batch: itself, or the first of a tuple or list.

    Raises:
        FlatnessError: not a floating-point tensor with a dimension of samples.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, torch.Tensor):
        raise FlatnessError(
            f"the inputs must be a tensor, first in a batch such as (inputs, targets); got a {type(inputs).__name__}"
        )
    if not inputs.is_floating_point() or inputs.ndim == 0:
        raise FlatnessError(
            f"the inputs must be floating-point, a row per sample, to be moved; got {inputs.dtype} of shape "
            f"{tuple(inputs.shape)}"
        )
    return inputs


def _with_first(batch: Batch, inputs: torch.Tensor) -> Batch:
    if isinstance(batch, torch.Tensor):
        return inputs
    if hasattr(batch, "_fields"):
        return type(batch)(inputs, *batch[1:])
    return type(batch)((inputs, *batch[1:]))


def unit_noise(shape: torch.Size, count: int, seed: int) -> list[torch.Tensor]:
    """Normal noise of norm 1, from a generator of its own, float64, on the CPU: the same for every model and device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, max(1, math.prod(shape)), generator=generator, dtype=torch.float64, device="cpu")
    noise /= noise.norm(dim=1, keepdim=True)
    return [one.reshape(shape) for one in noise]

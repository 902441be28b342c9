"""What all kernels share: kinds of factor, parts of tensors, updates, and the tables that tell a kernel its work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatwise._noise import reference
from flatwise._noise.keys import SEGMENT

# Tensors with memory of their own; others may be wrappers, such as fake or distributed tensors.
PLAIN = frozenset((Tensor, torch.nn.Parameter))

# The kinds of factor, as kernels number them. The last two are Normal ones that a kernel need not test element by
# element: POSITIVE is never 0 or cut off, NEAR_ONE never below 1/2 either.
NORMAL, BERNOULLI, UNIFORM, POSITIVE, NEAR_ONE = range(5)
KINDS = {"normal": NORMAL, "bernoulli": BERNOULLI, "uniform": UNIFORM}


class KernelForm(NamedTuple):
    """A distribution as kernels know it: its kind and up to three numbers.

    Attributes:
        kind: ``"normal"`` (mean, standard deviation, minimum), ``"bernoulli"`` (threshold of the words that are 1) or
            ``"uniform"`` (low, high − low).
        numbers: the parameters.
    """

    kind: Literal["normal", "bernoulli", "uniform"]
    numbers: tuple[float, ...]

    def stays_above(self, bound: float) -> bool:
        """Whether this is a Normal factor that falls neither to a bound nor to its minimum.

        The words give no |z| above 6.24.
        """
        if self.kind != "normal":
            return False
        loc, scale, minimum = self.numbers
        return loc - 6.24 * scale > max(bound, minimum)

    def factors(self, words: Tensor) -> Tensor:
        """The factors that words become, in torch operations: what every kernel must give; float32.

        Args:
            words: int32, any shape.
        """
        if self.kind == "bernoulli":
            return reference.below(words, int(self.numbers[0])).float()
        if self.kind == "uniform":
            low, span = self.numbers
            return reference.uniform(words).mul_(span).add_(low).float()
        loc, scale, minimum = self.numbers
        values = reference.normal(words).mul_(scale).add_(loc)
        return values if minimum == -math.inf else values.clamp_(min=minimum)


class Piece(NamedTuple):
    """A contiguous part of one parameter.

    Attributes:
        new: its values after the plain step; scaled in place.
        old: its values before the step; same shape and dtype, contiguous.
        start: logical index in the whole tensor of its first element.
        parameter_id: of the parameter.
    """

    new: Tensor
    old: Tensor
    start: int
    parameter_id: int


class Update(NamedTuple):
    """What one step does to one parameter group, in terms of torch's own lists. All lists run over the same parameters.

    Attributes:
        params: the parameters that have a gradient.
        grads: their gradients.
        states: up to three lists of states shaped like the parameters, in the order that the kernel knows. ``None``
            stands for a momentum that does not exist yet; see ``first_state``.
        steps: how many steps each has taken, as torch counts them, 0-d; empty where the optimizer does not count.
        first_state: name in ``optimizer.state`` of the first list.
        options: the kernel's compile-time options.
        numbers: the kernel's numbers.
        fresh: whether a parameter's first state holds −0 and becomes the gradient itself at this step.
        starts: logical index in the whole tensor of the first element of each parameter's part that is held here.
        ids: the parameters' ids.
    """

    params: list[Tensor]
    grads: list[Tensor]
    states: tuple[list[Any], ...]
    steps: list[Tensor]
    first_state: str
    options: tuple[bool, ...]
    numbers: tuple[Any, ...]
    fresh: Sequence[bool] = ()
    starts: Sequence[int] = ()
    ids: Sequence[int] = ()


# Optimizers, as kernels number them. Their options and numbers, by position, and their states:
# sgd: momentum, nesterov, weight decay, maximize; lr, momentum, 1 − dampening, weight decay; the momentum.
# adam: amsgrad, weight decay, decoupled, maximize; lr, beta1, beta2, eps, weight decay; both averages, their maximum.
# rmsprop: momentum, centered, weight decay, maximize; lr, alpha, eps, momentum, weight decay; the average of the
# squared gradient, the momentum, the average of the gradient.
SGD, ADAM, RMSPROP = range(3)
OPTIMIZERS = {"sgd": SGD, "adam": ADAM, "rmsprop": RMSPROP}

# Long enough that looking up a chunk and deriving its key cost little, short enough that all threads end together.
CHUNK = 1 << 13

# The columns of the table of chunks: row of the tensor, offset of the first element in the tensor, length.
ROW, OFFSET, LENGTH, CHUNK_COLUMNS = range(4)
# The columns of the table of rows: addresses of a parameter, its gradient (or, in a blend, its old values), up to three
# states and the step; logical index of the first element, parameter id, whether the momentum starts now, and two
# float64 that only numba's kernels use.
PARAMETER, GRADIENT, STATE, STEP, FIRST, ID, FRESH, RATE, ROOT, ROW_COLUMNS = 0, 1, 2, 5, 6, 7, 8, 9, 10, 11


def rows_of(starts: Sequence[int], ids: Sequence[int]) -> NDArray[np.int64]:
    """A table of rows without addresses: see :func:`addresses`."""
    rows = np.zeros((len(starts), ROW_COLUMNS), dtype=np.int64)
    rows[:, FIRST] = starts
    rows[:, ID] = np.array(ids, dtype=np.uint64).view(np.int64)
    return rows


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    """Where tensors begin."""
    return list(map(Tensor.data_ptr, tensors))


def chunks_of(sizes: Sequence[int], starts: Sequence[int]) -> NDArray[np.int64]:
    """Cuts tensors into chunks of at most ``CHUNK`` elements, none of which crosses a segment.

    Args:
        sizes: number of elements of each tensor.
        starts: logical index of each tensor's first element.

    Returns:
        A table of chunks; a tensor's row is its position.
    """
    parts = [np.empty((0, CHUNK_COLUMNS), dtype=np.int64)]
    for row, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        cuts = np.union1d(np.arange(0, size, CHUNK), np.arange(-start % SEGMENT, size, SEGMENT)).astype(np.int64)
        parts.append(np.stack([np.full_like(cuts, row), cuts, np.diff(cuts, append=size)], axis=1))
    return np.concatenate(parts)


def readable(grads: list[Tensor]) -> list[Tensor]:
    """The gradients as kernels can read them: element after element, with no change of sign still to be made."""
    if all(map(Tensor.is_contiguous, grads)) and not any(map(Tensor.is_neg, grads)):
        return grads
    return [grad.resolve_neg().contiguous() for grad in grads]

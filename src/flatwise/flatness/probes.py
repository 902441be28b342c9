"""Hutchinson's estimators: the trace and the diagonal from products with random signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from scipy import special

from flatwise.flatness.errors import FlatnessError

# Vectors of a block together have at most so many elements (64 MiB in float32), and a block has at most 16 vectors.
BLOCK_ELEMENTS = 1 << 24
BLOCK_VECTORS = 16
# Fewer probes than this say too little about their own spread to stop by it.
FEWEST = 10

Products = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TraceEstimate:
    """The trace of a matrix, estimated.

    Attributes:
        value: the mean of ``vᵀ A v`` over the probes ``v``: unbiased.
        standard_error: its standard error, from the spread of the probes.
        error: half the width of the 95 % interval, ``value ± error``: Student's t times the standard error.
        samples: ``vᵀ A v`` of each probe.
        converged: whether the standard error is within the tolerance. If not, give more ``max_probes``, or be content
            with the error.
    """

    value: float
    standard_error: float
    error: float
    samples: tuple[float, ...] = field(repr=False)
    converged: bool


@dataclass(frozen=True, slots=True)
class DiagonalEstimate:
    """The diagonal of a matrix, estimated.

    Attributes:
        values: the mean of ``v ⊙ A v`` over the probes ``v``, shape ``(n,)``: unbiased.
        standard_error: the standard error of each entry, shape ``(n,)``, from the spread of the probes.
        error: half the width of each entry's own 95 % interval, shape ``(n,)``.
        probes: how many probes were used.
        converged: whether ``‖standard_error‖ ≤ tol · ‖values‖``.
    """

    values: torch.Tensor = field(repr=False, compare=False)
    standard_error: torch.Tensor = field(repr=False, compare=False)
    error: torch.Tensor = field(repr=False, compare=False)
    probes: int
    converged: bool


def rademacher(size: int, generator: torch.Generator) -> torch.Tensor:
    """A vector of independent signs, −1 or 1 with probability 1/2 each, int8, on the CPU: the same for every device."""
    return torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8, device="cpu").mul_(2).sub_(1)


def estimate_trace(products: Products, like: torch.Tensor, *, tol: float, max_probes: int, seed: int) -> TraceEstimate:
    """Estimate the trace of a symmetric operator.

    Args:
        products: the operator: vectors of shape ``(m, n)`` to as many products.
        like: a vector of shape ``(n,)`` with the device and dtype to work in.
        tol: stop when the standard error is at most ``tol · |value|``; 0: use all probes.
        max_probes: at most so many probes, at least 2.
        seed: of the probes.
    """
    samples: list[float] = []
    converged = False
    for probes, results in _blocks(products, like, max_probes, seed):
        samples += (probes * results).sum(dim=1, dtype=torch.float64).tolist()
        mean, standard_error = _mean_and_error(samples)
        converged = len(samples) >= FEWEST and standard_error <= tol * abs(mean)
        if converged:
            break
    return TraceEstimate(mean, standard_error, _student(len(samples)) * standard_error, tuple(samples), converged)


def estimate_diagonal(
    products: Products, like: torch.Tensor, *, tol: float, max_probes: int, seed: int
) -> DiagonalEstimate:
    """Estimate the diagonal of a symmetric operator. Arguments as for :func:`estimate_trace`.

    It stops when ``‖standard_error‖ ≤ tol · ‖values‖``: a tolerance for the diagonal as a whole, not for each entry.
    """
    mean, squares = torch.zeros_like(like), torch.zeros_like(like)
    count, converged = 0, False
    for probes, results in _blocks(products, like, max_probes, seed):
        for sample in probes * results:
            count += 1
            # Welford's recurrence: a difference of sums of squares would lose the small entries.
            off = sample - mean
            mean += off / count
            squares += off * (sample - mean)
        standard_error = (squares / max(count - 1, 1) / count).sqrt()
        converged = count >= FEWEST and float(standard_error.norm()) <= tol * float(mean.norm())
        if converged:
            break
    return DiagonalEstimate(mean, standard_error, _student(count) * standard_error, count, converged)


def check_probes(tol: float, max_probes: int) -> None:
    """Refuse a tolerance or a number of probes that makes no sense."""
    if not 0 <= tol < math.inf:
        raise FlatnessError(f"tol must be a relative standard error, 0 or more; got {tol!r}")
    if not isinstance(max_probes, int) or isinstance(max_probes, bool) or max_probes < 2:
        raise FlatnessError(
            f"max_probes must be a whole number, 2 or more (one probe has no spread); got {max_probes!r}"
        )


def _blocks(
    products: Products, like: torch.Tensor, max_probes: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    block = max(1, min(BLOCK_VECTORS, BLOCK_ELEMENTS // len(like)))
    for first in range(0, max_probes, block):
        signs = [rademacher(len(like), generator) for _ in range(min(block, max_probes - first))]
        probes = torch.stack(signs).to(like)
        yield probes, products(probes)


def _mean_and_error(samples: list[float]) -> tuple[float, float]:
    count = len(samples)
    mean = math.fsum(samples) / count
    if count == 1:
        return mean, math.inf
    return mean, math.sqrt(math.fsum((sample - mean) ** 2 for sample in samples) / (count - 1) / count)


def _student(count: int) -> float:
    """The 97.5 % point of Student's t for the mean of so many."""
    return float(special.stdtrit(count - 1, 0.975))

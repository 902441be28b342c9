"""Curvature of the loss at the model's weights: gradient norm, Hessian-vector products, eigenvalues, trace, diagonal.

Every function here takes ``model``, ``loss`` and ``data``, and ``max_batches``, ``mode`` and ``dtype``, as
:func:`flatwise.flatness.measuring` explains them; is about the mean loss over all samples; and gives the model back as
it was, bit for bit, whatever happens. "The Hessian" is that of the parameters that require a gradient. It is exact (no
Gauss-Newton approximation), so it can have negative eigenvalues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from scipy import special
from torch import nn
from typing_extensions import Unpack

from flatwise.flatness._lanczos import By, Eigenvalues, lanczos
from flatwise.flatness.guard import FlatnessError, checked_count, trainable
from flatwise.flatness.objective import Loss, Objective, Options, Progress, measuring, split

# Vectors of a block together have at most so many elements (64 MiB in float32), and a block has at most 16 vectors.
BLOCK_ELEMENTS = 1 << 24
BLOCK_VECTORS = 16
# No early stop before so many probes: the spread of fewer is too uncertain.
FEWEST = 10

Products: TypeAlias = Callable[[torch.Tensor], torch.Tensor]


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


def gradient_norm(model: nn.Module, loss: Loss, data: Any, **options: Unpack[Options]) -> float:
    """The Euclidean norm of the gradient of the mean loss: of the mean gradient, not the mean of the batches' norms.

    Args:
        **options: ``max_batches``, ``mode`` and ``dtype``, as for :func:`flatwise.flatness.measuring`.

    Raises:
        FlatnessError: bad input.
    """
    with measuring(model, loss, data, **options) as objective:
        return float(torch.linalg.vector_norm(objective.gradient()[1], dtype=torch.float64))


def hvp(model: nn.Module, loss: Loss, data: Any, vectors: torch.Tensor, **options: Unpack[Options]) -> torch.Tensor:
    """The Hessian of the mean loss times one or several vectors.

    Args:
        vectors: shape ``(size,)`` or ``(n, size)``, in the order of ``model.named_parameters()``, those that require a
            gradient: what ``torch.nn.utils.parameters_to_vector`` makes of them.
        **options: ``max_batches``, ``mode`` and ``dtype``, as for :func:`flatwise.flatness.measuring`.

    Returns:
        The products, in the shape of ``vectors``, on the model's device and in the dtype of the computation.

    Raises:
        FlatnessError: bad input.
    """
    with measuring(model, loss, data, **options) as objective:
        return objective.hvp(vectors)


def top_eigenvalues(
    model: nn.Module,
    loss: Loss,
    data: Any,
    k: int = 1,
    *,
    by: By = "value",
    tol: float = 1e-3,
    max_iter: int = 200,
    seed: int = 0,
    vectors: bool = False,
    basis_size: int | None = None,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> Eigenvalues:
    """The ``k`` largest eigenvalues of the Hessian, by Lanczos' method.

    An eigenvalue that occurs several times is returned as often, if the search converged. In float32, products have an
    error of some 1e-6 of the largest magnitude: for eigenvalues much smaller than that, ask for
    ``dtype=torch.float64``.

    Args:
        k: how many. Default: 1.
        by: ``"value"`` (the default): the most positive ones; ``"magnitude"``: negative ones count by their size.
        tol: stop when the residual of each is at most ``tol`` times its magnitude, or down at rounding. Default: 1e-3;
            the error is mostly far below.
        max_iter: make at most so many Hessian-vector products, of which the residuals take k. Default: 200.
        seed: of the vector to start from.
        vectors: whether to return the eigenvectors. Default: ``False``.
        basis_size: how many vectors of the model's size to keep in memory; default: the larger of 20 and ``2 k + 10``.
            A larger basis needs fewer products.
        progress: called after each product as ``progress(products so far, max_iter)``.
        **options: ``max_batches``, ``mode`` and ``dtype``, as for :func:`flatwise.flatness.measuring`.

    Raises:
        FlatnessError: bad input.
    """
    checked_count("k", k)
    checked_count("max_iter", max_iter, k)
    if basis_size is not None:
        checked_count("basis_size", basis_size, k + 2)
    if by not in ("value", "magnitude"):
        raise FlatnessError(f"by must be 'value' or 'magnitude'; got {by!r}")
    if not 0 <= tol < math.inf:
        raise FlatnessError(f"tol must be a relative residual, 0 or more; got {tol!r}")
    with _products(model, loss, data, max_iter, progress, **options) as (objective, products):
        if k > objective.size:
            raise FlatnessError(f"k is {k}, but the Hessian has only {objective.size} eigenvalues")
        # Drawn on the CPU: the same for every device.
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(objective.size, generator=generator, dtype=objective.dtype, device="cpu")
        start = start.to(objective.device)
        return lanczos(products, start, k, by=by, tol=tol, max_iter=max_iter, basis_size=basis_size, vectors=vectors)


def trace(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    tol: float = 0.02,
    max_probes: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> TraceEstimate:
    """The trace of the Hessian, the sum of its eigenvalues, by Hutchinson's estimator with random signs.

    Args:
        tol: stop when the standard error is at most ``tol`` times the estimate. Default: 0.02. With 0, all probes are
            used. Stopping makes the error bar a little short, since spreads that came out small stop first: measured on
            an MLP, it held the truth in 0.93 of the trials where it stopped after 30 probes on average, and in 0.94 to
            0.95 with a fixed number.
        max_probes: make at most so many Hessian-vector products. Default: 200.
        seed: of the probes, which come from a generator of their own.
        progress: called after each block of products as ``progress(products so far, max_probes)``.
        **options: ``max_batches``, ``mode`` and ``dtype``, as for :func:`flatwise.flatness.measuring`.

    Raises:
        FlatnessError: bad input.
    """
    _check_probes(tol, max_probes)
    with _products(model, loss, data, max_probes, progress, **options) as (objective, products):
        return estimate_trace(products, objective.vector(), tol=tol, max_probes=max_probes, seed=seed)


def diagonal(
    model: nn.Module,
    loss: Loss,
    data: Any,
    *,
    tol: float = 0.05,
    max_probes: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Unpack[Options],
) -> DiagonalEstimate:
    """The diagonal of the Hessian, by Hutchinson's estimator with random signs.

    :func:`by_parameter` gives it by the parameters' names. The standard error of entry i is the norm of the rest of its
    row of the Hessian, over the square root of the number of probes: a small entry of a large row is known badly.

    Args:
        tol: stop when the norm of all standard errors is at most ``tol`` times the norm of the diagonal. Default: 0.05.
        max_probes, seed, progress: as for :func:`trace`.
        **options: ``max_batches``, ``mode`` and ``dtype``, as for :func:`flatwise.flatness.measuring`.

    Raises:
        FlatnessError: bad input.
    """
    _check_probes(tol, max_probes)
    with _products(model, loss, data, max_probes, progress, **options) as (objective, products):
        return estimate_diagonal(products, objective.vector(), tol=tol, max_probes=max_probes, seed=seed)


def by_parameter(model: nn.Module, vector: torch.Tensor) -> dict[str, torch.Tensor]:
    """A vector over the parameters that require a gradient, such as a diagonal or an eigenvector, as views by name.

    Args:
        vector: shape ``(size,)``.

    Raises:
        FlatnessError: the vector has another length.
    """
    return split(vector, {name: parameter.shape for name, parameter in trainable(model).items()})


@contextmanager
def _products(
    model: nn.Module, loss: Loss, data: Any, most: int, progress: Progress | None, **options: Unpack[Options]
) -> Iterator[tuple[Objective, Products]]:
    """Lend the model, with Hessian-vector products that report the progress: how many of ``most`` were made."""
    with measuring(model, loss, data, **options) as objective:
        done = 0

        def products(vectors: torch.Tensor) -> torch.Tensor:
            nonlocal done
            found = objective.hvp(vectors)
            done += 1 if vectors.ndim == 1 else len(vectors)
            if progress is not None:
                progress(done, most)
            return found

        yield objective, products


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


def _check_probes(tol: float, max_probes: int) -> None:
    if not 0 <= tol < math.inf:
        raise FlatnessError(f"tol must be a relative standard error, 0 or more; got {tol!r}")
    checked_count("max_probes", max_probes, 2)  # one probe has no spread


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

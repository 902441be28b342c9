"""Extreme eigenvalues of a symmetric operator: thick-restart Lanczos with full reorthogonalisation.

The vectors stay where the products are made (a GPU, say) and in their dtype. ``scipy.sparse.linalg.eigsh`` finds the
same values, and the tests hold this against it, but it brings every vector to the CPU and works on all of them there:
``benchmarks/curvature.py`` has what that costs. The method: K. Wu and H. Simon, Thick-restart Lanczos method for large
symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl. 22 (2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

By = Literal["value", "magnitude"]

# Columns of the basis that are combined at a time at a restart: the new basis takes the place of the old one.
CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class RitzPairs:
    """Approximate eigenpairs, the wanted ones first.

    Attributes:
        values: shape ``(k,)``, float64.
        residuals: ``‖A v − value · v‖`` of each, from the recurrence (not computed anew), shape ``(k,)``.
        vectors: orthonormal rows, shape ``(k, n)``; ``None`` if not asked for.
        products: how often the operator was applied.
        converged: whether each residual is small enough.
    """

    values: torch.Tensor
    residuals: torch.Tensor
    vectors: torch.Tensor | None
    products: int
    converged: bool


def lanczos(
    apply: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    k: int,
    *,
    by: By = "value",
    tol: float = 1e-3,
    max_iter: int = 200,
    basis_size: int | None = None,
    vectors: bool = False,
) -> RitzPairs:
    """The ``k`` largest eigenvalues of a symmetric operator.

    An eigenvalue that occurs several times may be returned only once, as by every method that starts from one vector;
    it is sure to be found as often as it occurs only where the basis grows to the whole space, or to one that the
    operator does not leave (then the search goes on outside it).

    Args:
        apply: the operator: a vector of shape ``(n,)`` to a new one, which may be overwritten.
        start: the vector to start from, not 0, shape ``(n,)``, with the device and the dtype to work in. At random, so
            that it has a part along every eigenvector.
        k: how many, 1 to n.
        by: the largest by ``"value"`` (the default) or by ``"magnitude"``.
        tol: a pair has converged when its residual is at most ``tol · |value|`` (then the true eigenvalue is no farther
            away than that), or as small as rounding lets it be: 100 units in the last place of the largest value.
        max_iter: apply the operator at most so often, at least ``k`` times. Default: 200.
        basis_size: how many vectors to keep; default: the larger of 20 and ``2 k + 10``. More need fewer products.
        vectors: whether to return the eigenvectors. Default: ``False``.
    """
    n, device, dtype = len(start), start.device, start.dtype
    basis_size = min(n, max(20, 2 * k + 10) if basis_size is None else max(basis_size, k + 2))
    basis = torch.empty(basis_size, n, dtype=dtype, device=device)
    # The operator in the basis: tridiagonal, but for the arrow that a restart leaves.
    projected = torch.zeros(basis_size, basis_size, dtype=torch.float64)
    torch.div(start, _norm(start), out=basis[0])
    generator = torch.Generator().manual_seed(0)
    products, last = 0, 0
    confirmed: torch.Tensor | None = None
    while True:
        known = projected[:last, last].to(device, dtype)
        residual = apply(basis[last])
        products += 1
        size = last + 1
        if last > 0:
            # Only few couplings are not 0: the one before, and after a restart all that were kept.
            coupled = torch.nonzero(projected[:last, last]).flatten()
            if len(coupled) == 1:
                residual.sub_(basis[int(coupled)], alpha=float(projected[int(coupled), last]))
            elif len(coupled):
                residual.addmv_(basis[:last].T, known, alpha=-1)
        projected[last, last] = float(torch.dot(basis[last], residual))
        residual.sub_(basis[last], alpha=float(projected[last, last]))
        norm = _orthogonalise(residual, basis[:size])

        values, rotation = torch.linalg.eigh(projected[:size, :size])
        order = torch.argsort(values if by == "value" else values.abs(), descending=True)
        residuals = norm * rotation[-1].abs()
        if size == n:
            residuals = torch.zeros_like(residuals)  # the basis is the whole space
        rounding = 100 * torch.finfo(dtype).eps * float(values.abs().max())
        wanted = order[:k]
        good = residuals[wanted] <= (tol * values[wanted].abs()).clamp_min(rounding)
        converged = size >= k and bool(good.all())
        invariant = norm <= rounding and size < n
        if invariant:
            # A value's second copy may lie outside this space: done only when one more search there changed nothing.
            before = torch.full_like(values[wanted], torch.inf) if confirmed is None else confirmed
            same = len(before) == len(wanted) and torch.allclose(values[wanted], before, rtol=tol, atol=rounding)
            converged = converged and same
            confirmed = values[wanted]
        if converged or size == n or products >= max_iter:
            found = None
            if vectors:
                found = rotation[:, wanted].T.to(device, dtype) @ basis[:size]
            return RitzPairs(values[wanted], residuals[wanted], found, products, converged)

        if size == basis_size:
            size = (k + basis_size) // 2  # the better half stays
            kept = order[:size]
            _combine(basis, rotation[:, kept].to(device, dtype))
            projected.zero_()
            projected[range(size), range(size)] = values[kept]
            coupling = norm * rotation[-1, kept]
        else:
            coupling = torch.zeros(size, dtype=torch.float64)
            coupling[last] = norm
        if invariant:
            # Go on from anywhere outside, uncoupled.
            residual = torch.randn(n, generator=generator, dtype=dtype).to(device)
            norm = _orthogonalise(residual, basis[:size])
            coupling = torch.zeros(size, dtype=torch.float64)
        last = size
        projected[:last, last] = projected[last, :last] = coupling
        torch.div(residual, norm, out=basis[last])


def _orthogonalise(vector: torch.Tensor, basis: torch.Tensor) -> float:
    """Take off a vector, in place, what lies along the orthonormal rows of a basis. Returns the norm that is left.

    Once is enough unless most of the vector goes: then its rounding errors are no longer small beside it (Daniel,
    Gragg, Kaufman and Stewart 1976).
    """
    before = _norm(vector)
    for _ in range(3):
        vector.addmv_(basis.T, torch.mv(basis, vector), alpha=-1)
        after = _norm(vector)
        if after > 0.7 * before:
            break
        before = after
    return after


def _norm(vector: torch.Tensor) -> float:
    return math.sqrt(float(torch.dot(vector, vector)))  # on the CPU in a quarter of torch's norm's time


def _combine(basis: torch.Tensor, rotation: torch.Tensor) -> None:
    """Put ``rotationᵀ · basis`` into the first rows of the basis, without a second one of its size."""
    rows = rotation.shape[1]
    for columns in torch.split(basis, CHUNK, dim=1):
        columns[:rows] = rotation.T @ columns

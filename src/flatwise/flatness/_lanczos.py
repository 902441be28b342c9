"""Extreme eigenvalues of a symmetric operator: thick-restart Lanczos with full reorthogonalisation.

The vectors stay where the products are made (a GPU, say) and in their dtype. ``scipy.sparse.linalg.eigsh`` finds the
same values, and the tests hold this against it, but it brings every vector to the CPU and works on all of them there:
``benchmarks/curvature.py`` has what that costs. The method: K. Wu and H. Simon, Thick-restart Lanczos method for large
symmetric eigenvalue problems, SIAM J. Matrix Anal. Appl. 22 (2000).

From one start, a repeated eigenvalue is found once. So a second search starts at random in what is orthogonal to the
pairs that were found, until its largest value is known to be no larger than theirs: it has converged itself, or is so
far below that a larger one would have shown with probability 1 − ``MISSED`` (J. Kuczyński and H. Woźniakowski,
Estimating the largest eigenvalue by the power and Lanczos algorithms with a random start, SIAM J. Matrix Anal. Appl. 13
(1992), theorem 4.2, with the search's own values for the ends of the spectrum).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

By = Literal["value", "magnitude"]

# Columns of the basis that are combined at a time at a restart: the new basis takes the place of the old one.
CHUNK = 1 << 16
# A search makes so many products at least, unless it has seen all it can reach: a start that lies almost within an
# eigenspace has a small residual at once.
LEAST_PRODUCTS = 10
# The probability that a second search misses a larger eigenvalue.
MISSED = 1e-3


@dataclass(frozen=True, slots=True)
class Eigenvalues:
    """The largest eigenvalues of a Hessian, or of another symmetric operator.

    Attributes:
        values: in descending order, of the value or of the magnitude, as asked for.
        residuals: ``‖H v − value · v‖`` of each, from a product of its own: there is a true eigenvalue no farther away
            than this, up to the error of the product. NaN where ``max_iter`` left no product for it.
        converged: whether every residual is at most ``tol · |value|``, or down at rounding, and for k > 1, whether a
            second search found no further copy of an eigenvalue. If not, give more ``max_iter``.
        products: how many Hessian-vector products it took.
        vectors: the eigenvectors, orthonormal rows, shape ``(k, size)``; ``None`` if not asked for.
    """

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    converged: bool
    products: int
    vectors: torch.Tensor | None = field(default=None, repr=False, compare=False)


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
) -> Eigenvalues:
    """The ``k`` largest eigenvalues of a symmetric operator, each as often as it occurs.

    Args:
        apply: the operator: a vector of shape ``(n,)`` to a new one, which may be overwritten.
        start: the vector to start from, not 0, shape ``(n,)``, with the device and the dtype to work in. At random, so
            that it has a part along every eigenvector.
        k: how many, 1 to n.
        by: the largest by ``"value"`` (the default) or by ``"magnitude"``.
        tol: a pair has converged when its residual is at most ``tol · |value|`` (then the true eigenvalue is no farther
            away than that), or as small as rounding lets it be: 100 units in the last place of the largest value.
        max_iter: apply the operator at most so often, at least ``k`` times, and ``k`` times more for the residuals.
            Default: 200.
        basis_size: how many vectors to keep; default: the larger of 20 and ``2 k + 10``. A larger basis needs
            fewer products.
        vectors: whether to return the eigenvectors. Default: ``False``.
    """
    options: dict[str, Any] = {"by": by, "tol": tol, "basis_size": basis_size, "vectors": vectors}
    pairs, finished = _search(apply, start, k, max_iter, inner=tol, **options)
    if not finished or pairs.converged or max_iter - pairs.products < 2 * k:
        return pairs
    # What a later search found is orthogonal to pairs with errors of their own, which add to its own error.
    again, _ = _search(apply, start, k, max_iter - pairs.products, inner=0.2 * tol, **options)
    return replace(again, products=pairs.products + again.products)


def _search(
    apply: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    k: int,
    max_iter: int,
    *,
    by: By,
    tol: float,
    inner: float,
    basis_size: int | None,
    vectors: bool,
) -> tuple[Eigenvalues, bool]:
    """Search until the recurrence's residuals are within ``inner``, and say whether they came to be."""
    n, device, dtype = len(start), start.device, start.dtype
    least = k + (2 if by == "value" else 3)  # a vector for each end that is searched, and the next one
    basis_size = min(n, max(20, 2 * k + 10) if basis_size is None else max(basis_size, least))
    basis = torch.empty(basis_size, n, dtype=dtype, device=device)
    # The operator in the basis: tridiagonal, but for the arrow that a restart leaves.
    projected = torch.zeros(basis_size, basis_size, dtype=torch.float64, device="cpu")
    torch.div(start, _norm(start), out=basis[0])
    # Further starts must not be the first one, whatever seed that has: what is left of it outside of its own search has
    # no part along a further copy.
    generator = torch.Generator().manual_seed(zlib.crc32(start[:1024].cpu().numpy().tobytes()) + (1 << 32))
    products, last = 0, 0
    steps = 0  # of the present search
    found: torch.Tensor | None = None  # the values that the second search is to confirm
    while True:
        known = projected[:last, last].to(device, dtype)
        residual = apply(basis[last])
        products, steps = products + 1, steps + 1
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
        rounding = 100 * torch.finfo(dtype).eps * float(values.abs().max())
        whole = size == n
        invariant = norm <= rounding and not whole
        good = residuals <= (inner * values.abs()).clamp_min(rounding)
        if whole:
            good[:] = True
        settled = whole or invariant or steps >= LEAST_PRODUCTS
        wanted = order[:k]
        converged = settled and size >= k and bool(good[wanted].all())
        if found is not None and not torch.allclose(values[wanted], found, rtol=tol, atol=rounding):
            found = None  # the second search found a larger one, and goes on as the first did
        sides = _sides(values, order, k, by)
        if found is not None:
            # The bound is for searches without restarts; those that keep little of the search begin it anew.
            degree = steps if basis_size - k >= LEAST_PRODUCTS else min(steps, size - k)
            # Ten times closer than the first search: a value can seem to converge before a larger one close by shows.
            close = residuals <= (0.1 * inner * values.abs()).clamp_min(rounding)
            confirmed = invariant or all(
                (settled and bool(close[best])) or _would_have_shown(gap, spread, degree, n - k)
                for best, gap, spread in sides
            )
        else:
            confirmed = k == 1
        done = converged and (whole or confirmed)
        if done or whole or products >= max(k, max_iter - k):
            break

        if converged and found is None:
            # The pairs that were found stay; a second search starts outside of them.
            found, keep, again = values[wanted], wanted, True
        elif size == basis_size:
            keep, again = order[: max((k + basis_size) // 2, k + len(sides))], invariant  # the better half stays
            for best, _, _ in sides:  # and each end of the rest; one of them is the best of it
                if best not in keep:
                    keep[-1] = best
        else:
            keep, again = None, invariant
        coupling = torch.zeros(size, dtype=torch.float64, device="cpu")
        coupling[last] = norm
        if keep is not None:
            size = len(keep)
            _combine(basis[: last + 1], rotation[:, keep].to(device, dtype))
            projected.zero_()
            projected[range(size), range(size)] = values[keep]
            coupling = norm * rotation[-1, keep]
        if again:
            residual, norm = _outside(basis[:size], generator)
            coupling = torch.zeros(size, dtype=torch.float64, device="cpu")
            steps = 0
        last = size
        projected[:last, last] = projected[last, :last] = coupling
        torch.div(residual, norm, out=basis[last])

    _combine(basis[:size], rotation[:, wanted].to(device, dtype))
    found_values: list[float] = values[wanted].tolist()
    true = [math.nan] * len(found_values)
    for index in range(min(k, max_iter - products)):
        true[index] = _norm(apply(basis[index]).sub_(basis[index], alpha=found_values[index]))
        products += 1
    small = all(error <= max(tol * abs(value), rounding) for value, error in zip(found_values, true, strict=True))
    found = basis[:k].clone() if vectors else None
    return Eigenvalues(tuple(found_values), tuple(true), done and small, products, found), done


def _sides(values: torch.Tensor, order: torch.Tensor, k: int, by: By) -> list[tuple[int, float, float]]:
    """Where values beyond the first k could still come up: above the rest, and by magnitude also below it.

    Returns:
        For each side, the index of the best value there, how far it is from the k-th, and how far from that the whole
        rest reaches.
    """
    rest = order[k:]
    if len(rest) == 0:
        return []
    high, low = int(rest[values[rest].argmax()]), int(rest[values[rest].argmin()])
    top, bottom = float(values[high]), float(values[low])
    least = float(values[order[k - 1]])
    if by == "value":
        return [(high, least - top, least - bottom)]
    return [(high, abs(least) - top, abs(least) - bottom), (low, abs(least) + bottom, abs(least) + top)]


def _would_have_shown(gap: float, spread: float, steps: int, n: int) -> bool:
    """Whether an eigenvalue that is larger by the gap would have shown in so many steps from a random start.

    Args:
        gap: from the largest value that was found.
        spread: from the smallest one.
        steps: products of the search, without restarts.
        n: the dimension that is searched.
    """
    return gap > 0 and 1.648 * math.sqrt(n) * math.exp(-math.sqrt(gap / spread) * (2 * steps - 1)) <= MISSED


def _outside(basis: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, float]:
    """A random vector that is orthogonal to the rows of a basis, and its norm."""
    n = basis.shape[1]
    while True:
        vector = torch.randn(n, generator=generator, dtype=basis.dtype, device="cpu").to(basis.device)
        before = _norm(vector)
        after = _orthogonalise(vector, basis)
        if after > 1e-3 / math.sqrt(n) * before:  # else it may have been the start: what is left is rounding
            return vector, after


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
    square = float(torch.dot(vector, vector))  # on the CPU in a quarter of torch's norm's time
    if 1e-25 < square < 1e25:
        return math.sqrt(square)
    # In float32 the squares of numbers beyond 1e-23 and 1e19 are 0 and infinite.
    largest = float(vector.abs().max())
    return largest * float(torch.linalg.vector_norm(vector / largest)) if 0 < largest < math.inf else largest


def _combine(basis: torch.Tensor, rotation: torch.Tensor) -> None:
    """Put ``rotationᵀ · basis`` into the first rows of the basis, without a second one of its size."""
    rows = rotation.shape[1]
    for columns in torch.split(basis, CHUNK, dim=1):
        columns[:rows] = rotation.T @ columns

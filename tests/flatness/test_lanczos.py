"""Lanczos on operators whose spectrum is known, and against scipy's solver."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from flatwise.flatness._lanczos import lanczos


def with_spectrum(values, seed=0):
    """A symmetric matrix with the given eigenvalues, in float64."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    rotation = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return (rotation * torch.tensor(values, dtype=torch.float64)) @ rotation.T


def start(n, dtype=torch.float64, seed=1):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# As of a network: a bulk around 0, some outliers, a few negative ones.
BULK = np.concatenate([np.random.default_rng(0).normal(0, 0.1, 480), [9, 7, 5, 3, 2.5, 2, 1.5, 1.2], [-4, -1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("by", ["value", "magnitude"])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_finds_the_top_of_a_known_spectrum(k, by, dtype):
    matrix = with_spectrum(BULK).to(dtype)
    pairs = lanczos(lambda v: matrix @ v, start(len(BULK), dtype), k, by=by, vectors=True)
    order = np.argsort(BULK if by == "value" else np.abs(BULK))[::-1]
    expected = BULK[order[:k]]
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, expected, rtol=1e-3)
    assert list(pairs.values) == sorted(pairs.values, key=(lambda v: v) if by == "value" else abs, reverse=True)
    # The residuals and vectors are what they are said to be.
    vectors = pairs.vectors.double()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(k).double(), rtol=0, atol=1e-5)
    values = torch.tensor(pairs.values, dtype=torch.float64)
    true = (vectors @ matrix.double() - values[:, None] * vectors).norm(dim=1)
    np.testing.assert_allclose(pairs.residuals, true, rtol=1e-3, atol=1e-5)
    assert (np.array(pairs.residuals) <= 1e-3 * np.abs(pairs.values)).all()


def test_agrees_with_scipy_and_needs_few_more_products():
    matrix = with_spectrum(BULK)
    calls = {"scipy": 0, "own": 0}

    def product(name, v):
        calls[name] += 1
        return matrix @ v

    operator = LinearOperator(matrix.shape, matvec=lambda v: product("scipy", torch.from_numpy(v)).numpy(), dtype=float)
    expected = eigsh(operator, 5, which="LA", tol=1e-3, v0=start(len(BULK)).numpy(), return_eigenvectors=False)
    found = lanczos(lambda v: product("own", v), start(len(BULK)), 5)
    np.testing.assert_allclose(found.values, expected[::-1], rtol=1e-6)
    # A product for each residual, and a second search for further copies: scipy does neither.
    assert found.products == calls["own"] <= calls["scipy"] + 5 + 12


def test_many_restarts_keep_the_basis_orthogonal():
    # Close eigenvalues and a small basis: ghosts, copies of converged values, would appear without reorthogonalisation.
    values = np.concatenate([np.linspace(1, 2, 300), [4, 3]])
    matrix = with_spectrum(values).float()
    pairs = lanczos(
        lambda v: matrix @ v, start(302, torch.float32), 6, basis_size=12, max_iter=600, tol=1e-4, vectors=True
    )
    assert pairs.converged and pairs.products > 60
    np.testing.assert_allclose(pairs.values, np.sort(values)[::-1][:6], rtol=1e-4)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("values", "k"),
    [
        ([10.0, 10, 1, 1], 2),  # an invariant space is found before the second copy
        ([3.0] * 50, 5),
        ([5.0, 4, 3] + [0] * 200, 5),  # fewer than k that are not 0
        ([2.0], 1),
        ([0.0] * 8, 3),
        (list(range(-6, 1)), 7),  # all of them
    ],
    ids=["double", "all alike", "low rank", "one", "zero", "all"],
)
def test_degenerate_spectra(values, k, dtype):
    diagonal = torch.tensor(values, dtype=dtype)
    pairs = lanczos(lambda v: diagonal * v, start(len(values), dtype), k, vectors=True)
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, sorted(values, reverse=True)[:k], atol=2e-5)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(k, dtype=dtype), rtol=0, atol=1e-5)


def test_stops_at_max_iter_and_says_so():
    matrix = with_spectrum(np.linspace(1, 2, 300))
    pairs = lanczos(lambda v: matrix @ v, start(300), 3, max_iter=25)
    assert not pairs.converged
    assert pairs.products == 25
    assert len(pairs.values) == 3
    assert (np.array(pairs.residuals) > 1e-3 * np.array(pairs.values)).any()


def test_the_same_start_gives_the_same_bits():
    matrix = with_spectrum(BULK)
    one, two = (lanczos(lambda v: matrix @ v, start(len(BULK)), 4) for _ in range(2))
    assert one.values == two.values

"""Curvature of models against the exact Hessian, curvlinops, and their own error bars."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatness.exact import classifier, exact_hessian, ragged
from flatwise import flatness
from flatwise.flatness import FlatnessError
from flatwise.flatness.curvature import estimate_diagonal, estimate_trace, rademacher

CE = nn.CrossEntropyLoss()


def quadratic(values):
    """A model whose loss is ½ Σ values · w², at some w: its Hessian is known. Data are a constant."""
    model = nn.Module()
    model.w = nn.Parameter(torch.arange(1.0, len(values) + 1))
    values = torch.tensor(values)
    return model, flatness.BatchLoss(lambda model, batch: (values * model.w.square()).sum() / 2), torch.zeros(3, 1)


def test_a_quadratic():
    values = [3.0, -7.0, 0.5, 2.0, 0.0]
    model, loss, data = quadratic(values)
    assert flatness.gradient_norm(model, loss, data) == pytest.approx(math.hypot(3, -14, 1.5, 8, 0))
    np.testing.assert_allclose(flatness.hvp(model, loss, data, torch.ones(5)), values)
    top = flatness.top_eigenvalues(model, loss, data, 2)
    np.testing.assert_allclose(top.values, [3, 2], rtol=1e-5)
    assert top.converged and top.vectors is None
    np.testing.assert_allclose(
        flatness.top_eigenvalues(model, loss, data, 2, by="magnitude").values, [-7, 3], rtol=1e-5
    )
    # Signs times a diagonal matrix show it without any noise.
    found = flatness.diagonal(model, loss, data)
    np.testing.assert_allclose(found.values, values, atol=1e-6)
    np.testing.assert_allclose(found.error, 0, atol=1e-6)
    assert flatness.trace(model, loss, data).value == pytest.approx(sum(values), abs=1e-5)


@pytest.mark.parametrize("by", ["value", "magnitude"])
@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
def test_top_ten_eigenvalues_of_an_mlp(by, dtype):
    model, x, y = classifier()
    exact = np.linalg.eigvalsh(exact_hessian().numpy())
    exact = exact[np.argsort(exact if by == "value" else np.abs(exact))[::-1][:10]]
    found = flatness.top_eigenvalues(model, CE, ragged(x, y), 10, by=by, dtype=dtype, vectors=True)
    assert found.converged
    np.testing.assert_allclose(found.values, exact, rtol=1e-3)
    true = found.vectors.double() @ exact_hessian()
    residual = (true - torch.tensor(found.values, dtype=torch.float64)[:, None] * found.vectors).norm(dim=1)
    np.testing.assert_allclose(found.residuals, residual, rtol=0.05, atol=1e-5)


def test_products_are_the_hessian():
    model, x, y = classifier()
    size = len(exact_hessian())
    eye = torch.eye(size, dtype=torch.float64)
    for data in ((x, y), ragged(x, y)):
        found = flatness.hvp(model, CE, data, eye, dtype=torch.float64)
        torch.testing.assert_close(found, exact_hessian(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flatness.hvp(model, CE, (x, y), eye[7]).double(), exact_hessian()[7], rtol=0, atol=1e-6)


def test_products_between_visits_to_other_weights():
    model, x, y = classifier()
    with flatness.measuring(model, CE, (x, y)) as objective:
        vector = torch.ones(objective.size)
        product = objective.hvp(vector)
        assert not torch.allclose(objective.hvp(vector, objective.vector() * 2), product)
        objective.loss(objective.vector() * 3)
        torch.testing.assert_close(objective.hvp(vector), product)
        objective.loss(objective.vector() * 3)
        objective.loss()
        torch.testing.assert_close(objective.hvp(vector), product)


def test_gradient_norm():
    model, x, y = classifier()
    CE(model(x), y).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm().item()
    assert flatness.gradient_norm(model, CE, ragged(x, y)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what its dependencies use
def test_agrees_with_curvlinops():
    import curvlinops

    model, x, y = classifier()
    model, x = model.double(), x.double()
    parameters = [p for p in model.parameters() if p.requires_grad]
    operator = curvlinops.HessianLinearOperator(model, CE, parameters, ragged(x, y), check_deterministic=False)
    vectors = torch.randn(3, len(exact_hessian()), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = flatness.hvp(model, CE, ragged(x, y), vectors)
    torch.testing.assert_close(found, (operator @ vectors.T).detach().T, rtol=1e-9, atol=1e-12)


# Rademacher probes. A bug of a public library, probes that are always −1, passes every test of its own.


def test_probes_are_signs_with_mean_0():
    generator = torch.Generator().manual_seed(0)
    probes = torch.stack([rademacher(1000, generator) for _ in range(100)]).double()
    assert set(probes.unique().tolist()) == {-1.0, 1.0}
    assert abs(probes.mean()) < 4 / math.sqrt(probes.numel())
    assert (probes.mean(0).abs() < 5 / math.sqrt(100)).all()  # for every element,
    assert (probes.mean(1).abs() < 5 / math.sqrt(1000)).all()  # in every probe,
    products = probes @ probes.T / 1000 - torch.eye(100)
    assert products.abs().max() < 6 / math.sqrt(1000)  # and from probe to probe


def test_the_seed_decides_the_probes_and_nothing_else_does():
    model, x, y = classifier()

    def samples(seed):
        return flatness.trace(model, CE, (x, y), seed=seed, max_probes=5).samples

    torch.manual_seed(1)
    first = samples(0)
    torch.manual_seed(2)
    assert samples(0) == first != samples(1)


@pytest.mark.parametrize("tol", [0, 0.1], ids=["fixed number", "stopping rule"])
def test_error_bars_of_the_trace_hold(tol):
    """A 95 % interval holds the truth in 95 % of 400 trials: 365 to 393 of them, up to a chance of 1 in 1,000."""
    hessian = exact_hessian()
    hits = 0
    for seed in range(400):
        found = estimate_trace(lambda v: v @ hessian, hessian[0], tol=tol, max_probes=40, seed=seed)
        hits += abs(found.value - hessian.trace().item()) <= found.error
    assert 365 <= hits <= 393


@pytest.mark.parametrize("tol", [0, 0.3], ids=["fixed number", "stopping rule"])
def test_error_bars_of_the_diagonal_hold(tol):
    """Of all entries in all trials, 95 % lie within their own 95 % intervals."""
    hessian = exact_hessian()
    shares = []
    for seed in range(100):
        found = estimate_diagonal(lambda v: v @ hessian, hessian[0], tol=tol, max_probes=40, seed=seed)
        shares.append(((found.values - hessian.diagonal()).abs() <= found.error).double().mean().item())
    assert np.mean(shares) == pytest.approx(0.95, abs=0.01)


def test_estimates_stop_at_their_tolerance():
    model, x, y = classifier()
    truth = exact_hessian()
    trace = flatness.trace(model, CE, (x, y), tol=0.2)
    assert trace.converged and len(trace.samples) < 200
    assert trace.standard_error <= 0.2 * abs(trace.value)
    assert abs(trace.value - truth.trace().item()) <= trace.error
    diagonal = flatness.diagonal(model, CE, (x, y), tol=0.3)
    assert diagonal.converged and diagonal.probes < 200
    assert (diagonal.values - truth.diagonal()).norm() <= 0.5 * truth.diagonal().norm()
    assert not flatness.trace(model, CE, (x, y), tol=1e-6, max_probes=20).converged
    two = flatness.trace(model, CE, (x, y), tol=0, max_probes=2)
    assert two.value == pytest.approx(np.mean(two.samples))
    assert two.error > 12 * two.standard_error  # of two numbers, little is known


def test_progress_counts_products():
    model, x, y = classifier()
    seen = []
    top = flatness.top_eigenvalues(model, CE, (x, y), progress=lambda done, most: seen.append((done, most)))
    assert seen == [(i + 1, 200) for i in range(top.products)]
    seen.clear()
    flatness.trace(model, CE, (x, y), tol=0, max_probes=20, progress=lambda done, most: seen.append((done, most)))
    assert seen == [(16, 20), (20, 20)]


def test_by_parameter():
    model, x, y = classifier()
    found = flatness.diagonal(model, CE, (x, y), max_probes=10)
    parts = flatness.by_parameter(model, found.values)
    assert {name: p.shape for name, p in model.named_parameters() if p.requires_grad} == {
        name: part.shape for name, part in parts.items()
    }
    assert torch.equal(torch.cat([part.flatten() for part in parts.values()]), found.values)
    with pytest.raises(FlatnessError, match=r"has shape \(317,\) for this model; got \(316,\)"):
        flatness.by_parameter(model, found.values[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number, 1 or more; got 0"),
        ({"k": 2.0}, "k must be a whole number"),
        ({"k": 500}, "k is 500, but the Hessian has only 317 eigenvalues"),
        ({"k": 5, "max_iter": 4}, "max_iter must be a whole number, 5 or more; got 4"),
        ({"k": 5, "basis_size": 6}, "basis_size must be a whole number, 7 or more; got 6"),
        ({"by": "size"}, "by must be 'value' or 'magnitude'; got 'size'"),
        ({"tol": -1}, "tol must be a relative residual"),
        ({"tol": math.nan}, "tol must be a relative residual"),
    ],
)
def test_bad_settings_of_eigenvalues(options, message):
    model, x, y = classifier()
    with pytest.raises(FlatnessError, match=message):
        flatness.top_eigenvalues(model, CE, (x, y), **{"max_iter": 1000, **options})


@pytest.mark.parametrize("function", [flatness.trace, flatness.diagonal])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_probes": 1}, "max_probes must be a whole number, 2 or more"),
        ({"max_probes": 2.5}, "max_probes must be a whole number, 2 or more"),
        ({"tol": -0.1}, "tol must be a relative standard error"),
    ],
)
def test_bad_settings_of_estimates(function, options, message):
    model, x, y = classifier()
    with pytest.raises(FlatnessError, match=message):
        function(model, CE, (x, y), **options)


# Models whose usual kernels cannot be differentiated twice.


class Attention(nn.Module):
    """Attention by torch's function, whose flash kernel has no second derivative."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)[:, -1])


class Multihead(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0][:, 0])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.out = nn.TransformerEncoder(layer, 2), nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.encoder(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.out = kind(8, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    "make",
    [Attention, Multihead, Encoder, lambda: Recurrent(nn.LSTM), lambda: Recurrent(nn.GRU)],
    ids=["sdpa", "multihead", "encoder", "lstm", "gru"],
)
def test_products_of_models_with_fused_kernels(make, mode):
    """Against central differences of the gradient, in float64."""
    torch.manual_seed(0)
    model = make()
    data = (torch.randn(6, 5, 8), torch.randn(6, 1))
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    with flatness.measuring(model, nn.MSELoss(), data, mode=mode, dtype=torch.float64) as objective:
        weights = objective.vector()
        vector = torch.randn(objective.size, dtype=torch.float64)
        product = objective.hvp(vector)
        step = 1e-5
        difference = objective.gradient(weights + step * vector)[1] - objective.gradient(weights - step * vector)[1]
        torch.testing.assert_close(product, difference / (2 * step), rtol=1e-5, atol=1e-7)
        assert product.norm() > 1e-3
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == before


def test_a_frozen_encoder_under_a_trained_head():
    """Nothing of the encoder requires a gradient, so torch takes its fused inference path: it may."""
    torch.manual_seed(0)
    model = Encoder()
    model.encoder.requires_grad_(False)
    data = (torch.randn(6, 5, 8), torch.randn(6, 1))
    assert flatness.top_eigenvalues(model, nn.MSELoss(), data).converged


class LanguageModel(nn.Module):
    """Called as transformers' models are: with keywords, returning its own loss."""

    def __init__(self):
        super().__init__()
        self.embedding, self.attention, self.head = nn.Embedding(11, 8), Attention(), nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids, labels):
        hidden = self.embedding(input_ids)
        hidden = hidden + self.attention(hidden)[:, None]
        loss = F.cross_entropy(self.head(hidden[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss}


def test_a_model_that_returns_its_loss():
    torch.manual_seed(0)
    ids = torch.randint(0, 11, (5, 7))
    loss = flatness.BatchLoss(lambda model, batch: model(**batch)["loss"])
    model = LanguageModel()
    found = flatness.top_eigenvalues(model, loss, {"input_ids": ids, "labels": ids}, 2)
    assert found.converged
    assert sum(p.numel() for p in model.parameters()) == 88 + 8 * 24 + 24 + 9  # tied weights once


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("k", [1, 3])
def test_a_hessian_of_zeros_at_every_size_and_seed(k, dtype):
    """The vector of a new search must not be the first start, of which nothing is left outside of its own search."""
    for size in range(k, 40):
        model = nn.Linear(size, 1, bias=False, dtype=dtype)
        data = (torch.ones(4, size, dtype=dtype), torch.zeros(4, 1, dtype=dtype))
        found = flatness.top_eigenvalues(model, lambda o, t: o.mean(), data, k, seed=size % 3)
        assert found.converged and found.values == found.residuals == (0.0,) * k


@pytest.mark.parametrize("k", [2, 3, 5])
def test_eigenvalues_of_a_regression_with_several_outputs_are_repeated(k):
    """The Hessian is block diagonal, with the inputs' covariance once for every output."""
    torch.manual_seed(0)
    x = torch.randn(200, 12).double() * torch.linspace(1, 3, 12)
    model = nn.Linear(12, 4, bias=False).double()
    exact = torch.linalg.eigvalsh(2 * x.T @ x / 200 / 4).flip(0).repeat_interleave(4)[:k]
    found = flatness.top_eigenvalues(model, nn.MSELoss(), (x, torch.randn(200, 4).double()), k)
    assert found.converged
    np.testing.assert_allclose(found.values, exact, rtol=1e-3)


def test_residuals_are_those_of_the_products_also_in_float32():
    """Far below the largest eigenvalue the recurrence's residual is smaller than the product's own error."""
    torch.manual_seed(0)
    values = torch.cat([torch.tensor([1e4, 1.0]), torch.linspace(0, 0.5, 48)])
    rotation = torch.linalg.qr(torch.randn(50, 50))[0]
    model = nn.Linear(50, 1, bias=False)
    x = (values.sqrt()[:, None] * rotation.T) * 50**0.5 / 2**0.5
    data = (x, torch.zeros(50, 1))
    found = flatness.top_eigenvalues(model, nn.MSELoss(), data, 2, vectors=True, tol=1e-9)
    vectors = found.vectors.double()
    true = (
        flatness.hvp(model, nn.MSELoss(), data, found.vectors).double() - torch.tensor(found.values)[:, None] * vectors
    )
    assert found.residuals == pytest.approx(true.norm(dim=1).tolist(), rel=0.5)
    assert found.residuals[1] > 1e-6


def test_a_search_for_further_copies_that_is_cut_short_has_not_converged():
    torch.manual_seed(0)
    x = torch.randn(200, 30).double() * torch.linspace(1, 3, 30)
    model, data = nn.Linear(30, 4, bias=False).double(), (x, torch.randn(200, 4).double())
    enough = flatness.top_eigenvalues(model, nn.MSELoss(), data, 2, max_iter=500)
    assert enough.converged
    short = flatness.top_eigenvalues(model, nn.MSELoss(), data, 2, max_iter=enough.products - 3)
    assert not short.converged and short.products <= enough.products - 3


def test_a_trace_says_first_whether_it_converged():
    model, x, y = classifier()
    assert repr(flatness.trace(model, CE, (x, y), tol=1e-6, max_probes=20)).endswith("converged=False)")
    assert "samples" not in repr(flatness.trace(model, CE, (x, y), max_probes=20))

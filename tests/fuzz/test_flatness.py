"""The flatness lab on random small models, losses and data, against references that share no code with it.

A reference loss builds a fresh copy of the model for every point, gives it the weights and walks over the batches. A
reference Hessian is differentiated row by row, on a copy in float64. Around every measurement, whatever
context it is made in and whatever is raised in it, the model and all random states must be as they were.
"""

import copy
import random
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from flatwise import flatness
from flatwise.flatness import BatchLoss, FlatnessError, measuring
from flatwise.flatness._lanczos import lanczos


class Tied(nn.Module):
    """One layer that is used twice, and its weight a third time, transposed."""

    def __init__(self, width, outputs):
        super().__init__()
        self.first = self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.third.weight = self.first.weight
        self.last = nn.Linear(width, outputs)

    def forward(self, x):
        return self.last(torch.tanh(self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))))


class Buffered(nn.Module):
    """A buffer in the function, and one that forward moves."""

    def __init__(self, width, outputs):
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.register_buffer("scale", torch.rand(outputs) + 0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.scale


MODELS = {
    "linear": lambda width, outputs: nn.Linear(width, outputs),
    "mlp": lambda width, outputs: nn.Sequential(nn.Linear(width, 3), nn.Tanh(), nn.Linear(3, outputs)),
    "norm": lambda width, outputs: nn.Sequential(
        nn.Linear(width, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, outputs)
    ),
    "dropout": lambda width, outputs: nn.Sequential(nn.Linear(width, 3), nn.Dropout(0.5), nn.Linear(3, outputs)),
    "tied": Tied,
    "buffers": Buffered,
}
WEIGHT = torch.tensor([0.3, 1.0, 2.5])
LOSSES = {
    "squares": (nn.MSELoss, "real"),
    "absolute": (nn.SmoothL1Loss, "real"),
    "squares, as a function": (lambda: lambda output, target: (output - target).square().mean(), "real"),
    "cross-entropy": (nn.CrossEntropyLoss, "class"),
    "cross-entropy, weighted": (lambda: nn.CrossEntropyLoss(WEIGHT.clone()), "class"),
    "cross-entropy, ignoring": (lambda: nn.CrossEntropyLoss(WEIGHT.clone(), ignore_index=1), "class"),
    "cross-entropy, as a function": (lambda: F.cross_entropy, "ignored"),
}


@st.composite
def cases(draw, dtypes=(torch.float32, torch.float64)):
    """A model, a loss, batches, and what each batch counts, all of one seed."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    width, outputs = draw(st.integers(1, 4)), 3
    dtype = draw(st.sampled_from(dtypes))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw(st.integers(0, 2**32)))
        model = MODELS[draw(st.sampled_from(sorted(MODELS)))](width, outputs)
        for parameter in model.parameters():
            parameter.data.normal_()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
        module.training = draw(st.booleans())
    model = model.to(dtype)
    parameters = list(model.parameters())
    frozen = draw(st.sets(st.integers(0, len(parameters) - 1), max_size=len(parameters) - 1))
    for index, parameter in enumerate(parameters):
        parameter.requires_grad_(index not in frozen)
        if draw(st.booleans()):
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
    name = draw(st.sampled_from(sorted(LOSSES)))
    make, targets = LOSSES[name]
    loss = make()
    if isinstance(loss, nn.Module):
        loss = loss.to(dtype)
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    samples = sum(sizes)
    x = torch.randn(samples, width, generator=generator).to(dtype)
    if targets == "real":
        y = torch.randn(samples, outputs, generator=generator).to(dtype)
        counts = [float(size) for size in sizes]
    else:
        y = torch.randint(0, outputs, (samples,), generator=generator)
        y[0] = 0  # something counts
        if targets == "ignored":
            y[1:][torch.rand(samples - 1, generator=generator) < 0.4] = -100
        weight = WEIGHT if "weighted" in name or "ignoring" in name else torch.ones(3)
        ignored = 1 if "ignoring" in name else -100
        counts = [sum(float(weight[t]) for t in part if t != ignored) for part in torch.split(y, sizes)]
    batches = list(zip(torch.split(x, sizes), torch.split(y, sizes), strict=True))
    form = draw(
        st.sampled_from(["list", "loader", "shuffled", "single"] if len(set(sizes)) == 1 else ["list", "single"])
    )
    if form == "single":
        data, batches, counts = (x, y), [(x, y)], [1.0]
    elif form == "list":
        data = batches
    else:
        generator = torch.Generator().manual_seed(5)
        data = DataLoader(TensorDataset(x, y), sizes[0], shuffle=form == "shuffled", generator=generator)
    return model, loss, data, list(zip(batches, counts, strict=True))


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast off": lambda: torch.autocast("cpu", dtype=torch.bfloat16, enabled=False),
    "default device": lambda: torch.device("meta"),
    "default dtype": lambda: Default(torch.float64),
}
contexts = st.sets(st.sampled_from(sorted(CONTEXTS)), max_size=3)


class Default:
    """A default dtype, for a while."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *error):
        torch.set_default_dtype(self.before)


def entered(names, data):
    stack = ExitStack()
    for name in sorted(names):
        if name == "default device" and isinstance(data, DataLoader):
            continue  # torch's own samplers draw on it
        stack.enter_context(CONTEXTS[name]())
    return stack


def everything(model, loss, data):
    """All that a measurement must leave as it is."""
    modules = [model, loss] if isinstance(loss, nn.Module) else [model]
    found = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
    for one in modules:
        for name, tensor in (*one.named_parameters(), *one.named_buffers()):
            gradient = tensor.grad
            found.append((name, id(tensor), tensor.requires_grad, tensor.detach().flatten().tolist()))
            found.append((id(gradient), None if gradient is None else gradient.flatten().tolist()))
        found.append([(module.training, sorted(vars(module))) for module in one.modules()])
    if isinstance(data, DataLoader):
        found.append(data.generator.get_state().tolist())
    found += [torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()]
    found += [torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled(), torch.get_default_device()]
    return found


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def with_weights(model, vector):
    """A fresh model with these weights, to be evaluated."""
    new = copy.deepcopy(model).eval()
    start = 0
    with torch.no_grad():
        for parameter in new.parameters():
            if parameter.requires_grad:
                parameter.copy_(vector[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()
    return new


def reference(model, loss, weighted, vector, cast=False, move=None):
    total = 0.0
    for (x, y), count in weighted:
        if count:
            new = with_weights(model, vector)
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast):
                total += float(loss(new(x if move is None else x + move), y)) * count
    return total / sum(count for _, count in weighted)


def own_dtype(model):
    return next(model.parameters()).dtype


def close(found, expected, model, cast):
    # In bfloat16 the order of a shuffled batch can change a rounding.
    rel = 1e-2 if cast else 2e-4 if own_dtype(model) == torch.float32 else 1e-9
    assert found == pytest.approx(expected, rel=rel, abs=rel)


@fuzz(150)
@given(
    cases(), contexts, st.integers(0, 1000), st.sampled_from(["along", "random", "filter", "surface", "path", "inputs"])
)
def test_losses_are_those_of_fresh_models(case, names, seed, kind):
    model, loss, data, weighted = case
    cast = "autocast" in names and "autocast off" not in names and own_dtype(model) == torch.float32
    own = flat(model)
    generator = torch.Generator().manual_seed(seed)
    one, two = (torch.randn(len(own), generator=generator).to(own) for _ in range(2))
    before = everything(model, loss, data)
    with entered(names, data):
        around = everything(model, loss, data)
        if kind == "along":
            curves = flatness.loss_along(model, loss, data, [one, two], [-1.0, 0.0, 2.0])
            found = curves.curve().losses
            points = [[own + a * d / d.norm() for a in (-1, 0, 2)] for d in (one, two)]
        elif kind == "path":
            found = flatness.weight_path(model, loss, data, own + one, distances=[-1.0, 0.5]).curve().losses
            points = [[own + a * one / one.norm() for a in (-1, 0.5)]]
        elif kind == "surface":
            if len(own) == 1:  # two directions of a line span no plane
                with pytest.raises(FlatnessError, match="parallel"):
                    flatness.loss_surface(model, loss, data, [one, two], xs=[0.0, 1.0], ys=[-1.0, 0.0])
                assert everything(model, loss, data) == around
                return
            found = flatness.loss_surface(model, loss, data, [one, two], xs=[0.0, 1.0], ys=[-1.0, 0.0]).grid().losses
            points = [[own + x * one + y * two for x in (0, 1)] for y in (-1, 0)]
        elif kind == "inputs":
            found = flatness.input_noise_paths(model, loss, data, directions=1, distances=[0.0, 1.5], seed=seed)
            points = [[own, own]]
            found = found.curve().losses
        else:
            kind_of = "unit" if kind == "random" else "filter"
            try:
                found = flatness.random_weight_paths(
                    model, loss, data, directions=1, distances=[-0.5, 1.0], seed=seed, normalize=kind_of
                )
            except FlatnessError as error:
                assert "leaves nothing to move" in str(error)
                return
            generator = torch.Generator().manual_seed(seed)
            draws = torch.randn(len(own), generator=generator, dtype=torch.float32, device="cpu").to(own)
            direction = draws / draws.norm() if kind == "random" else by_filter(model, draws)
            points = [[own + a * direction for a in (-0.5, 1)]]
            found = found.curve().losses
        assert everything(model, loss, data) == around
    assert everything(model, loss, data) == before
    if kind == "inputs":
        x = weighted[0][0][0]
        noise = torch.randn(1, x.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        moves = [None, (1.5 * noise / noise.norm()).to(x)]
        expected = [[reference(model, loss, weighted, own, cast, move) for move in moves]]
    else:
        expected = [[reference(model, loss, weighted, point, cast) for point in row] for row in points]
    for row, right in zip(found, expected, strict=True):
        close(row, right, model, cast)


def by_filter(model, direction):
    """The direction, each row scaled to the norm of the model's; biases stay."""
    parts, start = [], 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            part = direction[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            if parameter.ndim < 2:
                parts.append(torch.zeros_like(part).flatten())
                continue
            rows = [d / d.norm() * w.norm() for d, w in zip(part, parameter.detach(), strict=True)]
            parts.append(torch.cat(rows))
    return torch.cat(parts)


def exact_derivatives(model, loss, weighted):
    """The gradient and the Hessian in float64, row by row, of a copy of the model."""
    new = copy.deepcopy(model).eval().double()
    loss = copy.deepcopy(loss).double() if isinstance(loss, nn.Module) else loss
    parameters = [p for p in new.parameters() if p.requires_grad]
    total = 0.0
    for (x, y), count in weighted:
        if count:
            total = total + loss(new(x.double()), y.double() if y.is_floating_point() else y) * count
    total = total / sum(count for _, count in weighted)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters, create_graph=True)])
    rows = []
    for entry in gradient:
        parts = [None] * len(parameters)
        if entry.requires_grad:
            parts = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]
        rows.append(torch.cat([part.flatten() for part in parts]))
    return gradient.detach(), torch.stack(rows)


def steepest(model, weighted):
    """The largest sum of squared derivatives of a sample's outputs by the weights, in float64."""
    new = copy.deepcopy(model).eval().double()
    parameters = [p for p in new.parameters() if p.requires_grad]
    found = 0.0
    for (x, _), _ in weighted:
        outputs = new(x.double())
        each = torch.eye(outputs.numel(), dtype=torch.float64).view(-1, *outputs.shape)
        parts = torch.autograd.grad(outputs, parameters, each, is_grads_batched=True, allow_unused=True)
        squares = sum(part.flatten(1).square().sum(dim=1) for part in parts if part is not None)
        found = max(found, float(squares.view(len(x), -1).sum(dim=1).max()))
    return found


@fuzz(40, slower=5)
@given(cases(), contexts, st.integers(0, 1000))
def test_derivatives_are_torchs(case, names, seed):
    model, loss, data, weighted = case
    gradient, hessian = exact_derivatives(model, loss, weighted)
    own = flat(model)
    spectrum = torch.linalg.eigvalsh(hessian).flip(0)
    k = min(3, len(own))
    before = everything(model, loss, data)
    with entered(names, data):
        options = {"dtype": torch.float64}  # which autocast leaves alone
        norm = flatness.gradient_norm(model, loss, data, **options)
        vectors = torch.randn(
            2, len(own), generator=torch.Generator().manual_seed(seed), dtype=torch.float64, device="cpu"
        )
        products = flatness.hvp(model, loss, data, vectors, **options)
        top = flatness.top_eigenvalues(model, loss, data, k, max_iter=400, seed=seed, tol=1e-6, vectors=True, **options)
        trace = flatness.trace(model, loss, data, tol=0, max_probes=12, seed=seed, **options)
        with measuring(model, loss, data, **options) as objective:
            again = objective.hvp(vectors), objective.gradient()[1], objective.hvp(vectors)
    assert everything(model, loss, data) == before
    # Probabilities near 1 are rounded to eps, and every product passes them through the derivatives of the outputs
    # twice: 32 eps for a vector of norm 1. If the softmax is saturated, the Hessian can be far smaller than 1.
    rounding = 32 * torch.finfo(torch.float64).eps * (1 + steepest(model, weighted))
    atol = 1e-9 * float(hessian.abs().max()) + len(own) * rounding
    assert norm == pytest.approx(gradient.norm().item(), rel=1e-9, abs=1e-12)
    for found in (products, again[0], again[2]):
        torch.testing.assert_close(found, vectors @ hessian, rtol=1e-9, atol=atol)
    torch.testing.assert_close(again[1], gradient, rtol=1e-9, atol=1e-12)
    assert top.converged or max(top.residuals) < rounding
    assert np.allclose(top.values, spectrum[:k], rtol=1e-5, atol=atol)
    residuals = (top.vectors @ hessian - torch.tensor(top.values, dtype=torch.float64)[:, None] * top.vectors).norm(
        dim=1
    )
    assert np.allclose(top.residuals, residuals, rtol=1e-3, atol=atol)
    signs = torch.Generator().manual_seed(seed)
    probes = [torch.randint(0, 2, (len(own),), generator=signs, dtype=torch.int8).double() * 2 - 1 for _ in range(12)]
    expected = [float(probe @ hessian @ probe) for probe in probes]
    assert trace.samples == pytest.approx(expected, rel=1e-9, abs=atol)
    mean, error = np.mean(trace.samples), np.std(trace.samples, ddof=1) / 12**0.5
    assert (trace.value, trace.standard_error) == pytest.approx((mean, error), rel=1e-9, abs=atol)
    # Samples that are all the same number have no spread but for rounding, which may differ from the reference's.
    assert trace.converged == (trace.standard_error == 0)


class Deliberate(Exception):
    pass


@fuzz(100)
@given(
    cases(),
    contexts,
    st.integers(1, 8),
    st.sampled_from([Deliberate, KeyboardInterrupt]),
    st.sampled_from(["random_weight_paths", "loss_surface", "top_eigenvalues", "trace", "input_noise_paths"]),
)
def test_nothing_is_left_behind_when_the_loss_raises(case, names, at, error, function):
    model, loss, data, _ = case
    calls = 0

    def raising(model, batch):
        nonlocal calls
        calls += 1
        if calls == at:
            for parameter in model.parameters():
                parameter.data.zero_()
            random.random()
            np.random.rand()
            torch.rand((), device="cpu")
            raise error
        return loss(model(batch[0]), batch[1]).nan_to_num()

    options = {"random_weight_paths": {"directions": 2}, "loss_surface": {"normalize": "unit", "xs": [0, 1]}}
    before = everything(model, loss, data)
    raised = True
    with entered(names, data):
        try:
            getattr(flatness, function)(
                model, BatchLoss(raising, lambda batch: len(batch[0])), data, **options.get(function, {})
            )
            raised = False
        except KeyboardInterrupt:
            assert error is KeyboardInterrupt
        except FlatnessError as caught:
            assert isinstance(caught.__cause__, Deliberate) or calls < at  # a loss without a derivative, say
    assert raised == (calls >= at) or calls < at
    assert everything(model, loss, data) == before


SPECTRA = {
    "zero": lambda rng, n: np.zeros(n),
    "repeated": lambda rng, n: rng.choice(rng.normal(size=max(1, n // rng.integers(1, 8))) * 3, n),
    "alike": lambda rng, n: np.full(n, rng.normal()),
    "clustered": lambda rng, n: rng.choice([1.0, 1.0001, 5.0, -3.0], n) + 1e-7 * rng.normal(size=n),
    "indefinite": lambda rng, n: rng.permutation(np.arange(n) - n // 2).astype(float),
    "low rank": lambda rng, n: np.where(rng.random(n) < 0.2, rng.normal(size=n) * 5, 0),
    "tiny": lambda rng, n: np.arange(1, n + 1) * 1e-18,
    "huge": lambda rng, n: np.arange(1, n + 1) * 1e16,
}


class Quadratic(nn.Module):
    """``½ wᵀ H w`` at 0."""

    def __init__(self, n, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n, dtype=dtype))

    def forward(self, hessian):
        return self.weight @ hessian @ self.weight / 2


@fuzz(200)
@given(
    st.sampled_from(sorted(SPECTRA)),
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(["value", "magnitude"]),
    st.integers(1, 6),
    st.integers(0, 3),
)
def test_eigenvalues_of_known_spectra(kind, n, seed, dtype, by, k, start):
    rng = np.random.default_rng(seed)
    values, k = SPECTRA[kind](rng, n), min(k, n)
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    hessian = torch.from_numpy((rotation * values) @ rotation.T).to(dtype)
    hessian = (hessian + hessian.T) / 2
    found = flatness.top_eigenvalues(
        Quadratic(n, dtype),
        BatchLoss(lambda model, batch: model(batch), count=lambda batch: 1),
        hessian,
        k,
        by=by,
        seed=start,
        max_iter=500,
        vectors=True,
    )
    exact = np.linalg.eigvalsh(hessian.double().numpy())
    scale = np.abs(exact).max()
    epsilon = torch.finfo(dtype).eps
    expected = np.sort(exact)[::-1][:k] if by == "value" else np.sort(np.abs(exact))[::-1][:k]
    given_values = np.array(found.values) if by == "value" else np.abs(found.values)
    assert found.converged and found.products <= 500
    np.testing.assert_allclose(given_values, expected, rtol=2e-3, atol=200 * epsilon * scale)
    vectors = found.vectors.double()
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(k).double(), rtol=0, atol=1e-5)
    true = (vectors @ hessian.double() - torch.tensor(found.values, dtype=torch.float64)[:, None] * vectors).norm(dim=1)
    np.testing.assert_allclose(found.residuals, true, rtol=1e-2, atol=10 * epsilon * scale * n**0.5)


@fuzz(60)
@given(st.integers(0, 2**32), st.integers(60, 150), st.integers(2, 5), st.integers(1, 6), st.sampled_from([None, 9]))
def test_repeated_eigenvalues_of_larger_operators(seed, n, copies, k, basis):
    """With restarts: the top eigenvalue several times, above a continuous rest."""
    rng = np.random.default_rng(seed)
    values = np.concatenate([np.full(copies, 3.0), rng.uniform(-1, 1.5, n - copies)])
    rotation = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = torch.from_numpy((rotation * values) @ rotation.T)
    begin = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # For the largest k, a basis of 9 has room for two new vectors per restart: little more than gradient ascent. The
    # k-th value and the next can be arbitrarily close, and then ascent takes about spread / residual products. The
    # spread is 2.5, and the search for further copies goes on to a residual of 1e-4 of a value around 1.3.
    max_iter = 2000 if basis is None else 20_000
    pairs = lanczos(lambda vector: matrix @ vector, begin, k, max_iter=max_iter, basis_size=basis)
    expected = np.sort(values)[::-1][:k]
    assert pairs.converged
    np.testing.assert_allclose(pairs.values, expected, rtol=2e-2)
    assert (np.array(pairs.values) > 2.99).sum() == min(k, copies)

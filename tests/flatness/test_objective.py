"""The mean loss over data: weights of batches, forms of data, other weights, and everything that can be wrong."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatwise import flatness
from flatwise.flatness import BatchLoss, FlatnessError, measuring

MSE = nn.MSELoss()


def linear(dtype=torch.float64):
    """A linear regression of 23 samples, whose loss, gradient and Hessian are known in closed form."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(23, 4, generator=generator, dtype=dtype)
    y = torch.randn(23, 1, generator=generator, dtype=dtype)
    model = nn.Linear(4, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 4, generator=generator))
    residual = x @ model.weight.detach().T - y
    return model, x, y, residual.square().mean().item(), 2 * (x.T @ residual).flatten() / 23, 2 * x.T @ x / 23


def forms(x, y):
    pairs = [(x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])]  # the last batch is smaller
    return {
        "one batch": (x, y),
        "one batch, a list": [x, y],
        "list": pairs,
        "tuple": tuple(pairs),
        "loader": DataLoader(TensorDataset(x, y), batch_size=10),
        "shuffling loader": DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True),
    }


@pytest.mark.parametrize("form", forms(torch.ones(23, 1), torch.ones(23, 1)))
def test_mean_over_samples_in_every_form_of_data(form):
    model, x, y, loss, gradient, hessian = linear()
    with measuring(model, MSE, forms(x, y)[form]) as objective:
        assert objective.samples is None
        vectors = torch.eye(4, dtype=torch.float64)
        for _ in range(2):  # at the first pass the number of samples is not known yet
            assert objective.loss() == pytest.approx(loss, rel=1e-12)
            assert objective.gradient()[0] == pytest.approx(loss, rel=1e-12)
            torch.testing.assert_close(objective.gradient()[1], gradient)
            torch.testing.assert_close(objective.hvp(vectors), hessian)
            torch.testing.assert_close(objective.hvp(vectors[2]), hessian[2])
        assert objective.samples == 23


def test_other_weights_and_back():
    model, x, y, loss, gradient, hessian = linear()
    with measuring(model, MSE, (x, y)) as objective:
        own = objective.vector()
        assert torch.equal(own, model.weight.detach().flatten())
        product = objective.hvp(own)
        elsewhere = own + 1
        expected = loss + (gradient.sum() + hessian.sum() / 2).item()  # a quadratic is its Taylor expansion
        assert objective.loss(elsewhere) == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(objective.gradient(elsewhere)[1], gradient + hessian.sum(1))
        torch.testing.assert_close(objective.hvp(own, elsewhere), product)
        assert objective.loss(own * math.inf) != objective.loss()
        assert objective.loss() == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(objective.hvp(own), product)


def test_max_batches_takes_the_first():
    model, x, y, *_ = linear()
    data = forms(x, y)["list"]
    expected = flatness.gradient_norm(model, MSE, data[:2])
    assert flatness.gradient_norm(model, MSE, data, max_batches=2) == expected
    assert flatness.gradient_norm(model, MSE, data, max_batches=99) == flatness.gradient_norm(model, MSE, data)


def test_a_shuffling_loader_gives_the_same_batches_at_every_pass():
    model, x, y, *_ = linear()
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    with measuring(model, MSE, loader, max_batches=2) as objective:
        assert len({objective.loss() for _ in range(5)}) == 1
    loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    with measuring(model, MSE, loader, max_batches=2) as objective:
        assert len({objective.loss() for _ in range(5)}) == 1


def test_dropout_masks_are_the_same_at_every_pass():
    model = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    data = [(torch.randn(6, 4), torch.randn(6, 1)), (torch.randn(6, 4), torch.randn(6, 1))]
    with measuring(model, MSE, data, mode="train") as objective:
        assert len({objective.loss() for _ in range(5)}) == 1
        dropped = objective.loss()
    with measuring(model, MSE, data) as objective:
        assert objective.loss() != dropped


def test_batch_norm_in_both_modes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)).double()
    x, y = torch.randn(30, 4).double(), torch.randn(30, 1).double()
    for mode in ("train", "eval"):
        with measuring(model, MSE, [(x, y)] * 2, mode=mode) as objective:
            measured = objective.loss()
            assert objective.loss() == measured
        expected = nn.Sequential(*model).train(mode == "train")
        assert measured == pytest.approx(MSE(expected(x), y).item(), rel=1e-12)
        model[1].reset_running_stats()


def test_frozen_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
    model[0].weight.requires_grad_(False)
    with measuring(model, MSE, (torch.randn(5, 4), torch.randn(5, 1))) as objective:
        assert list(objective.shapes) == ["0.bias", "1.weight", "1.bias"]
        assert objective.size == 7 == len(objective.gradient()[1])
        assert {k: v.shape for k, v in objective.split(objective.vector()).items()} == objective.shapes


def test_a_parameter_that_the_loss_does_not_depend_on_has_derivatives_of_0():
    model = nn.ModuleDict({"used": nn.Linear(4, 1), "unused": nn.Linear(2, 2)})
    loss = BatchLoss(lambda model, batch: model["used"](batch).square().mean())
    with measuring(model, loss, torch.randn(5, 4)) as objective:
        gradient = objective.split(objective.gradient()[1])
        product = objective.split(objective.hvp(torch.ones(objective.size)))
        assert gradient["used.weight"].any() and product["used.weight"].any()
        assert not gradient["unused.weight"].any() and not product["unused.weight"].any()


def test_a_linear_loss_has_no_curvature():
    model = nn.Linear(4, 1)
    with measuring(model, lambda output, target: output.mean(), (torch.randn(5, 4), torch.zeros(5))) as objective:
        assert not objective.hvp(torch.ones(5)).any()


def test_dtype():
    model, x, y, *_ = linear(torch.float32)
    exact = MSE(copy.deepcopy(model).double()(x.double()), y.double()).item()
    with measuring(model, MSE, (x, y), dtype=torch.float64) as objective:
        assert objective.vector().dtype == objective.gradient()[1].dtype == torch.float64
        assert objective.loss() == pytest.approx(exact, rel=1e-12)
    with measuring(model.bfloat16(), MSE, (x.bfloat16(), y.bfloat16())) as objective:
        assert objective.dtype == torch.float32  # sums are never in less
        assert objective.hvp(torch.ones(4)).dtype == torch.float32
    assert model.weight.dtype == torch.bfloat16


def test_a_loss_with_tensors_of_its_own_is_lent_too():
    model = nn.Linear(4, 3)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]))
    weight = loss.weight
    flatness.gradient_norm(model, loss, (torch.randn(5, 4), torch.randint(0, 3, (5,))), dtype=torch.float64)
    assert loss.weight is weight and weight.dtype == torch.float32


class Graph:
    """A batch as graph libraries have it: not a tensor, a dict or a pair, but it can be moved."""

    def __init__(self, x, graphs):
        self.x, self.graphs, self.moved = x, graphs, False

    def to(self, device):
        self.x, self.moved = self.x.to(device), True  # in place, as theirs
        return self


def test_batches_of_any_kind():
    model, x, y, loss, *_ = linear()
    by_key = BatchLoss(lambda model, batch: MSE(model(batch["x"]), batch["y"]))
    dicts = [{"x": x[:20], "y": y[:20]}, {"x": x[20:], "y": y[20:]}]
    for data in (dicts, {"x": x, "y": y}):
        with measuring(model, by_key, data) as objective:
            assert objective.loss() == pytest.approx(loss, rel=1e-12)

    def on_graph(model, batch):
        assert batch.moved
        return model(batch.x).mean()

    graphs = [Graph(x, 3), Graph(-x, 1)]
    with measuring(model, BatchLoss(on_graph, count=lambda b: b.graphs), graphs) as objective:
        assert objective.loss() == pytest.approx((model(x).mean() / 2).item(), rel=1e-12)
        assert objective.samples == 4
    assert not graphs[0].moved


def test_inputs_may_be_nested():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 1)

        def forward(self, inputs):
            return self.linear(inputs["a"]) + inputs["b"][0]

    x = torch.randn(6, 4)
    data = [({"a": x, "b": [x[:, :1]]}, torch.zeros(6, 1))]
    assert flatness.gradient_norm(Two(), MSE, data) > 0


# What can be wrong: one error each, and the model is as it was.

GOOD = (torch.ones(5, 4), torch.ones(5, 1))


def frozen():
    return nn.Linear(4, 1).requires_grad_(False)


class OneShot:
    """An iterable that is exhausted without saying so."""

    def __init__(self):
        self.left = [GOOD, GOOD]

    def __iter__(self):
        while self.left:
            yield self.left.pop()


class Broken:
    def __iter__(self):
        yield GOOD
        raise OSError("disk on fire")


class Noisy:
    """Batches that differ at every pass, from a source that cannot be replayed."""

    def __init__(self):
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        yield torch.ones(5, 4) * self.passes, torch.ones(5, 1)


BAD = {
    "empty list": (nn.Linear(4, 1), MSE, [], "the data are empty"),
    "empty loader": (nn.Linear(4, 1), MSE, DataLoader(TensorDataset(torch.ones(0, 4))), "the data are empty"),
    "no samples": (nn.Linear(4, 1), MSE, [(torch.ones(0, 4), torch.ones(0, 1))], "batch 0: it has no samples"),
    "generator": (nn.Linear(4, 1), MSE, (pair for pair in [GOOD]), "empty at the second pass"),
    "one-shot": (nn.Linear(4, 1), MSE, OneShot(), "the data change: the first pass had 2 batches, a later one has 0"),
    "no data": (nn.Linear(4, 1), MSE, 7, "must be a loader, a list of batches or one batch; got a int"),
    "broken data": (nn.Linear(4, 1), MSE, Broken(), "batch 1: the data failed: OSError: disk on fire"),
    "noisy data": (nn.Linear(4, 1), MSE, Noisy(), "the data change: batch 0 is another one than at the first pass"),
    "not a pair": (nn.Linear(4, 1), MSE, [torch.ones(5, 4)], "a batch must be a pair"),
    "a dict": (nn.Linear(4, 1), MSE, [{"x": GOOD[0]}], r"got a dict: for other batches give loss=BatchLoss"),
    "not countable": (
        nn.Linear(4, 1),
        MSE,
        [((GOOD[0], torch.ones(3)), GOOD[1])],
        r"first dimensions are \['3', '5'\]",
    ),
    "count fails": (
        nn.Linear(4, 1),
        BatchLoss(lambda m, b: m(b).mean(), count=lambda b: b.nodes),
        [GOOD[0]],
        "batch 0: it cannot be counted: AttributeError",
    ),
    "refused": (nn.Linear(4, 1), MSE, [GOOD, (torch.ones(5, 3), GOOD[1])], "batch 1: the model or the loss failed"),
    "loss not callable": (
        nn.Linear(4, 1),
        "mse",
        GOOD,
        r"loss must be loss\(output, target\) or a BatchLoss; got a str",
    ),
    "loss per sample": (nn.Linear(4, 1), nn.MSELoss(reduction="none"), GOOD, r"tensor of shape \(5, 1\)"),
    "loss is a number": (nn.Linear(4, 1), lambda output, target: 1.0, GOOD, "batch 0: the loss must be .* got a float"),
    "loss counts": (nn.Linear(4, 1), lambda o, t: (o > 0).sum(), GOOD, "got a torch.int64 tensor"),
    "loss is NaN": (nn.Linear(4, 1), lambda o, t: o.mean() * math.nan, GOOD, "batch 0: the loss is nan"),
    "loss is inf": (nn.Linear(4, 1), lambda o, t: o.mean() + math.inf, GOOD, "batch 0: the loss is inf"),
    "loss detached": (nn.Linear(4, 1), lambda o, t: o.mean().detach(), GOOD, "does not depend on the model's param"),
    "derivative is NaN": (
        nn.Linear(4, 1),
        lambda o, t: (o - o).square().sum().sqrt(),
        GOOD,
        "a derivative of it is not",
    ),
    "frozen": (frozen(), MSE, GOOD, "no parameter that requires a gradient"),
    "no parameters": (nn.ReLU(), MSE, GOOD, "no parameter that requires a gradient"),
    "complex": (nn.Linear(4, 1, dtype=torch.complex64), MSE, GOOD, "only real parameters"),
}


@pytest.mark.parametrize(("model", "loss", "data", "message"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("function", [flatness.top_eigenvalues, flatness.trace], ids=lambda f: f.__name__)
def test_bad_input(function, model, loss, data, message, monkeypatch):
    if isinstance(data, (OneShot, Noisy)):
        data = type(data)()
    # One vector at a time, so that there is a second pass.
    monkeypatch.setattr("flatwise.flatness.curvature.BLOCK_VECTORS", 1)
    state = {name: (id(t), t.detach().clone()) for name, t in model.state_dict(keep_vars=True).items()}
    generator = torch.get_rng_state()
    with pytest.raises(FlatnessError, match=message) as caught:
        function(model, loss, data)
    assert "\n" not in str(caught.value)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == state[name][0]
        assert torch.equal(tensor, state[name][1])


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_bad_limit(limit):
    with pytest.raises(FlatnessError, match="max_batches must be a whole number, 1 or more"):
        flatness.gradient_norm(nn.Linear(4, 1), MSE, GOOD, max_batches=limit)


@pytest.mark.parametrize("dtype", [torch.int64, "float64"])
def test_bad_dtype(dtype):
    with pytest.raises(FlatnessError, match="dtype must be a floating-point dtype"):
        flatness.gradient_norm(nn.Linear(4, 1), MSE, GOOD, dtype=dtype)


def test_bad_vectors():
    for vectors in (torch.ones(4), torch.ones(2, 6), torch.tensor(1.0)):
        with pytest.raises(FlatnessError, match=r"ha(s|ve) shape"):
            flatness.hvp(nn.Linear(4, 1), MSE, GOOD, vectors)
    with measuring(nn.Linear(4, 1), MSE, GOOD) as objective, pytest.raises(FlatnessError, match=r"has shape \(5,\)"):
        objective.loss(torch.ones(4))


def test_a_function_without_a_second_derivative_is_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * 2

    with pytest.raises(FlatnessError, match=r"cannot be differentiated twice: .* once_differentiable"):
        flatness.top_eigenvalues(nn.Linear(4, 1), lambda o, t: MSE(Once.apply(o), t), GOOD)


def test_a_loss_that_holds_parameters_from_before_is_refused():
    model = nn.Linear(4, 1)
    before = list(model.parameters())

    def decay(parameters):
        return sum(p.square().sum() for p in parameters)

    with pytest.raises(FlatnessError, match="uses parameters that were taken from the model before"):
        flatness.gradient_norm(model, lambda o, t: MSE(o, t) + decay(before), GOOD)
    loss = BatchLoss(lambda model, batch: MSE(model(batch[0]), batch[1]) + decay(model.parameters()))
    assert flatness.gradient_norm(model, loss, GOOD) > 0

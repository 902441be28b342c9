"""Every function that moves weights or inputs gives the model, the loss and the random states back, bit for bit."""

import pytest
import torch
from test_guard import everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatwise import flatness

CE = nn.CrossEntropyLoss()


class Busy(nn.Module):
    """A model that changes itself whenever it runs."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.frozen_norm = nn.BatchNorm1d(5).eval()
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(5, 3)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.cache = None

    def forward(self, x):
        self.cache = self.frozen_norm(self.dropout(self.norm(self.hidden(x)).relu()))
        return self.head(self.cache) * self.frozen


def busy(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Busy().train()
        model.frozen_norm.eval()
        model.head.weight.grad = torch.randn(3, 5)
    return model


def loader():
    generator = torch.Generator().manual_seed(9)
    data = TensorDataset(torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator))
    return DataLoader(data, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(1))


def other_end(model):
    return [p.detach() + 0.1 for p in model.parameters() if p.requires_grad]


FUNCTIONS = {
    "weight_path": lambda m, loss, data, **o: flatness.weight_path(
        m, loss, data, other_end(m), distances=[0, 1, 2], **o
    ),
    "random_weight_paths": lambda m, loss, data, **o: flatness.random_weight_paths(
        m, loss, data, normalize="filter", directions=2, distances=[1, 2], **o
    ),
    "fooling_path": lambda m, loss, data, **o: flatness.fooling_path(m, loss, data, distances=[1, 2], **o),
    "loss_along": lambda m, loss, data, **o: flatness.loss_along(m, loss, data, [other_end(m)], [1, 2], **o),
    "input_noise_paths": lambda m, loss, data, **o: flatness.input_noise_paths(
        m, loss, data, directions=2, distances=[1, 2], **o
    ),
    "validation_paths": lambda m, loss, data, **o: flatness.validation_paths(
        m, loss, data, loader(), nearest=2, trials=2, fractions=[0.5, 1], **o
    ),
    "average_slope": lambda m, loss, data, **o: flatness.average_slope(m, loss, data, 9.0, directions=2, **o),
    "loss_surface": lambda m, loss, data, **o: flatness.loss_surface(m, loss, data, xs=[0, 1], ys=[1], **o),
    "loss_surface, eigenvectors": lambda m, loss, data, **o: flatness.loss_surface(
        m, loss, data, "eigenvectors", xs=[0, 1], ys=[1], **o
    ),
    "plane_surface": lambda m, loss, data, **o: flatness.plane_surface(
        {"a": m, "b": busy(1), "c": busy(2)}, loss, data, xs=[0, 1], ys=[1], **o
    ),
}


def around(model, data):
    """All that must not change: the model, and the loader's own generator."""
    return everything(model), data.generator.get_state().tolist()


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS)
def function(request):
    return request.param


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
def test_untouched(function, mode):
    data, model = loader(), busy()
    model.eval()(torch.randn(2, 6))  # so that there is a cache, of a graph that lives on
    model.train()
    torch.manual_seed(3)
    before, cache = around(model, data), model.cache
    dtype = torch.float64 if mode == "train" else None  # else the two eigenvectors are slow to converge
    function(model, CE, data, mode=mode, dtype=dtype)
    assert around(model, data) == before
    assert model.cache is cache


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")], ids=["interrupt", "error"])
@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_untouched_when_the_loss_raises(function, error, at):
    data, model = loader(), busy()
    torch.manual_seed(3)
    before = around(model, data)
    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += torch.is_grad_enabled()  # and not the halves of a batch
        if calls == at:
            model.head.weight.data.zero_()  # and it does harm before
            raise error
        return CE(output, target)

    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else flatness.FlatnessError
    with pytest.raises(expected) as caught:
        function(model, loss, data, mode="train")
    # The exception is alive, with all frames that it went through: the model must be back already.
    assert around(model, data) == before
    if expected is flatness.FlatnessError:
        assert caught.value.__cause__ is error


def test_untouched_when_the_user_interrupts_between_two_losses(function):
    data, model = loader(), busy()
    torch.manual_seed(3)
    before = around(model, data)

    def progress(done, most):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        function(model, CE, data, dtype=torch.float64, progress=progress)
    assert around(model, data) == before


def test_training_goes_on_as_if_nothing_had_been_measured(function):
    def train(measure):
        model, data = busy(), loader()
        torch.manual_seed(3)
        optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1, momentum=0.9)
        for x, y in data:
            optimizer.zero_grad()
            output = model(x)
            if measure:  # between forward and backward, the most awkward moment
                function(model, CE, data, dtype=torch.float64)
            CE(output, y).backward()
            optimizer.step()
        return everything(model)["bits"], torch.get_rng_state().tolist()

    assert train(True) == train(False)

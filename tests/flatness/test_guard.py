"""A model that is measured comes back as it was: tensors, bits, gradients, modes, attributes, random states."""

import random
import types

import numpy as np
import pytest
import torch
from torch import nn

from flatwise import flatness
from flatwise.flatness.guard import RandomState, untouched


class Busy(nn.Module):
    """A model that changes itself whenever it runs, in every way that modules do."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6, max_norm=0.1)  # writes its weights in forward
        self.norm = nn.BatchNorm1d(6)
        self.frozen_norm = nn.BatchNorm1d(6).eval()
        self.rnn = nn.LSTM(6, 5, batch_first=True)
        self.head = nn.Linear(5, 3)
        self.tied = nn.Linear(5, 3)
        self.tied.weight = self.head.weight
        self.head.bias.requires_grad_(False)
        self.dropout = nn.Dropout(0.3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.cache = None

    def forward(self, index):
        self.calls += 1
        x = self.norm(self.embedding(index).flatten(0, 1))
        x = self.frozen_norm(x)
        self.cache = x
        self.extra = random.random() + np.random.rand()
        out = self.rnn(self.dropout(x).unflatten(0, index.shape))[0][:, -1]
        return self.head(out) + self.tied(out)


def busy():
    torch.manual_seed(0)
    model = Busy().train()
    model.frozen_norm.eval()
    model.head.weight.grad = torch.randn(3, 5)
    model.embedding.weight.register_hook(lambda gradient: gradient * 0)  # what clips or zeroes in training
    index, target = torch.randint(0, 7, (8, 4)), torch.randint(0, 3, (8,))
    return model, [(index[:5], target[:5]), (index[5:], target[5:])]


def everything(model):
    """All that must not change: identities, bits, and what is bound where."""
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    grads = {name: p.grad for name, p in model.named_parameters()}
    return {
        "identity": {name: id(tensor) for name, tensor in tensors.items()},
        "bits": {name: tensor.detach().clone().numpy().tobytes() for name, tensor in tensors.items()},
        "versions": {name: tensor._version for name, tensor in tensors.items()},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors.items()},
        "grad": {name: None if g is None else (id(g), g.numpy().tobytes()) for name, g in grads.items()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "flat weights": [id(w) for w in model.rnn._flat_weights] if hasattr(model, "rnn") else None,
        "random": (
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            str(np.random.get_state()),
        ),
    }


CE = nn.CrossEntropyLoss()
FUNCTIONS = {
    "gradient_norm": lambda model, loss, data, **o: flatness.gradient_norm(model, loss, data, **o),
    "hvp": lambda model, loss, data, **o: flatness.hvp(
        model, loss, data, torch.ones(sum(p.numel() for p in model.parameters() if p.requires_grad)), **o
    ),
    "top_eigenvalues": lambda model, loss, data, **o: flatness.top_eigenvalues(model, loss, data, 2, max_iter=5, **o),
    "trace": lambda model, loss, data, **o: flatness.trace(model, loss, data, max_probes=3, **o),
    "diagonal": lambda model, loss, data, **o: flatness.diagonal(model, loss, data, max_probes=3, **o),
}
FUNCTIONS = [pytest.param(function, id=name) for name, function in FUNCTIONS.items()]


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_untouched(function, mode):
    model, data = busy()
    before = everything(model)
    function(model, CE, data, mode=mode)
    assert everything(model) == before


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no")], ids=["interrupt", "error"])
@pytest.mark.parametrize("at", [1, 2])
def test_untouched_when_the_loss_raises(function, error, at):
    model, data = busy()
    before = everything(model)
    calls = 0

    def loss(output, target):
        nonlocal calls
        calls += torch.is_grad_enabled()  # and not the halves of a batch
        model.head.weight.data.zero_()  # and it did harm before
        if calls == at:
            raise error
        return CE(output, target)

    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else flatness.FlatnessError
    with pytest.raises(expected) as caught:
        function(model, loss, data, mode="train")
    if expected is flatness.FlatnessError:
        assert caught.value.__cause__ is error
        assert f"batch {at - 1}" in str(caught.value)
    assert everything(model) == before


def test_a_loss_that_calls_backward_leaves_the_gradients():
    model, data = busy()
    before = everything(model)

    def loss(output, target):
        CE(output, target).backward(retain_graph=True)
        return CE(output, target)

    flatness.gradient_norm(model, loss, data)
    assert everything(model) == before


def test_training_goes_on_as_if_nothing_had_been_measured():
    def train(measure):
        model, data = busy()
        model.embedding.max_norm = None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for index, target in data * 3:
            optimizer.zero_grad()
            output = model(index)
            if measure:  # between forward and backward, the most awkward moment
                flatness.top_eigenvalues(model, CE, data, max_iter=3, mode="train")
            CE(output, target).backward()
            optimizer.step()
        return everything(model)["bits"]

    assert train(True) == train(False)


def test_the_loaders_own_generator_comes_back():
    model = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(torch.randn(9, 3), torch.randn(9, 1))
    loader = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True, generator=generator)
    before = generator.get_state()
    flatness.trace(model, nn.MSELoss(), loader, max_probes=2)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("eval", (False, False)), ("train", (True, True)), ("keep", (True, False))],
)
def test_modes(mode, expected):
    model, _ = busy()
    with untouched(model, mode=mode):
        assert (model.norm.training, model.frozen_norm.training) == expected


def test_tied_parameters_stay_tied_and_marks_stay():
    model, _ = busy()
    model.head.weight.mark = "mine"
    own = model.head.weight
    with untouched(model, dtype=torch.float64):
        assert model.head.weight is model.tied.weight is not own
        assert model.head.weight.dtype == torch.float64
        assert model.head.weight.mark == "mine"
        assert model.calls.dtype == torch.int64
    assert model.head.weight is own


def test_a_measurement_within_a_measurement():
    model, data = busy()
    before = everything(model)
    with untouched(model):
        inner = everything(model)
        flatness.gradient_norm(model, CE, data)
        assert everything(model) == inner
    assert everything(model) == before


def test_hooks_on_parameters_do_not_act():
    model = nn.Linear(3, 1, bias=False)
    data = (torch.randn(5, 3), torch.randn(5, 1))
    plain = flatness.gradient_norm(model, nn.MSELoss(), data)
    model.weight.register_hook(lambda gradient: gradient * 0)
    assert flatness.gradient_norm(model, nn.MSELoss(), data) == plain > 0


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(surroundings):
    model, data = busy()
    expected = flatness.gradient_norm(model, CE, data)
    with surroundings():
        assert flatness.gradient_norm(model, CE, data) == expected


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: x, "must be a torch.nn.Module; got a function"),
        (nn.Sequential(nn.LazyLinear(3)), "parameter '0.weight' has no shape yet"),
    ],
)
def test_models_that_cannot_be_lent(model, message):
    with pytest.raises(flatness.FlatnessError, match=message):
        flatness.gradient_norm(model, nn.MSELoss(), (torch.ones(2, 3), torch.ones(2, 3)))


def test_unknown_mode():
    with pytest.raises(flatness.FlatnessError, match="mode must be 'eval', 'train' or 'keep'; got 'test'"):
        flatness.gradient_norm(nn.Linear(3, 3), nn.MSELoss(), (torch.ones(2, 3), torch.ones(2, 3)), mode="test")


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_random_state_of_a_device_is_kept(kind, monkeypatch):
    """Of every device in use; Apple's has one generator, and its functions take no device."""
    states = {"cuda:0": 3, "cuda:1": 5, "mps": 7}
    module = types.SimpleNamespace(
        get_rng_state=lambda device=kind: states[str(device)],
        set_rng_state=lambda state, device=kind: states.update({str(device): state}),
    )
    monkeypatch.setattr(torch, "get_device_module", {kind: module}.__getitem__)
    devices = ["cpu", "meta", *(name for name in states if name.startswith(kind))]
    kept = RandomState(map(torch.device, devices))
    before = dict(states)
    states.update(dict.fromkeys(devices[2:], 0))
    kept.restore()
    assert states == before

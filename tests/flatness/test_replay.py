"""Every pass sees the same data, or there is an error: at the model's own weights and away from them."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from flatwise import flatness
from flatwise.flatness import FlatnessError
from flatwise.flatness._data import checksum

MSE = nn.MSELoss()


def pairs(samples=23):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 3, generator=generator), torch.randn(samples, 1, generator=generator)


class EpochSampler(Sampler):
    """Another order at every pass, from an epoch of its own."""

    def __init__(self, length):
        self.length, self.epoch = length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        self.epoch += 1
        yield from np.random.default_rng(self.epoch).permutation(self.length).tolist()


class Augmented(Dataset):
    """Noise from a generator that nobody else can reach."""

    def __init__(self, x, y):
        self.x, self.y, self._random = x, y, np.random.default_rng(0)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index] + float(self._random.normal()), self.y[index]


class Stream(IterableDataset):
    """A stream that goes on where it was left."""

    def __init__(self, x, y):
        self._items = itertools.cycle(zip(x, y, strict=True))

    def __iter__(self):
        return itertools.islice(self._items, 10)


class Restarting(IterableDataset):
    def __init__(self, x, y):
        self._items = list(zip(x, y, strict=True))

    def __iter__(self):
        return iter(self._items)


class Exhausted:
    def __init__(self, batches):
        self._left = iter(batches)

    def __iter__(self):
        return self._left


class Growing:
    def __init__(self, batch):
        self._batch, self._passes = batch, 0

    def __iter__(self):
        self._passes += 1
        return iter([self._batch] * self._passes)


x, y = pairs()
CHANGING = {
    "sampler with an epoch of its own": lambda: DataLoader(TensorDataset(x, y), batch_size=5, sampler=EpochSampler(23)),
    "augmentation": lambda: DataLoader(Augmented(x, y), batch_size=5),
    "stream": lambda: DataLoader(Stream(x, y), batch_size=5),
    "exhausted": lambda: Exhausted([(x, y), (x, y)]),
    "growing": lambda: Growing((x, y)),
}
STEADY = {
    "list": lambda: [(x[:10], y[:10]), (x[10:], y[10:])],
    "shuffled": lambda: DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True),
    "generator": lambda: DataLoader(
        TensorDataset(x, y), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "iterable": lambda: DataLoader(Restarting(x, y), batch_size=5),
}
MEASURES = {
    "random_weight_paths": lambda *of: flatness.random_weight_paths(*of, directions=2, distances=[1, 2]),
    "loss_surface": lambda *of: flatness.loss_surface(*of, xs=[0, 1], ys=[0, 1]),
    "weight_path": lambda m, *of: flatness.weight_path(m, *of, [p + 1 for p in m.parameters()], distances=[1]),
    "fooling_path": lambda *of: flatness.fooling_path(*of, distances=[0.1]),
    "average_slope": lambda *of: flatness.average_slope(*of, 100.0, directions=1),
    "input_noise_paths": lambda *of: flatness.input_noise_paths(*of, directions=1, distances=[1]),
    "validation_paths": lambda *of: flatness.validation_paths(*of, torch.randn(12, 3), trials=1, fractions=[1]),
    "top_eigenvalues": lambda *of: flatness.top_eigenvalues(*of),
    "trace": lambda *of: flatness.trace(*of, max_probes=20),
}


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("data", CHANGING.values(), ids=CHANGING)
def test_data_that_change_are_an_error_everywhere(measure, data):
    torch.manual_seed(2)
    with pytest.raises(FlatnessError, match=r"the data change: .* give list") as caught:
        measure(model(), MSE, data())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
@pytest.mark.parametrize("data", STEADY.values(), ids=STEADY)
def test_data_that_can_be_replayed_are_none(measure, data):
    torch.manual_seed(2)
    measure(model(), MSE, data())


def test_several_models_see_the_same_data():
    """Each model's one pass is the first of its own: only the other's can tell."""
    models = {"a": model(), "b": model()}
    data = CHANGING["sampler with an epoch of its own"]()
    with pytest.raises(FlatnessError, match="model 'b', data 'data': the data change"):
        flatness.loss_along(models, MSE, data, [torch.ones(21)], [0.0], max_batches=1)
    with pytest.raises(FlatnessError, match="the data change"):
        flatness.validation_paths(models, MSE, data, torch.randn(12, 3), fractions=[0], max_batches=1)


def test_a_model_that_writes_to_its_inputs():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, inputs):
            return self.linear(inputs.add_(1))

    inputs = torch.zeros(5, 3)
    for data in ((inputs, torch.zeros(5, 1)), [(inputs, torch.zeros(5, 1))]):
        with pytest.raises(FlatnessError, match=r"the data change: batch 0 .* may write to its inputs"):
            flatness.random_weight_paths(Writes(), MSE, data)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (4, 7, 1001), (2, 1 << 14)], ids=str)
def test_the_checksum_knows_every_bit_and_place(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype)
    first = checksum((tensor, "label"))
    assert checksum((tensor.clone(), "label")) == first
    if tensor.ndim > 1:  # however it lies in memory
        assert checksum((tensor.mT.contiguous().mT, "label")) == first
    seen = {first, checksum([tensor, "label"]), checksum((tensor, "other")), checksum({"a": tensor})}
    places = range(tensor.numel()) if tensor.numel() < 20 else (0, 1, tensor.numel() // 2, tensor.numel() - 1)
    for place in places:
        changed = tensor.clone()
        changed.view(-1)[place] = 1 - changed.view(-1)[place].to(torch.float32) if dtype != torch.complex64 else 3
        seen.add(checksum((changed, "label")))
    assert len(seen) == 4 + len(places)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
def test_the_checksum_of_other_things():
    class Graph:
        def __init__(self, x, count):
            self.x, self.count, self.own = x, count, self

    a, b = torch.arange(6.0), torch.arange(6.0).flip(0)
    assert checksum(Graph(a, 1)) == checksum(Graph(a.clone(), 2)) != checksum(Graph(b, 1))
    assert checksum(a.numpy()) == checksum(a.clone().numpy()) != checksum(b.numpy())
    assert checksum({"a": [1, 2]}) == checksum({"a": [1, 2]}) != checksum({"a": [2, 1]})
    assert checksum(a.to_sparse()) != checksum(b.to_sparse())
    assert checksum(torch.eye(3).to_sparse_csr()) == checksum(torch.eye(3).to_sparse_csr())
    assert checksum(torch.empty(3, device="meta")) != checksum(torch.empty(4, device="meta"))
    assert checksum(a[1:5]) == checksum(a[1:5].clone()) and checksum(object()) == checksum(object())
    assert checksum(copy.deepcopy(Graph(a, 1))) == checksum(Graph(a, 1))

"""A small model with its exact Hessian from torch.func, in float64."""

import copy
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F


def classifier():
    """An MLP that was trained a little, 317 parameters and 10 that are frozen, and 60 samples of 4 classes."""
    generator = torch.Generator().manual_seed(5)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(5)
        model = nn.Sequential(nn.Linear(10, 13), nn.Tanh(), nn.Linear(13, 10), nn.GELU(), nn.Linear(10, 4))
    model[2].bias.requires_grad_(False)
    x = torch.randn(60, 10, generator=generator)
    y = torch.randint(0, 4, (60,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(30):  # at the start as many directions bend down as up, and the trace says nothing
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, x, y


@lru_cache
def exact_hessian():
    """The Hessian of the mean cross-entropy by the parameters that require a gradient, shape ``(size, size)``."""
    model, x, y = classifier()
    model, x = copy.deepcopy(model).double(), x.double()
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    flat = torch.cat([p.flatten() for p in parameters.values()])

    def loss(vector):
        parts = torch.split(vector, [p.numel() for p in parameters.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    # torch.func.hessian, in reverse mode twice: its forward mode scripts functions, which torch itself deprecates.
    return torch.func.jacrev(torch.func.jacrev(loss))(flat)


def ragged(x, y):
    """Three batches, the last one smaller."""
    return [(x[:25], y[:25]), (x[25:50], y[25:50]), (x[50:], y[50:])]

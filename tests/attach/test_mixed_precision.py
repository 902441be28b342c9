"""Autocast, GradScaler and 16-bit parameters, on the CPU or the device that ``FLATWISE_TEST_DEVICE`` names.

The oracle is a plain twin that sees the same parameters and gradients: each step of the perturbed optimizer must be
``old + f · (new − old)`` with the factors that the handle tells.
"""

import copy

import pytest
import torch
from torch import nn

import flatwise
from devices import DEVICE

METHODS = {
    "leap": flatwise.leap(0.3),
    "lr_dropout": flatwise.lr_dropout(0.5),
    "ralr": flatwise.ralr(p=1.0),
    "leap and ralr": [flatwise.leap(0.3), flatwise.ralr(p=1.0)],
}
OPTIMIZERS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "AdamW": {"lr": 0.01, "eps": 1e-4}}  # eps: 1e-8 is 0 in float16
WAYS = ("perturb", "flatwise.optim")
LOW = (torch.bfloat16, torch.float16)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4)).to(DEVICE, dtype)


def batch(step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=generator).to(DEVICE, dtype), torch.arange(16, device=DEVICE) % 4


def make(way, name, model, method):
    """The optimizer of one of the two ways to have the noise, and its handle."""
    if way == "flatwise.optim":
        noise = {"perturbation": METHODS[method], "seed": 3, "steps_per_epoch": 2}
        optimizer = getattr(flatwise.optim, name)(model.parameters(), **OPTIMIZERS[name], **noise)
        return optimizer, optimizer.handle
    optimizer = getattr(torch.optim, name)(model.parameters(), **OPTIMIZERS[name])
    return optimizer, flatwise.perturb(optimizer, METHODS[method], seed=3, steps_per_epoch=2)


class Twin:
    """A plain optimizer on copies of the parameters, stepped beside the perturbed one."""

    def __init__(self, name, model):
        self.model = copy.deepcopy(model)
        self.optimizer = getattr(torch.optim, name)(self.model.parameters(), **OPTIMIZERS[name])

    @torch.no_grad()
    def step(self, model):
        """Steps from the perturbed model's parameters, with its gradients; returns each old value and plain update."""
        moves = []
        for own, other in zip(self.model.parameters(), model.parameters(), strict=True):
            own.copy_(other)
            own.grad = other.grad.clone()
        before = [p.detach().double().clone() for p in self.model.parameters()]
        self.optimizer.step()
        for old, own in zip(before, self.model.parameters(), strict=True):
            moves.append((old, own.detach().double() - old))
        return moves


def agree(model, moves, factors, rtol, atol):
    for parameter, (old, move), factor in zip(model.parameters(), moves, factors, strict=True):
        expected = old + factor.to(DEVICE).double() * move
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=rtol, atol=atol)
        still = (factor.to(DEVICE) == 0).expand_as(parameter)
        assert torch.equal(parameter.detach()[still].double(), old[still])


# The combinations that the kernels do not fuse are warned about, and are tested as well.
MAY_FALL_BACK = pytest.mark.filterwarnings("ignore:.* runs torch's own step:UserWarning")


@MAY_FALL_BACK
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_under_autocast_and_a_scaler_is_the_plain_step_with_the_factors(name, way, method, dtype):
    model = network()
    optimizer, handle = make(way, name, model, method)
    twin = Twin(name, model)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=64.0, enabled=dtype == torch.float16)
    for step in range(3):
        inputs, labels = batch(step)
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype):
            loss = nn.functional.cross_entropy(model(inputs), labels)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        factors = [handle.factor(step, parameter) for parameter in model.parameters()]
        moves = twin.step(model)
        scaler.step(optimizer)
        scaler.update()
        agree(model, moves, factors, rtol=1e-5, atol=1e-6)
    assert handle.step == 3


@MAY_FALL_BACK
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_moves_nothing_and_uses_up_no_noise(name, way, method):
    model, unbroken = network(), network()
    optimizer, handle = make(way, name, model, method)
    other, _ = make(way, name, unbroken, method)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=64.0)
    for step in range(3):
        inputs, labels = batch(step)
        if step == 1:  # a gradient that overflows, once
            optimizer.zero_grad()
            scaler.scale(nn.functional.cross_entropy(model(inputs), labels) * torch.inf).backward()
            before = [parameter.detach().clone() for parameter in model.parameters()]
            scaler.step(optimizer)
            scaler.update()
            assert scaler.get_scale() == 32.0
            assert all(map(torch.equal, before, model.parameters()))
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(inputs), labels)).backward()
        scaler.step(optimizer)
        scaler.update()
        other.zero_grad()
        nn.functional.cross_entropy(unbroken(inputs), labels).backward()
        other.step()
    assert handle.step == 3
    for one, two in zip(model.parameters(), unbroken.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@MAY_FALL_BACK
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_of_16_bits(name, way, method, dtype):
    """The generic path scales an update that torch has rounded; the fused one rounds once: both within a few ulp."""
    model = network(dtype)
    optimizer, handle = make(way, name, model, method)
    twin = Twin(name, model)
    unit = torch.finfo(dtype).eps
    inputs, labels = batch(0, dtype)
    nn.functional.cross_entropy(model(inputs).float(), labels).backward()
    factors = [handle.factor(0, parameter) for parameter in model.parameters()]
    moves = twin.step(model)
    optimizer.step()
    largest = max(float(factor.abs().max()) for factor in factors)
    agree(model, moves, factors, rtol=2 * unit * largest, atol=2 * unit * largest * 0.1)

"""The fused optimizers under torch's GradScaler, whose skipped steps must not be steps of the noise."""

import pytest
import torch

import flatwise
from flatwise import optim

pytest.importorskip("numba")

LEAP = flatwise.leap(0.3)
OPTIMIZERS = {"SGD": {"momentum": 0.9}, "Adam": {}, "AdamW": {}}


def parameter():
    return torch.linspace(-1, 1, 1001).requires_grad_()


def make(name, param, **options):
    return getattr(optim, name)([param], lr=0.1, perturbation=LEAP, seed=4, **OPTIMIZERS[name], **options)


def loss(param, step):
    return (torch.sin(param + step) * param).sum()


def scaled(optimizer, param, scaler, step, infinite=False):
    optimizer.zero_grad()
    scaler.scale(loss(param, step) * (float("inf") if infinite else 1.0)).backward()
    scaler.step(optimizer)
    scaler.update()


def plain(name, steps):
    param = parameter()
    optimizer = make(name, param)
    for step in steps:
        optimizer.zero_grad()
        loss(param, step).backward()
        optimizer.step()
    return param


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_scaler_skips_is_none_of_the_noise(name):
    param = parameter()
    optimizer = make(name, param)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # a power of two: exact
    scaled(optimizer, param, scaler, 0)
    assert optimizer.handle.step == 1
    before, factor = param.detach().clone(), optimizer.handle.factor(parameter=param)
    scaled(optimizer, param, scaler, 1, infinite=True)
    assert scaler.get_scale() == 4.0  # it did see the infinity
    assert torch.equal(param, before)
    assert optimizer.handle.step == 1
    assert torch.equal(optimizer.handle.factor(parameter=param), factor)
    scaled(optimizer, param, scaler, 2)
    assert optimizer.handle.step == 2
    assert optimizer.fallback is None
    assert torch.equal(param, plain(name, [0, 2]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_fused_the_scaler_leaves_its_work_to_torch_and_we_say_so(name):
    param = parameter()
    optimizer = make(name, param, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with pytest.warns(UserWarning, match="use fused=None"):
        scaled(optimizer, param, scaler, 0)
    assert "GradScaler" in optimizer.fallback
    before = param.detach().clone()
    scaled(optimizer, param, scaler, 1, infinite=True)
    assert scaler.get_scale() == 4.0
    assert torch.equal(param, before)
    assert optimizer.handle.step == 2  # torch calls a step that changes nothing; the docs say that it counts

    # The same update from the same factors, but rounded before it is scaled. Only the first step: noise has gone on.
    once = parameter()
    scaled(make(name, once), once, torch.amp.GradScaler("cpu", init_scale=8.0), 0)
    torch.testing.assert_close(before, once.detach(), rtol=1e-6, atol=1e-6)


def test_without_a_scaler_fused_is_fused():
    param = parameter()
    optimizer = make("SGD", param, fused=True)
    loss(param, 0).backward()
    optimizer.step()
    assert optimizer.fallback is None
    assert torch.equal(param, plain("SGD", [0]))


def test_autocast_gradients_reach_the_fused_step():
    """A bfloat16 forward pass under autocast, float32 parameters and gradients: the usual mixed precision."""
    weight = torch.linspace(-1, 1, 64).view(8, 8).requires_grad_()
    optimizer = optim.SGD([weight], lr=0.1, perturbation=LEAP, seed=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.ones(2, 8) @ weight
    assert out.dtype == torch.bfloat16
    scaler.scale(out.float().square().sum()).backward()
    before = weight.detach().clone()
    factor = optimizer.handle.factor(parameter=weight)
    gradient = weight.grad / 8
    scaler.step(optimizer)
    assert optimizer.fallback is None
    torch.testing.assert_close(weight.detach(), before - 0.1 * factor * gradient, rtol=1e-6, atol=1e-6)

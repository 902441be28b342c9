"""CUDA graphs: a perturbed step refuses to be captured, and a captured forward and backward pass trains as usual.

Without a CUDA device torch is told that it is capturing; with one it does capture.
"""

import pytest
import torch
from torch import nn

import flatwise
from devices import DEVICE

METHODS = {
    "leap": flatwise.leap(0.3),
    "ralr": flatwise.ralr(p=1.0),
    "leap and ralr": [flatwise.leap(0.3), flatwise.ralr(p=1.0)],
}
# capturable: without it torch refuses Adam's step itself.
OPTIMIZERS = {"SGD": {"lr": 0.1, "momentum": 0.9}, "Adam": {"lr": 0.01, "capturable": True}}
WAYS = ("perturb", "flatwise.optim")

on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a CUDA device named by FLATWISE_TEST_DEVICE")


def make(way, name, params, method):
    if way == "flatwise.optim":
        noise = {"perturbation": METHODS[method], "seed": 3, "steps_per_epoch": 2}
        return getattr(flatwise.optim, name)(params, **OPTIMIZERS[name], **noise)
    optimizer = getattr(torch.optim, name)(params, **OPTIMIZERS[name])
    flatwise.perturb(optimizer, METHODS[method], seed=3, steps_per_epoch=2)
    return optimizer


def parameters():
    params = [nn.Parameter(torch.linspace(-1, 1, 12).view(3, 4).to(DEVICE)), nn.Parameter(torch.ones(3).to(DEVICE))]
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    return params


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_that_is_told_it_is_captured_is_refused_and_changes_nothing(way, method, monkeypatch):
    params = parameters()
    optimizer = make(way, "SGD", params, method)
    optimizer.step()
    before = [param.detach().clone() for param in params]
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_initialized", lambda: True)
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        with pytest.raises(RuntimeError, match="step outside the graph"):
            optimizer.step()
    assert all(map(torch.equal, before, params))
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.step()  # and it goes on
    assert not any(map(torch.equal, before, params))


@on_gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_a_captured_step_is_refused(way, method, name):
    params = parameters()
    optimizer = make(way, name, params, method)
    for _ in range(2):
        optimizer.step()
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match="step outside the graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    assert all(map(torch.equal, before, params))
    optimizer.step()


@on_gpu
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("way", WAYS)
def test_a_step_outside_the_graph_trains_as_without_one(way, name):
    """The forward and backward passes are captured, as the error advises."""

    def run(captured):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).to(DEVICE)
        optimizer = make(way, name, model.parameters(), "leap and ralr")
        inputs = torch.linspace(-1, 1, 32).view(4, 8).to(DEVICE)

        def passes():
            model(inputs).square().mean().backward()

        if captured:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    optimizer.zero_grad(set_to_none=True)
                    passes()
            torch.cuda.current_stream().wait_stream(side)
            optimizer.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                passes()
        for _ in range(4):
            if captured:
                for parameter in model.parameters():
                    parameter.grad.zero_()
                graph.replay()
            else:
                optimizer.zero_grad()
                passes()
            optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    for one, two in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)

"""torch.compile over a perturbed step: the noise stays outside the graph, and a tensor rate is filled, not replaced."""

import pytest
import torch
from torch import Tensor, nn

import flatwise

METHODS = [flatwise.leap(0.3), flatwise.ralr(p=1.0)]


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.sin(torch.arange(12.0)).view(3, 4)), nn.Parameter(torch.ones(3))]


def fill_gradients(of: list[nn.Parameter], step: int) -> None:
    for parameter in of:
        parameter.grad = torch.cos(torch.arange(float(parameter.numel())) + step).view(parameter.shape)


# Dynamo itself uses what torch deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_compiled_step_is_perturbed_and_leaves_the_rate_clean() -> None:
    model, other = parameters(), parameters()
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD(model, lr=rate, momentum=0.9)
    handle = flatwise.perturb(optimizer, METHODS, seed=2, steps_per_epoch=2)
    plain = torch.optim.SGD(other, lr=torch.tensor(0.1), momentum=0.9)
    flatwise.perturb(plain, METHODS, seed=2, steps_per_epoch=2)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(optimizer.step, backend=count)
    seen = []
    for step in range(6):
        fill_gradients(model, step)
        compiled()
        fill_gradients(other, step)
        plain.step()
        seen.append(len(graphs))
        assert optimizer.param_groups[0]["lr"] is rate
        assert rate.item() == torch.tensor(0.1).item()
        for ours, theirs in zip(model, other, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert handle.step == 6
    assert (
        0 < seen[1] == seen[-1]
    )  # the first step makes the momentum, the second uses it; a new draw needs no new graph

"""Under DistributedDataParallel every rank draws the same noise, whatever the ranks' own generators do."""

import pytest
import torch
import torch.distributed as dist
from networks import backward, network
from processes import Processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import flatwise

METHODS = {
    "leap": flatwise.leap(0.3),
    "lr_dropout": flatwise.lr_dropout(0.5),
    "random_lr": flatwise.random_lr(alpha=2, beta=0.6),
    "ralr": flatwise.ralr(),
}
STEPS = 100
NOTED = (60, 70, 80, 90)  # steps whose factors are compared


def factors(handle: flatwise.Handle, model: nn.Module) -> list[Tensor]:
    return [handle.factor(step, parameter) for step in NOTED for parameter in model.parameters()]


def train(method: str) -> tuple[list[list[Tensor]], list[Tensor], Tensor]:
    """Parameters at every tenth step, their factors at some steps, and the state of the generator at the end."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    handle = flatwise.perturb(optimizer, METHODS[method], seed=3, steps_per_epoch=10, epochs=10)
    seen = []
    for step in range(STEPS):
        torch.rand(rank + 1)
        backward(model, step, rank, world=2)
        optimizer.step()
        if step % 10 == 9:
            seen.append([parameter.detach().clone() for parameter in model.parameters()])
    assert handle.step == STEPS
    return seen, factors(handle, model), torch.get_rng_state()


@pytest.mark.parametrize("method", METHODS)
def test_ranks_stay_together_and_draw_the_noise_of_the_bare_model(method: str, two_processes: Processes) -> None:
    (first, drawn, generator), (second, also_drawn, other_generator) = two_processes.run(train, method)

    assert not torch.equal(generator, other_generator)
    assert len(first) == len(second) == STEPS // 10
    for ours, theirs in zip(first, second, strict=True):
        assert all(map(torch.equal, ours, theirs))

    # DDP puts "module." before every name; that must not change the noise.
    model = network()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.05, momentum=0.9)
    handle = flatwise.perturb(optimizer, METHODS[method], seed=3, steps_per_epoch=10, epochs=10)
    bare = factors(handle, model)
    assert all(map(torch.equal, drawn, bare))
    assert all(map(torch.equal, also_drawn, bare))
    assert any((factor != 1).any() for factor in bare)

    for step in range(STEPS):
        backward(model, step)
        optimizer.step()
    for ours, alone in zip(first[-1], model.parameters(), strict=True):
        torch.testing.assert_close(ours, alone.detach(), rtol=1e-3, atol=1e-4)

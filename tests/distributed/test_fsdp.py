"""Under fully_shard (FSDP2) every global element draws what it draws in one process."""

import pytest
import torch
from networks import Network, backward, network
from processes import Processes
from torch import Tensor

import flatwise

STEPS = (0, 1, 1000)
SCOPES = ("element", "channel", "tensor", "all")


def perturbed(model: Network, scope: str, named: bool) -> tuple[torch.optim.Optimizer, flatwise.Handle]:
    parameters = model.named_parameters() if named else model.parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    return optimizer, flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Normal(1.0, 0.4), scope), seed=11)


def sharded_run(scope: str, named: bool) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
    """Six steps on two ranks: the whole parameters, this rank's factors at some steps, and its empty parameters."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    model = network()
    fully_shard(model.hidden, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer, handle = perturbed(model, scope, named)
    for step in range(6):
        backward(model, step, dist.get_rank(), world=2)
        optimizer.step()
    assert handle.step == 6
    drawn = [[handle.factor(step, parameter) for parameter in model.parameters()] for step in STEPS]
    whole = [parameter.full_tensor().detach() for parameter in model.parameters()]
    return whole, drawn, [parameter.to_local().detach().shape for parameter in model.parameters()]


@pytest.mark.parametrize("named", [True, False], ids=["named", "positional"])
@pytest.mark.parametrize("scope", SCOPES)
def test_two_ranks_are_one_process(scope: str, named: bool, two_processes: Processes) -> None:
    ranks = two_processes.run(sharded_run, scope, named)
    model = network()
    optimizer, handle = perturbed(model, scope, named)
    for step in range(6):
        backward(model, step)
        optimizer.step()

    assert [0] in [list(shape) for shape in ranks[1][2]]  # the single element lives on rank 0 alone
    for rank, (whole, drawn, shapes) in enumerate(ranks):
        for ours, parameter in zip(whole, model.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.detach(), rtol=1e-4, atol=1e-6)
        for step, at_step in zip(STEPS, drawn, strict=True):
            for factor, shape, parameter in zip(at_step, shapes, model.parameters(), strict=True):
                expected = handle.factor(step, parameter).expand(parameter.shape)
                parts = expected.chunk(2)
                part = parts[rank] if rank < len(parts) else expected[:0]
                assert torch.equal(factor.expand(shape), part)


def tensor_parallel_step(dimension: int | None) -> tuple[Tensor, Tensor]:
    """One step on a weight that is sharded along a dimension, or replicated: the whole weight and the local factor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    placement = [Replicate() if dimension is None else Shard(dimension)]
    weight = torch.nn.Parameter(distribute_tensor(WEIGHT, mesh, placement))
    weight.grad = distribute_tensor(GRADIENT, mesh, placement)
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    flatwise.perturb(optimizer, [flatwise.leap(0.3), flatwise.lr_dropout()], seed=5)
    for _ in range(3):
        optimizer.step()
    return weight.full_tensor().detach()


WEIGHT = torch.sin(torch.arange(45.0)).view(5, 9)
GRADIENT = torch.cos(torch.arange(45.0)).view(5, 9)


@pytest.mark.parametrize("dimension", [0, 1, None], ids=["rows", "columns", "replicated"])
def test_a_tensor_parallel_weight_takes_the_steps_of_the_whole_one(
    dimension: int | None, two_processes: Processes
) -> None:
    weight = torch.nn.Parameter(WEIGHT.clone())
    weight.grad = GRADIENT.clone()
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    flatwise.perturb(optimizer, [flatwise.leap(0.3), flatwise.lr_dropout()], seed=5)
    for _ in range(3):
        optimizer.step()
    for whole in two_processes.run(tensor_parallel_step, dimension):
        torch.testing.assert_close(whole, weight.detach(), rtol=1e-6, atol=1e-7)

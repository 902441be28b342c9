"""Wrappers under which nobody can say which element is whose: refused, with a way out."""

import warnings

import pytest
import torch
import torch.distributed as dist
from networks import backward, network
from processes import Processes
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened
from torch.nn.parallel import DistributedDataParallel

import flatter

FINE = [flatter.leap(), flatter.alrao(), flatter.Perturbation(flatter.Normal(1.0, 0.1), "tensor")]


@pytest.mark.parametrize("perturbation", FINE, ids=["element", "channel", "tensor"])
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused_per_element(use_orig_params: bool, perturbation: flatter.Perturbation) -> None:
    """FSDP1 itself needs an accelerator; these are the parameters that it hands to an optimizer."""
    if use_orig_params:
        parameter = nn.Parameter(torch.ones(5))
        _set_fsdp_flattened(parameter)
    else:
        parameter = FlatParameter(torch.ones(5), requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [torch.ones(2)]}, {"params": [parameter]}], lr=0.1)
    with pytest.raises(ValueError, match=r"FSDP1\) flattens parameters.*Use torch.distributed.fsdp.fully_shard"):
        flatter.perturb(optimizer, perturbation)
    flatter.perturb(optimizer, flatter.ralr(), steps_per_epoch=2)


def imported() -> type[torch.optim.Optimizer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its package compiles functions with torch.jit.script
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer


def zero_redundancy(perturbation: flatter.Perturbation | None) -> tuple[list[Tensor], str]:
    """Parameters after some steps under ZeRO, and what perturbing each element says."""
    ZeroRedundancyOptimizer = imported()
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.SGD, lr=0.1, momentum=0.9)
    refused = ""
    try:
        flatter.perturb(optimizer, flatter.leap())
    except ValueError as error:
        refused = str(error)
    handle = flatter.perturb(optimizer, perturbation, seed=1, steps_per_epoch=2)
    for step in range(6):
        backward(model, step, dist.get_rank(), world=2)
        optimizer.step()
    assert handle.step == 6
    optimizer.consolidate_state_dict(to=0)
    groups = optimizer.state_dict()["param_groups"] if dist.get_rank() == 0 else optimizer.param_groups
    assert (groups[0]["lr"], groups[0]["flatter_step"]) == (0.1, 6)
    return [parameter.detach().clone() for parameter in model.parameters()], refused


def test_zero_redundancy_optimizer_is_refused_per_element_and_takes_a_common_factor(two_processes: Processes) -> None:
    everywhere = flatter.ralr(p=1.0)
    (first, refused), (second, _) = two_processes.run(zero_redundancy, everywhere)
    assert "holds other parameters, at other positions, on every rank" in refused
    assert "Use torch.distributed.fsdp.fully_shard" in refused

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    flatter.perturb(optimizer, everywhere, seed=1, steps_per_epoch=2)
    for step in range(6):
        backward(model, step)
        optimizer.step()
    for ours, theirs, alone in zip(first, second, model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, alone.detach(), rtol=1e-4, atol=1e-6)


def overlapped() -> str:
    ZeroRedundancyOptimizer = imported()
    optimizer = ZeroRedundancyOptimizer(
        network().parameters(), optimizer_class=torch.optim.SGD, overlap_with_ddp=True, lr=0.1
    )
    try:
        flatter.perturb(optimizer, flatter.ralr(), steps_per_epoch=2)
    except ValueError as error:
        return str(error)
    return ""


def test_an_update_inside_the_backward_pass_is_refused(two_processes: Processes) -> None:
    for refused in two_processes.run(overlapped):
        assert "it updates inside the backward pass" in refused

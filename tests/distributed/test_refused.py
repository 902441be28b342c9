"""Wrappers under which nobody can say which element is whose: refused, with a way out."""

import sys
import types
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from networks import backward, network
from processes import Processes
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter
from torch.distributed.fsdp._common_utils import _set_fsdp_flattened
from torch.nn.parallel import DistributedDataParallel

import flatwise

FINE = [flatwise.leap(), flatwise.alrao(), flatwise.Perturbation(flatwise.Normal(1.0, 0.1), "tensor")]


@pytest.mark.parametrize("perturbation", FINE, ids=["element", "channel", "tensor"])
@pytest.mark.parametrize("use_orig_params", [False, True])
def test_fsdp1_is_refused_per_element(use_orig_params: bool, perturbation: flatwise.Perturbation) -> None:
    """FSDP1 itself needs an accelerator; these are the parameters that it hands to an optimizer."""
    if use_orig_params:
        parameter = nn.Parameter(torch.ones(5))
        _set_fsdp_flattened(parameter)
    else:
        parameter = FlatParameter(torch.ones(5), requires_grad=True)
    optimizer = torch.optim.SGD([{"params": [torch.ones(2)]}, {"params": [parameter]}], lr=0.1)
    with pytest.raises(ValueError, match=r"FSDP1\) flattens parameters.*Use torch.distributed.fsdp.fully_shard"):
        flatwise.perturb(optimizer, perturbation)
    flatwise.perturb(optimizer, flatwise.ralr(), steps_per_epoch=2)


def imported() -> type[torch.optim.Optimizer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its package compiles functions with torch.jit.script
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer


def zero_redundancy(perturbation: flatwise.Perturbation | None) -> tuple[list[Tensor], str]:
    """Parameters after some steps under ZeRO, and what perturbing each element says."""
    ZeroRedundancyOptimizer = imported()
    model = DistributedDataParallel(network())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=torch.optim.SGD, lr=0.1, momentum=0.9)
    refused = ""
    try:
        flatwise.perturb(optimizer, flatwise.leap())
    except ValueError as error:
        refused = str(error)
    handle = flatwise.perturb(optimizer, perturbation, seed=1, steps_per_epoch=2)
    for step in range(6):
        backward(model, step, dist.get_rank(), world=2)
        optimizer.step()
    assert handle.step == 6
    optimizer.consolidate_state_dict(to=0)
    groups = optimizer.state_dict()["param_groups"] if dist.get_rank() == 0 else optimizer.param_groups
    assert (groups[0]["lr"], groups[0]["flatwise_step"]) == (0.1, 6)
    return [parameter.detach().clone() for parameter in model.parameters()], refused


def test_zero_redundancy_optimizer_is_refused_per_element_and_takes_a_common_factor(two_processes: Processes) -> None:
    everywhere = flatwise.ralr(p=1.0)
    (first, refused), (second, _) = two_processes.run(zero_redundancy, everywhere)
    assert "holds other parameters, at other positions, on every rank" in refused
    assert "Use torch.distributed.fsdp.fully_shard" in refused

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    flatwise.perturb(optimizer, everywhere, seed=1, steps_per_epoch=2)
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
        flatwise.perturb(optimizer, flatwise.ralr(), steps_per_epoch=2)
    except ValueError as error:
        return str(error)
    return ""


def test_an_update_inside_the_backward_pass_is_refused(two_processes: Processes) -> None:
    for refused in two_processes.run(overlapped):
        assert "it updates inside the backward pass" in refused


# DeepSpeed, by what it does to an optimizer (0.19: zero/stage_1_and_2.py, bf16_optimizer.py and zero/stage3.py). The
# package itself compiles extensions when it starts, and is not installed for the tests.


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("deepspeed", "deepspeed.runtime"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def initialized(optimizer: torch.optim.Optimizer, rank: int = 0, world: int = 2) -> None:
    """ZeRO stages 1 and 2, and bf16 without ZeRO: each group is left with this rank's stretch of its parameters."""
    for group in optimizer.param_groups:
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in group["params"]])
        stretch = flat.chunk(world)[rank].clone().float()
        stretch.requires_grad = True
        group["params"] = [stretch]


def adam(groups: int = 1) -> torch.optim.Optimizer:
    parameters = list(network().parameters())
    cuts = [parameters] if groups == 1 else [parameters[:1], parameters[1:]]
    return torch.optim.AdamW([{"params": cut} for cut in cuts], lr=0.1)


def stepped(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("perturbation", FINE, ids=["element", "channel", "tensor"])
def test_deepspeeds_flat_partitions_are_refused_per_element(
    deepspeed: None, perturbation: flatwise.Perturbation
) -> None:
    optimizer = adam()
    initialized(optimizer)
    with pytest.raises(ValueError, match=r"DeepSpeed flattens parameters.*Use torch.distributed.fsdp.fully_shard"):
        flatwise.perturb(optimizer, perturbation)
    handle = flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Uniform(0.5, 1.5), "all"))
    stepped(optimizer)
    assert handle.step == 1


@pytest.mark.parametrize("perturbation", FINE, ids=["element", "channel", "tensor"])
def test_a_perturbation_from_before_deepspeed_is_found_at_the_first_step(
    deepspeed: None, perturbation: flatwise.Perturbation
) -> None:
    optimizer = adam()
    flatwise.perturb(optimizer, perturbation)
    initialized(optimizer)
    with pytest.raises(ValueError, match="DeepSpeed flattens parameters"):
        stepped(optimizer)


def test_steps_that_deepspeed_divides_are_refused(deepspeed: None) -> None:
    """Stages 1 and 2 step each group by itself, stage 3 each part of one, and has no parameters in between."""
    everywhere = flatwise.Perturbation(flatwise.Uniform(0.5, 1.5), "all")
    optimizer = adam(groups=2)
    flatwise.perturb(optimizer, everywhere).remove()
    initialized(optimizer)
    with pytest.raises(ValueError, match=r"with 2 parameter groups cannot be perturbed under DeepSpeed.*Use one group"):
        flatwise.perturb(optimizer, everywhere)
    for group in optimizer.param_groups:
        group["params"] = []
    with pytest.raises(ValueError, match=r"ZeRO stage 3.*fully_shard"):
        flatwise.perturb(optimizer, everywhere)
    partitioned = nn.Parameter(torch.empty(0))
    partitioned.ds_id = 0  # deepspeed.zero.Init
    with pytest.raises(ValueError, match=r"ZeRO stage 3.*fully_shard"):
        flatwise.perturb(torch.optim.AdamW([partitioned], lr=0.1), everywhere)


def bare_vectors() -> list[str]:
    """What Megatron's and Apex's distributed optimizers hold: stretches that are tensors, not parameters."""
    refused = []
    flat = [torch.zeros(7, requires_grad=True)]
    for parameters in (flat, [nn.Parameter(torch.zeros(7))], [torch.zeros(7, 2, requires_grad=True)]):
        try:
            flatwise.perturb(torch.optim.SGD(parameters, lr=0.1), flatwise.leap()).remove()
            refused.append("")
        except ValueError as error:
            refused.append(str(error))
    flatwise.perturb(torch.optim.SGD(flat, lr=0.1), flatwise.Perturbation(flatwise.Uniform(0.5, 1.5), "all"))
    return refused


def test_bare_vectors_are_refused_in_several_processes_only(two_processes: Processes) -> None:
    for flat, *others in two_processes.run(bare_vectors):
        assert "is not an nn.Parameter, and with 2 processes looks like a rank's part of flattened parameters" in flat
        assert others == ["", ""]
    assert bare_vectors() == ["", "", ""]


def optimizers_of(kind: type, inner: list[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """torchtitan's OptimizersContainer: an optimizer of all parameters whose step calls the real ones."""
    container = kind.__new__(kind)
    container.optimizers = inner
    parameters = [p for one in inner for group in one.param_groups for p in group["params"]]
    torch.optim.Optimizer.__init__(container, parameters, {"lr": 0.1})
    return container


@pytest.mark.parametrize("method", [flatwise.leap(), flatwise.Perturbation(flatwise.Uniform(0.5, 1.5), "all")])
def test_a_container_of_optimizers_is_refused(method: flatwise.Perturbation) -> None:
    class OptimizersContainer(torch.optim.Optimizer):
        def step(self, closure: Callable[[], float] | None = None) -> None:
            for optimizer in self.optimizers:
                optimizer.step()

    container = optimizers_of(OptimizersContainer, [adam(), adam()])
    with pytest.raises(ValueError, match=r"OptimizersContainer wraps other optimizers \(self.optimizers\[0\]\)"):
        flatwise.perturb(container, method)

"""torch.distributed.checkpoint: a perturbed optimizer that is saved and loaded goes on as if nothing had been."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from networks import Network, backward, network
from processes import Processes
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

import flatwise

SAVED_AT, END = 4, 8
OPTIONS = {
    "sharded": {},
    "flattened": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "broadcast": {"full_state_dict": True, "broadcast_from_rank0": True},
}


def perturbed(model: Network, seed: int | None) -> tuple[torch.optim.Optimizer, flatwise.Handle]:
    """Noise of every kind: per element and step, and per epoch for all."""
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.02)
    both = [flatwise.leap(0.3), flatwise.lr_dropout(), flatwise.ralr(p=1.0)]
    return optimizer, flatwise.perturb(optimizer, both, seed=seed, steps_per_epoch=3)


def sharded(phase: float) -> Network:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network(phase)
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.hidden, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(model: Network, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    rank, world = (
        (torch.distributed.get_rank(), torch.distributed.get_world_size())
        if torch.distributed.is_initialized()
        else (0, 1)
    )
    for step in range(start, stop):
        backward(model, step, rank, world)
        optimizer.step()
        optimizer.zero_grad()


def resume(folder: str, options: dict[str, bool], through_files: bool) -> dict[str, Any]:
    """Two ranks: an unbroken run, and one that goes on in a fresh model and optimizer."""
    chosen = StateDictOptions(**options)
    model = sharded(0.0)
    optimizer, handle = perturbed(model, seed=77)
    train(model, optimizer, 0, SAVED_AT)
    weights = get_model_state_dict(model, options=chosen)
    memory = get_optimizer_state_dict(model, optimizer, options=chosen)
    if through_files:
        dcp.save({"model": weights, "optimizer": memory}, checkpoint_id=folder)
    assert handle.step == SAVED_AT

    fresh = sharded(1.0)
    other, other_handle = perturbed(fresh, seed=None)
    if through_files:
        weights = get_model_state_dict(fresh, options=chosen)
        memory = get_optimizer_state_dict(fresh, other, options=chosen)
        assert other_handle.step == 0  # saving and loading make an empty step of the optimizer, which is none of ours
        dcp.load({"model": weights, "optimizer": memory}, checkpoint_id=folder)
    else:  # what is loaded would be shared with the optimizer that it came from
        weights, memory = copy.deepcopy((weights, memory))
    set_model_state_dict(fresh, weights, options=chosen)
    set_optimizer_state_dict(fresh, other, memory, options=chosen)
    loaded = (other_handle.step, other_handle.seed, other.param_groups[0]["lr"])

    train(fresh, other, SAVED_AT, END)
    train(model, optimizer, SAVED_AT, END)
    return {
        "loaded": loaded,
        "unbroken": [parameter.to_local().detach() for parameter in model.parameters()],
        "resumed": [parameter.to_local().detach() for parameter in fresh.parameters()],
        "whole": [parameter.full_tensor().detach() for parameter in model.parameters()],
    }


def in_one_process(folder: Path, options: dict[str, bool]) -> tuple[Network, flatwise.Handle]:
    chosen = StateDictOptions(**options)
    model = network(2.0)
    optimizer, handle = perturbed(model, seed=None)
    weights = get_model_state_dict(model, options=chosen)
    memory = get_optimizer_state_dict(model, optimizer, options=chosen)
    dcp.load({"model": weights, "optimizer": memory}, checkpoint_id=folder)
    set_model_state_dict(model, weights, options=chosen)
    set_optimizer_state_dict(model, optimizer, memory, options=chosen)
    assert (handle.step, handle.seed) == (SAVED_AT, 77)
    train(model, optimizer, SAVED_AT, END)
    return model, handle


@pytest.mark.parametrize(
    ("options", "through_files"),
    [("sharded", True), ("flattened", True), ("flattened", False), ("full", False), ("broadcast", False)],
)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # loading in one process says so
def test_a_resumed_run_is_the_unbroken_one(
    options: str, through_files: bool, two_processes: Processes, tmp_path: Path
) -> None:
    ranks = two_processes.run(resume, str(tmp_path), OPTIONS[options], through_files)
    for rank in ranks:
        assert rank["loaded"] == (SAVED_AT, 77, 0.02)
        assert all(map(torch.equal, rank["resumed"], rank["unbroken"]))

    if through_files:  # two ranks saved it; one process goes on with the same noise
        model, _ = in_one_process(tmp_path, OPTIONS[options])
        for parameter, whole in zip(model.parameters(), ranks[0]["whole"], strict=True):
            torch.testing.assert_close(parameter.detach(), whole, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tensor_rate", [False, True], ids=["number", "tensor"])
def test_saving_an_optimizer_without_state_is_no_step(tensor_rate: bool) -> None:
    """SGD without momentum never has state, so every save makes an empty step, with rate 0 and ``closure=None``."""
    model = network()
    rate = torch.tensor(0.1) if tensor_rate else 0.1
    optimizer = torch.optim.SGD(model.named_parameters(), lr=rate, weight_decay=0.5)
    # A lower bound would make a rate of 0 count, and the weight decay move the weights.
    bounded = flatwise.random_lr(beta=1.0, min_lr=0.01)
    handle = flatwise.perturb(optimizer, [flatwise.leap(0.3), bounded], steps_per_epoch=2, epochs=10)
    train(model, optimizer, 0, 3)
    before = clones(model)
    for _ in range(3):
        saved = get_optimizer_state_dict(model, optimizer)
    assert handle.step == 3
    assert saved["param_groups"][0]["flatwise_step"] == 3
    assert all(map(torch.equal, clones(model), before))
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)

    train(model, optimizer, 3, 5)
    assert handle.step == 5
    unsaved = network()
    other = torch.optim.SGD(unsaved.named_parameters(), lr=0.1, weight_decay=0.5)
    flatwise.perturb(other, [flatwise.leap(0.3), bounded], steps_per_epoch=2, epochs=10)
    train(unsaved, other, 0, 5)
    for ours, theirs in zip(clones(model), clones(unsaved), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6 if tensor_rate else 0, atol=1e-7 if tensor_rate else 0)


def clones(model: Network) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]

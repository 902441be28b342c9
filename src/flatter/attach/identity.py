"""Who a parameter is, whatever process it lives in: its name where the optimizer knows names, else its position."""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer

from flatter.noise.keys import unit_id

# Wrappers put these into names without changing the model: a run under them must draw the same noise as one without.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
_DATA_PARALLEL = "module."

ALL = unit_id("all")


def group_id(index: int) -> int:
    """Identity of the parameter group at this position."""
    return unit_id(f"group:{index}")


def parameter_ids(optimizer: Optimizer) -> dict[Tensor, int]:
    """Identity of every parameter of an optimizer.

    An optimizer made from ``model.named_parameters()`` (torch 2.6 or newer) knows names; the prefixes of DDP,
    torch.compile and activation checkpointing are taken off. Else a parameter is its position over all groups.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
    if len(names) != len(parameters):
        names = [f"position:{position}" for position in range(len(parameters))]
    else:
        plain = [_unwrapped(name) for name in names]
        # Two parameters must never share a draw: if taking the prefixes off made names meet, keep them on.
        names = [f"name:{name}" for name in (plain if len(set(plain)) == len(plain) else names)]
    return {parameter: unit_id(name) for parameter, name in zip(parameters, names, strict=True)}


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix(_DATA_PARALLEL)

"""Parameter ids that are the same in every process: from the name if the optimizer has names, else the position."""

from __future__ import annotations

from collections import Counter

from torch import Tensor
from torch.optim import Optimizer

from flatwise._noise.keys import parameter_id

# Prefixes that wrappers put into names. They are removed, so that a wrapped model draws the same noise as a plain one.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
_DATA_PARALLEL = "module."

ALL = parameter_id("all")


def group_id(index: int) -> int:
    """Identity of the parameter group at this position."""
    return parameter_id(f"group:{index}")


def parameter_ids(optimizer: Optimizer) -> dict[Tensor, int]:
    """Identity of every parameter of an optimizer; no two share one.

    An optimizer made from ``model.named_parameters()`` has names; the prefixes of DDP, torch.compile and activation
    checkpointing are removed. Repeated names, as of two models in two groups, are numbered. Without names, the id is
    the position over all groups.

    Raises:
        ValueError: a group does not have as many names as parameters.
    """
    parameters = parameters_of(optimizer)
    names = _names(optimizer)
    if names is None:
        texts = [f"position:{position}" for position in range(len(parameters))]
    else:
        plain = [_unwrapped(name) for name in names]
        # Keep the prefixes if names would collide without them.
        texts = _distinct(plain if len(set(plain)) == len(set(names)) else names)
    return {parameter: parameter_id(text) for parameter, text in zip(parameters, texts, strict=True)}


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All parameters, group after group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def knows_names(optimizer: Optimizer) -> bool:
    """Whether the optimizer was made from named parameters."""
    return any("param_names" in group for group in optimizer.param_groups)


def _names(optimizer: Optimizer) -> list[str] | None:
    """The names of all parameters, or ``None`` where the optimizer knows none."""
    groups = optimizer.param_groups
    if not knows_names(optimizer):
        return None
    for index, group in enumerate(groups):
        names, parameters = group.get("param_names", ()), group["params"]
        if len(names) != len(parameters):
            raise ValueError(
                f"parameter group {index} has {len(names)} names for {len(parameters)} parameters, so parameters and "
                "names cannot be matched. A wrapper that flattens or shards parameters may have replaced them: use "
                "torch.distributed.fsdp.fully_shard (FSDP2), or a perturbation with scope 'all' or 'group'"
            )
    return [name for group in groups for name in group["param_names"]]


def _distinct(names: list[str]) -> list[str]:
    """A text for each name; repeated names are counted."""
    seen: Counter[str] = Counter()
    texts = []
    for name in names:
        texts.append(f"repeat:{seen[name]}:name:{name}" if seen[name] else f"name:{name}")
        seen[name] += 1
    return texts


def _unwrapped(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix(_DATA_PARALLEL)

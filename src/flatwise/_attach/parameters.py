"""An optimizer's parameters: ids that are the same in every process, and where the elements held here lie."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatwise._kernels.forms import PLAIN
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


@dataclass(frozen=True)
class Block:
    """The part of a tensor that this process holds: the elements at ``rows[0] × rows[1] × …`` of the whole.

    Attributes:
        shape: shape of the whole (unsharded) tensor.
        rows: for each dimension the global positions held here, as a range, or as int64 where they are not contiguous.
    """

    shape: tuple[int, ...]
    rows: tuple[range | Tensor, ...]

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the part held here."""
        return tuple(len(row) for row in self.rows)

    @cached_property
    def start(self) -> int | None:
        """Logical index of the first element if the part is one run of the whole's row-major order, else ``None``."""
        if math.prod(self.local_shape) == 0:
            return 0
        start, stride = 0, 1
        complete = True  # whether all dimensions to the right are whole, so that this one may be cut
        for size, row in zip(reversed(self.shape), reversed(self.rows), strict=True):
            if not isinstance(row, range) or (not complete and len(row) != 1):
                return None
            complete = complete and len(row) == size
            start += row.start * stride
            stride *= size
        return start

    def index(self) -> Tensor:
        """Row-major logical index in the whole of every element held here; int64, ``local_shape``."""
        index = torch.zeros((1,) * len(self.shape), dtype=torch.int64, device="cpu")
        stride = 1
        for dimension in reversed(range(len(self.shape))):
            index = index + self.channel(dimension) * stride
            stride *= self.shape[dimension]
        return index.expand(self.local_shape)

    def channel(self, dimension: int = 0) -> Tensor:
        """Global positions along one dimension, shaped to broadcast over ``local_shape``; int64."""
        row = self.rows[dimension]
        positions = row if isinstance(row, Tensor) else torch.arange(row.start, row.stop, device="cpu")
        return positions.view([-1 if d == dimension else 1 for d in range(len(self.shape))])


def share_memory(parameters: Sequence[Tensor]) -> bool:
    """Whether two tensors lie in the same memory.

    Args:
        parameters: any tensors; only those that are contiguous and have memory of their own are looked at.
    """
    places = sorted(
        (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size())
        for p in parameters
        if type(p) in PLAIN and p.layout == torch.strided and p.is_contiguous()
        if p.device.type != "meta" and p.numel()
    )
    return any(end > start for (_, end), (start, _) in pairwise(places))


def check_memory(parameters: Sequence[Tensor]) -> None:
    """Raise if parameters lie in the same memory: an element that two of them hold cannot have the factors of both.

    Args:
        parameters: as in :func:`share_memory`.

    Raises:
        ValueError: two of them overlap.
    """
    if share_memory(parameters):
        raise ValueError(
            "two parameters of the optimizer share memory, so which of their factors an element has cannot be known. "
            "Give the optimizer one of them, or use a perturbation with scope 'all' or 'group'"
        )


def local_part(parameter: Tensor) -> tuple[Tensor, Block]:
    """The tensor that this process really holds of a parameter, sharing memory, and where it lies in the whole.

    Args:
        parameter: a plain tensor, or a DTensor (FSDP2 or tensor parallel; replicated and sharded placements).

    Raises:
        ValueError: a DTensor with another placement (partial sums have no elements to perturb), or whose local part is
            not what its placements say; a flat part of several parameters.
    """
    if not _is_dtensor(parameter):
        reason = flattened(parameter)
        if reason is not None:  # when the perturbation was attached the optimizer still held the model's parameters
            raise ValueError(
                f"flatwise cannot perturb these parameters per element, channel or tensor: {reason}. Use "
                "torch.distributed.fsdp.fully_shard (FSDP2), or a perturbation with scope 'all' or 'group'"
            )
        shape = tuple(parameter.shape)
        return parameter, Block(shape, tuple(range(size) for size in shape))
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    assert isinstance(parameter, DTensor)
    local, shape = parameter.to_local(), tuple(parameter.shape)
    coordinate = parameter.device_mesh.get_coordinate()
    if coordinate is None:  # this process is not part of the mesh
        return local, Block(shape, (range(0),) * len(shape))
    cuts: list[list[_Cut]] = [[] for _ in shape]
    for mesh_dimension, placement in enumerate(parameter.placements):
        if placement.is_replicate():
            continue
        if not isinstance(placement, (Shard, _StridedShard)):
            raise ValueError(
                f"flatwise cannot perturb a DTensor with placement {placement}: only replicated and sharded ones have "
                "elements of their own"
            )
        pieces = int(placement.split_factor) if isinstance(placement, _StridedShard) else 1
        ways = parameter.device_mesh.size(mesh_dimension)
        cuts[placement.dim].append(_Cut(pieces, ways, coordinate[mesh_dimension]))
    rows = tuple(_rows(*dimension) for dimension in zip(shape, local.shape, cuts, strict=True))
    return local, Block(shape, rows)


def flattened(parameter: Tensor) -> str | None:
    """Why the position of a parameter's elements in the whole tensors cannot be known; ``None`` if it can.

    Frameworks that shard an optimizer's state concatenate the parameters and give every process a part of the result.
    """
    # FSDP1 marks its flat parameters, and with use_orig_params=True the parameters that are views of them.
    if getattr(parameter, "_is_flat_param", False) or getattr(parameter, "_fsdp_flattened", False):
        return "FullyShardedDataParallel (FSDP1) flattens parameters, so a rank cannot tell where its part lies"
    if is_deepspeeds(parameter):
        return "DeepSpeed flattens parameters, so a rank cannot tell which of them its part holds"
    if _is_bare_vector(parameter) and _processes() > 1:
        return (
            f"a one-dimensional tensor of {parameter.numel()} elements is not an nn.Parameter, and with {_processes()} "
            "processes looks like a rank's part of flattened parameters, of which a rank cannot tell which it holds"
        )
    return None


def is_deepspeeds(parameter: Tensor | None = None) -> bool:
    """Whether DeepSpeed is in use, and made this parameter: a bare vector, a part of the flattened master weights."""
    return "deepspeed.runtime" in sys.modules and (parameter is None or _is_bare_vector(parameter))


def _is_bare_vector(parameter: Tensor) -> bool:
    return type(parameter) is Tensor and parameter.dim() == 1


def _processes() -> int:
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _Cut(NamedTuple):
    """The cut of one mesh dimension, as ``torch.chunk`` cuts: into ``pieces``, each ``ways`` ways; ``mine`` of each."""

    pieces: int
    ways: int
    mine: int

    def of(self, rows: Tensor) -> Tensor:
        """What the cut leaves of some rows."""
        mine = slice(self.mine, self.mine + 1)  # none, where chunk made fewer parts than asked
        return torch.cat(
            [rows[:0], *(part for piece in rows.chunk(self.pieces) for part in piece.chunk(self.ways)[mine])]
        )


def _rows(size: int, held: int, cuts: list[_Cut]) -> range | Tensor:
    """Which of ``size`` positions the cuts leave, of which this process holds ``held``."""
    orders = [cuts]
    if cuts and cuts[0].pieces > 1 and cuts[0].pieces == math.prod(cut.ways for cut in cuts[1:]):
        # fully_shard over tensor parallel really cuts last what the inner mesh dimensions left. Left to right, as torch
        # defines the placement and distribute_tensor cuts, is the same but for some uneven sizes.
        orders.insert(0, [*cuts[1:], cuts[0]._replace(pieces=1)])
    for order in orders:
        rows = torch.arange(size, device="cpu")
        for cut in order:
            rows = cut.of(rows)
        if len(rows) == held:
            return _as_range(rows)
    raise ValueError(
        f"flatwise cannot tell which {held} of {size} positions this process holds: a DTensor's shards are expected to "
        "be cut as torch.chunk does"
    )


def _as_range(row: Tensor) -> range | Tensor:
    if len(row) == 0:
        return range(0)
    first, last = int(row[0]), int(row[-1])
    return range(first, last + 1) if last - first + 1 == len(row) else row


def _is_dtensor(tensor: Tensor) -> bool:
    # A DTensor exists only if its module was imported. Do not import it here: that is slow.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def share_tensor_rates(optimizer: Optimizer) -> bool:
    """Whether two groups share one tensor as their learning rate."""
    rates = [id(group["lr"]) for group in optimizer.param_groups if isinstance(group.get("lr"), Tensor)]
    return len(set(rates)) < len(rates)

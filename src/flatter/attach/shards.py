"""Where the elements that this process holds lie in the whole tensor: noise belongs to the global element."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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
        index = torch.zeros((1,) * len(self.shape), dtype=torch.int64)
        stride = 1
        for dimension in reversed(range(len(self.shape))):
            index = index + self.channel(dimension) * stride
            stride *= self.shape[dimension]
        return index.expand(self.local_shape)

    def channel(self, dimension: int = 0) -> Tensor:
        """Global positions along one dimension, shaped to broadcast over ``local_shape``; int64."""
        row = self.rows[dimension]
        positions = row if isinstance(row, Tensor) else torch.arange(row.start, row.stop)
        return positions.view([-1 if d == dimension else 1 for d in range(len(self.shape))])


def local_part(parameter: Tensor) -> tuple[Tensor, Block]:
    """The tensor that this process really holds of a parameter, sharing memory, and where it lies in the whole.

    Args:
        parameter: a plain tensor, or a DTensor (FSDP2 or tensor parallel; replicated and sharded placements).

    Raises:
        ValueError: a DTensor with another placement (partial sums have no elements to perturb).
    """
    if not _is_dtensor(parameter):
        shape = tuple(parameter.shape)
        return parameter, Block(shape, tuple(range(size) for size in shape))
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    assert isinstance(parameter, DTensor)
    shape = tuple(parameter.shape)
    rows: list[Tensor] = [torch.arange(size) for size in shape]
    coordinate = parameter.device_mesh.get_coordinate()
    # Strided shards are the outer cut of a tensor that inner mesh dimensions cut first: take them last.
    order = sorted(enumerate(parameter.placements), key=lambda item: isinstance(item[1], _StridedShard))
    for mesh_dimension, placement in order:
        if placement.is_replicate():
            continue
        if not isinstance(placement, (Shard, _StridedShard)):
            raise ValueError(
                f"flatter cannot perturb a DTensor with placement {placement}: only replicated and sharded ones have "
                "elements of their own"
            )
        if coordinate is None:  # this process holds nothing of the mesh
            rows[placement.dim] = rows[placement.dim][:0]
            continue
        ways = parameter.device_mesh.size(mesh_dimension)
        # Both kinds cut with torch.chunk; in order, the cut of what earlier cuts left is the cut of their global rows.
        parts = torch.chunk(rows[placement.dim], ways)
        mine = coordinate[mesh_dimension]
        rows[placement.dim] = parts[mine] if mine < len(parts) else rows[placement.dim][:0]
    return parameter.to_local(), Block(shape, tuple(map(_as_range, rows)))


def _as_range(row: Tensor) -> range | Tensor:
    if len(row) == 0:
        return range(0)
    first, last = int(row[0]), int(row[-1])
    return range(first, last + 1) if last - first + 1 == len(row) else row


def _is_dtensor(tensor: Tensor) -> bool:
    # Whoever holds a DTensor has imported its module, which is slow to import: never be the first.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)

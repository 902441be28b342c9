"""What a GPU kernel must know of its tensors: their addresses, and how they are cut into chunks, in two tables.

One launch serves any number of tensors: a program looks up its chunk, then the chunk's tensor. The table of chunks
depends on sizes alone; that of tensors is a few words for each and is sent again when an address has changed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flatwise.noise.keys import SEGMENT

# Long enough that looking up a chunk and deriving its key cost little, short enough that all multiprocessors end
# together.
CHUNK = 1 << 13

# Of an address, in bytes, and of an element's place in its tensor: what a 16-byte load needs.
ALIGNMENT = 16


def chunks(sizes: Sequence[int], starts: Sequence[int]) -> NDArray[np.int64]:
    """Cuts tensors into chunks of at most ``CHUNK`` elements, none of which crosses a segment.

    Args:
        sizes: number of elements of each tensor.
        starts: logical index of each tensor's first element.

    Returns:
        Shape (number of chunks, 3): tensor, offset of the chunk's first element in the tensor, length.
    """
    parts = [np.empty((0, 3), dtype=np.int64)]
    for tensor, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        cuts = np.union1d(np.arange(0, size, CHUNK), np.arange(-start % SEGMENT, size, SEGMENT)).astype(np.int64)
        lengths = np.diff(cuts, append=size)
        parts.append(np.stack([np.full_like(cuts, tensor), cuts, lengths], axis=1))
    return np.concatenate(parts)


def is_aligned(start: int, *tensors: Tensor) -> bool:
    """Whether all loads of such a piece may be 16 bytes wide."""
    return start % ALIGNMENT == 0 and all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in tensors)


class Tables:
    """The tables of one launch, kept on a device between steps.

    Attributes:
        tensors: int64, shape (n, columns + 2): each tensor's addresses, the logical index of its first element, and its
            unit.
        chunks: int64, shape (number of chunks, 3); see :func:`chunks`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pieces: tuple[list[int], list[int], list[int]] | None = None
        self._addresses: list[list[int]] | None = None
        self.tensors = torch.empty((0, 2), dtype=torch.int64, device=device)
        self.chunks = torch.empty((0, 3), dtype=torch.int64, device=device)

    def update(self, columns: Sequence[Sequence[Tensor]], starts: Sequence[int], units: Sequence[int]) -> None:
        """Sends what has changed since the last call.

        A captured graph keeps the tables' addresses: it is valid until a call that finds a change.

        Args:
            columns: lists of n contiguous tensors on the device; the first column tells their sizes, and the i-th
                tensors of all columns have as many elements, except one that holds a single number for all.
            starts: logical index of each tensor's first element.
            units: identity of each tensor, 64 bits.
        """
        pieces = [tensor.numel() for tensor in columns[0]], list(starts), list(units)
        addresses = [[tensor.data_ptr() for tensor in column] for column in columns]
        if pieces != self._pieces:
            self.chunks = _send(chunks(pieces[0], pieces[1]), self._device)
        if pieces != self._pieces or addresses != self._addresses:
            rows = np.array([*addresses, pieces[1], pieces[2]], dtype=np.uint64).view(np.int64)
            self.tensors = _send(np.ascontiguousarray(rows.T), self._device)
        self._pieces, self._addresses = pieces, addresses


def _send(rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """A copy on the device, without waiting for the device."""
    host = torch.from_numpy(rows)
    if device.type == "cuda" and rows.size:
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)

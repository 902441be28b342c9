"""The words of whole runs of elements, by the reference. Where kernels can blend or update, they draw their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from flatwise.noise import reference
from flatwise.noise.keys import SEGMENT, SEGMENT_BITS

SegmentKey = Callable[[int], tuple[int, int]]

# Long enough to hide the cost of launching an operation, short enough that the chunk's buffers stay in cache.
CHUNK = 1 << 17


def runs(start: int, count: int, longest: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Cuts ``count`` elements from logical index ``start`` on into (offset, length) runs within one segment each."""
    offset = 0
    while offset < count:
        room = SEGMENT - (start + offset) % SEGMENT
        length = min(longest, room, count - offset)
        yield offset, length
        offset += length


def words_run(key: SegmentKey, start: int, count: int, device: torch.device) -> Tensor:
    """The words of the elements ``start … start + count − 1``, all of one segment; int32, shape (count,)."""
    first = start % SEGMENT
    index = torch.arange(first, first + count, dtype=torch.int32, device=device)
    return reference.words(index, key(start >> SEGMENT_BITS))


def words_at(key: SegmentKey, index: Tensor, size: int, device: torch.device) -> Tensor:
    """The words of some logical elements of a tensor.

    Args:
        key: the keys of each segment.
        index: int64, any shape, on the CPU: which elements.
        size: a bound above all indices; where one segment holds so many, the indices need not be read.
        device: where the words are wanted.

    Returns:
        int32, the shape of ``index``.
    """
    low = (index & (SEGMENT - 1)).to(device=device, dtype=torch.int32)
    if index.numel() == 0:
        return low
    first = last = 0
    if size > SEGMENT:
        first, last = (int(bound) >> SEGMENT_BITS for bound in torch.aminmax(index))
    if first == last:
        return reference.words(low, key(first))
    result = torch.empty_like(low)
    segments = (index >> SEGMENT_BITS).to(device)
    for segment in range(first, last + 1):
        inside = segments == segment
        result[inside] = reference.words(low[inside], key(segment))
    return result

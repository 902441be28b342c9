"""Decoded data, kept in flatwise's own cache: made once, checked whenever they are read."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flatwise.study.export import written_whole
from flatwise.study.tasks.classification import Pixels
from flatwise_papers.data.folder import cache_folder

DIGEST_SIZE = 32


def cached_pixels(key: str, shape: tuple[int, ...], make: Callable[[], Pixels]) -> Pixels:
    """Return the array that ``make`` makes, from the cache if it is there whole; else make it and keep it.

    The file ``decoded/<key>`` holds the SHA-256 of the bytes, then the bytes in C order. It appears under its name
    only when it is complete, so processes may ask for the same array at the same time. One that is cut off or changed
    is made anew. Where the cache cannot be written, the array is made each time.

    Args:
        key: name of the file: one for each content, so with the checksum of what the array is decoded from.
        shape: shape of the array.
        make: makes the array, uint8.
    """
    path = cache_folder() / "decoded" / key
    cached = _read(path, math.prod(shape))
    if cached is not None:
        return cached.reshape(shape)
    made = make()
    assert made.shape == shape
    with contextlib.suppress(OSError):
        _write(path, np.ascontiguousarray(made))
    return made


def _read(path: Path, size: int) -> Pixels | None:
    """The array, flat, or ``None`` where the file is missing, unreadable or not what was written."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    digest, pixels = content[:DIGEST_SIZE], content[DIGEST_SIZE:]
    if len(pixels) != size or digest.tobytes() != hashlib.sha256(pixels.data).digest():
        return None
    return pixels


def _write(path: Path, pixels: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(pixels.data).digest())
        file.write(pixels.data)

"""What every training function needs: weights that a seed decides, and a clock that waits for the device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def initialized(build: Callable[[], Model], seed: int) -> Model:
    """Build a model whose weights the seed decides; the global random state is as it was.

    Layers initialize themselves from the global generator of the CPU: it is seeded, and its state put back afterwards.
    ``torch.manual_seed`` would also move the generators of every GPU, which are left alone here.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def now(device: torch.device) -> float:
    """Seconds on a clock, read after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def percent_wrong(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Return the share of wrongly classified examples in percent; NaN if any of their outputs is not finite.

    The largest of NaNs has an index too: without that rule a broken model would get a number, about 90 % on digits.

    Args:
        outputs: scores, shape ``(n, classes)``.
        labels: classes, shape ``(n,)``.
    """
    if not outputs.isfinite().all():
        return math.nan
    return 100.0 * float((outputs.argmax(dim=1) != labels).double().mean())

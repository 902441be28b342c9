"""How flat is the minimum? Curvature of the loss, measured safely in the middle of training."""

from __future__ import annotations

from flatter.flatness.batches import BatchLoss
from flatter.flatness.errors import FlatnessError

__all__ = ["BatchLoss", "FlatnessError"]

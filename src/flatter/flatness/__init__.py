"""How flat is the minimum? The papers' instruments, safe to use in the middle of training."""

from __future__ import annotations

from flatter.flatness.batches import BatchLoss
from flatter.flatness.curvature import (
    Eigenvalues,
    by_parameter,
    diagonal,
    gradient_norm,
    hvp,
    top_eigenvalues,
    trace,
)
from flatter.flatness.errors import FlatnessError
from flatter.flatness.objective import Objective, measuring
from flatter.flatness.probes import DiagonalEstimate, TraceEstimate

__all__ = [
    "BatchLoss",
    "DiagonalEstimate",
    "Eigenvalues",
    "FlatnessError",
    "Objective",
    "TraceEstimate",
    "by_parameter",
    "diagonal",
    "gradient_norm",
    "hvp",
    "measuring",
    "top_eigenvalues",
    "trace",
]

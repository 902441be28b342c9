"""How flat is the minimum? Instruments that are safe to use in the middle of training."""

from __future__ import annotations

from flatwise.flatness._data import BatchLoss
from flatwise.flatness._lanczos import Eigenvalues
from flatwise.flatness.curvature import (
    DiagonalEstimate,
    TraceEstimate,
    by_parameter,
    diagonal,
    gradient_norm,
    hvp,
    top_eigenvalues,
    trace,
)
from flatwise.flatness.guard import FlatnessError
from flatwise.flatness.input_paths import input_noise_paths, validation_paths
from flatwise.flatness.objective import Objective, measuring
from flatwise.flatness.paths import LossCurve, LossCurves, fooling_path, loss_along, random_weight_paths, weight_path
from flatwise.flatness.plots import plot_loss_curves, plot_loss_surface, plot_paired_losses
from flatwise.flatness.surfaces import (
    LevelSlope,
    LevelSlopes,
    LossGrid,
    LossSurface,
    average_slope,
    loss_surface,
    plane_surface,
)

__all__ = [
    "BatchLoss",
    "DiagonalEstimate",
    "Eigenvalues",
    "FlatnessError",
    "LevelSlope",
    "LevelSlopes",
    "LossCurve",
    "LossCurves",
    "LossGrid",
    "LossSurface",
    "Objective",
    "TraceEstimate",
    "average_slope",
    "by_parameter",
    "diagonal",
    "fooling_path",
    "gradient_norm",
    "hvp",
    "input_noise_paths",
    "loss_along",
    "loss_surface",
    "measuring",
    "plane_surface",
    "plot_loss_curves",
    "plot_loss_surface",
    "plot_paired_losses",
    "random_weight_paths",
    "top_eigenvalues",
    "trace",
    "validation_paths",
    "weight_path",
]

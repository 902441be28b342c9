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
from flatter.flatness.curves import LossCurve, LossCurves
from flatter.flatness.errors import FlatnessError
from flatter.flatness.escape import (
    EscapeTime,
    determinant_ratio,
    leap_escape_time,
    noise_amplification,
    selection_probabilities,
    sgd_escape_time,
)
from flatter.flatness.escape_simulation import Occupancy, simulate_escape, simulate_occupancy
from flatter.flatness.input_paths import input_noise_paths, validation_paths
from flatter.flatness.level_sets import LevelSlope, LevelSlopes, average_slope
from flatter.flatness.objective import Objective, measuring
from flatter.flatness.plots_escape import plot_escape_law, plot_survival
from flatter.flatness.plots_losses import plot_loss_curves, plot_loss_surface, plot_paired_losses
from flatter.flatness.plots_test_functions import plot_optimization_paths
from flatter.flatness.probes import DiagonalEstimate, TraceEstimate
from flatter.flatness.surfaces import LossGrid, LossSurface, loss_surface, plane_surface
from flatter.flatness.test_function_paths import (
    OPTIMIZERS,
    OptimizationPaths,
    ReachedShare,
    optimization_paths,
    paired_p_value,
    share_table,
)
from flatter.flatness.test_functions import TEST_FUNCTIONS, TestFunction
from flatter.flatness.waiting_times import ExponentialTest, FittedLaw, WaitingTimes, exponential_test, fit_law
from flatter.flatness.weight_paths import fooling_path, loss_along, random_weight_paths, weight_path
from flatter.flatness.wells import DoubleWell, ExactEscape, exact_escape

__all__ = [
    "OPTIMIZERS",
    "TEST_FUNCTIONS",
    "BatchLoss",
    "DiagonalEstimate",
    "DoubleWell",
    "Eigenvalues",
    "EscapeTime",
    "ExactEscape",
    "ExponentialTest",
    "FittedLaw",
    "FlatnessError",
    "LevelSlope",
    "LevelSlopes",
    "LossCurve",
    "LossCurves",
    "LossGrid",
    "LossSurface",
    "Objective",
    "Occupancy",
    "OptimizationPaths",
    "ReachedShare",
    "TestFunction",
    "TraceEstimate",
    "WaitingTimes",
    "average_slope",
    "by_parameter",
    "determinant_ratio",
    "diagonal",
    "exact_escape",
    "exponential_test",
    "fit_law",
    "fooling_path",
    "gradient_norm",
    "hvp",
    "input_noise_paths",
    "leap_escape_time",
    "loss_along",
    "loss_surface",
    "measuring",
    "noise_amplification",
    "optimization_paths",
    "paired_p_value",
    "plane_surface",
    "plot_escape_law",
    "plot_loss_curves",
    "plot_loss_surface",
    "plot_optimization_paths",
    "plot_paired_losses",
    "plot_survival",
    "random_weight_paths",
    "selection_probabilities",
    "sgd_escape_time",
    "share_table",
    "simulate_escape",
    "simulate_occupancy",
    "top_eigenvalues",
    "trace",
    "validation_paths",
    "weight_path",
]

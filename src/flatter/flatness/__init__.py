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
from flatter.flatness.escape import (
    EscapeTime,
    determinant_ratio,
    leap_escape_time,
    noise_amplification,
    selection_probabilities,
    sgd_escape_time,
)
from flatter.flatness.escape_simulation import Occupancy, simulate_escape, simulate_occupancy
from flatter.flatness.objective import Objective, measuring
from flatter.flatness.plots_escape import plot_escape_law, plot_survival
from flatter.flatness.plots_test_functions import plot_optimization_paths
from flatter.flatness.probes import DiagonalEstimate, TraceEstimate
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
    "Objective",
    "Occupancy",
    "OptimizationPaths",
    "ReachedShare",
    "TestFunction",
    "TraceEstimate",
    "WaitingTimes",
    "by_parameter",
    "determinant_ratio",
    "diagonal",
    "exact_escape",
    "exponential_test",
    "fit_law",
    "gradient_norm",
    "hvp",
    "leap_escape_time",
    "measuring",
    "noise_amplification",
    "optimization_paths",
    "paired_p_value",
    "plot_escape_law",
    "plot_optimization_paths",
    "plot_survival",
    "selection_probabilities",
    "sgd_escape_time",
    "share_table",
    "simulate_escape",
    "simulate_occupancy",
    "top_eigenvalues",
    "trace",
]

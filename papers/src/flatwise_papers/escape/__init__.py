"""The papers' theory of escape from minima, simulated, and their test functions."""

from __future__ import annotations

from flatwise_papers.escape.escape import (
    EscapeTime,
    determinant_ratio,
    leap_escape_time,
    noise_amplification,
    selection_probabilities,
    sgd_escape_time,
)
from flatwise_papers.escape.escape_simulation import Occupancy, simulate_escape, simulate_occupancy
from flatwise_papers.escape.plots_escape import plot_escape_law, plot_survival
from flatwise_papers.escape.plots_test_functions import plot_optimization_paths
from flatwise_papers.escape.test_function_paths import (
    OPTIMIZERS,
    OptimizationPaths,
    ReachedShare,
    optimization_paths,
    paired_p_value,
    share_table,
)
from flatwise_papers.escape.test_functions import TEST_FUNCTIONS, TestFunction
from flatwise_papers.escape.waiting_times import ExponentialTest, FittedLaw, WaitingTimes, exponential_test, fit_law
from flatwise_papers.escape.wells import DoubleWell, ExactEscape, exact_escape

__all__ = [
    "OPTIMIZERS",
    "TEST_FUNCTIONS",
    "DoubleWell",
    "EscapeTime",
    "ExactEscape",
    "ExponentialTest",
    "FittedLaw",
    "Occupancy",
    "OptimizationPaths",
    "ReachedShare",
    "TestFunction",
    "WaitingTimes",
    "determinant_ratio",
    "exact_escape",
    "exponential_test",
    "fit_law",
    "leap_escape_time",
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
]

"""The papers' theory of escape from minima, simulated, and their test functions."""

from __future__ import annotations

from flatwise_papers.escape.double_well import (
    DoubleWell,
    ExactEscape,
    Occupancy,
    exact_escape,
    simulate_escape,
    simulate_occupancy,
)
from flatwise_papers.escape.test_functions import (
    OPTIMIZERS,
    TEST_FUNCTIONS,
    OptimizationPaths,
    ReachedShare,
    TestFunction,
    optimization_paths,
    paired_p_value,
    plot_optimization_paths,
    share_table,
)
from flatwise_papers.escape.theory import (
    EscapeTime,
    determinant_ratio,
    leap_escape_time,
    noise_amplification,
    selection_probabilities,
    sgd_escape_time,
)
from flatwise_papers.escape.waiting_times import (
    ExponentialTest,
    FittedLaw,
    WaitingTimes,
    exponential_test,
    fit_law,
    plot_escape_law,
    plot_survival,
)

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

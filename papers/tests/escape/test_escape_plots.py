"""The plot functions draw what they are given, on the caller's axes."""

import math

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from matplotlib.figure import Figure

from flatwise_papers.escape.test_functions import (
    BEALE_LIKE,
    OPTIMIZERS,
    TWO_WELLS,
    optimization_paths,
    plot_optimization_paths,
)
from flatwise_papers.escape.waiting_times import FittedLaw, WaitingTimes, plot_escape_law, plot_survival


@pytest.fixture
def axes():
    return Figure().subplots()


def test_escape_law(axes):
    samples = [WaitingTimes([1.0, 3.0], 0, 5.0), WaitingTimes([4.0, 8.0], 0, 9.0)]
    plot_escape_law(axes, "arm", [1.0, 2.0], samples, FittedLaw(1.0, 0.9, 1.1, -0.3, 0.0, math.nan))
    (container,) = axes.containers
    assert container.lines[0].get_xdata().tolist() == [1.0, 2.0]
    assert container.lines[0].get_ydata().tolist() == [2.0, 6.0]
    segments = container.lines[2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in segments] == [pytest.approx(sample.interval()) for sample in samples]
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), np.exp([0.7, 1.7]))
    assert axes.get_yscale() == "log"
    assert axes.get_legend_handles_labels()[1] == ["arm"]


def test_survival(axes):
    plot_survival(axes, "arm", WaitingTimes([3.0, 1.0], 2, 5.0))
    steps, law = axes.lines
    assert steps.get_xdata().tolist() == [0.0, 1.0, 3.0, 5.0]
    assert steps.get_ydata().tolist() == [1.0, 0.75, 0.5, 0.5]
    assert law.get_ydata().tolist() == pytest.approx([1.0, math.exp(-5 / 7)])


def test_paths(axes):
    entries = optimization_paths(TWO_WELLS, {"plain": None}, lr=0.01, steps=5, runs=3)
    plot_optimization_paths(axes, entries, run=2, points=20)
    lines = axes.lines[::2][: len(OPTIMIZERS)]
    for line, entry in zip(lines, entries, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), entry.paths[:, 2].numpy())
    assert axes.get_legend_handles_labels()[1] == list(OPTIMIZERS)
    assert axes.get_xlim() == TWO_WELLS.region[0]


def test_paths_of_different_functions_or_none_are_refused(axes):
    entries = [
        optimization_paths(function, {"plain": None}, lr=0.01, steps=1, runs=1)[0]
        for function in (TWO_WELLS, BEALE_LIKE)
    ]
    for wrong in (entries, []):
        with pytest.raises(ValueError, match="one and the same"):
            plot_optimization_paths(axes, wrong)

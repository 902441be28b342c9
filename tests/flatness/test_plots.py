"""The plot functions draw what they are given, on the caller's axes."""

import math

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

from matplotlib.figure import Figure

from flatwise.flatness import (
    FlatnessError,
    LossCurve,
    LossCurves,
    LossGrid,
    LossSurface,
    plot_loss_curves,
    plot_loss_surface,
    plot_paired_losses,
)


@pytest.fixture
def axes():
    return Figure().subplots()


CURVES = LossCurves(
    (1.0, 0.0, 2.0),
    (
        LossCurve("a", "train", 1.0, ((2.0, 1.0, 3.0), (4.0, 1.0, math.inf))),
        LossCurve("a", "test", 1.0, ((5.0, 1.0, 3.0), (5.0, 1.0, 3.0))),
        LossCurve("b", "train", 1.0, ((1.0, 1.0, 1.0), (1.0, 1.0, math.nan))),
    ),
    end=2.0,
)


def test_curves(axes):
    plot_loss_curves(axes, CURVES, xlabel="α", log=True)
    labels = axes.get_legend_handles_labels()
    assert labels[1] == ["a, train", "a, test", "b, train"]
    bold = labels[0]
    assert bold[0].get_xdata().tolist() == [0, 1, 2]
    np.testing.assert_array_equal(bold[0].get_ydata(), [1, 3, math.nan])  # the mean, with a gap where it is infinite
    assert bold[1].get_color() == bold[0].get_color() != bold[2].get_color()
    assert bold[2].get_linestyle() == bold[0].get_linestyle() != bold[1].get_linestyle()
    assert len(axes.lines) == 3 * (2 + 1) + 1
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [1, 2, 3])
    assert axes.lines[-1].get_xdata() == [2.0, 2.0]
    assert (axes.get_xlabel(), axes.get_yscale()) == ("α", "log")


def test_one_curve_of_one_direction(axes):
    plot_loss_curves(axes, LossCurves((0.0, 1.0), (LossCurve("model", "data", 1.0, ((1.0, 2.0),)),)))
    (line,) = axes.lines
    assert line.get_label() == "model"


def test_pairs(axes):
    plot_paired_losses(axes, CURVES, "a", "b", distance=1.0, data="train")
    assert axes.lines[0].get_xydata().tolist() == [[2, 1], [4, 1]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("loss of a", "loss of b")
    assert not axes.texts
    plot_paired_losses(axes, CURVES, "a", "b", distance=2.0, data="train")
    assert axes.lines[2].get_xydata().tolist() == [[3, 1]]
    assert axes.texts[0].get_text() == "1 not finite"
    with pytest.raises(FlatnessError, match="distance must be one of"):
        plot_paired_losses(axes, CURVES, "a", "b", distance=1.5, data="train")


def test_surface(axes):
    grid = LossGrid("m", "d", 0.0, ((0.0, 1.0), (2.0, 3.0), (math.inf, math.nan)))
    surface = LossSurface((0.0, 1.0), (0.0, 2.0, 1.0), (grid,), {"m": (0.0, 0.0), "n": (1.0, 2.0)})
    drawn = plot_loss_surface(axes, surface, levels=[0, 1, 2, 3])
    assert drawn.levels.tolist() == [0, 1, 2, 3]
    # Sorted by y: the row that is not finite is the middle one.
    assert axes.get_ylim() == (0, 2) and axes.get_xlim() == (0, 1)
    assert [text.get_text() for text in axes.texts] == ["m", "n"]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[0, 0]], [[1, 2]]]


@pytest.mark.parametrize(
    ("losses", "message"), [(((1.0, 2.0),), r"the grid is \(1, 2\)"), (((math.nan,) * 2,) * 2, "with 0 finite losses")]
)
def test_nothing_to_draw(axes, losses, message):
    surface = LossSurface((0.0, 1.0), (0.0, 1.0)[: len(losses)], (LossGrid("m", "d", 0.0, losses),))
    with pytest.raises(FlatnessError, match=message):
        plot_loss_surface(axes, surface)


def test_two_calls_on_one_axes_have_different_colours(axes):
    one = LossCurves((0.0, 1.0), (LossCurve("model", "data", 1.0, ((1.0, 2.0),)),))
    plot_loss_curves(axes, one, label="first")
    plot_loss_curves(axes, CURVES)
    plot_loss_curves(axes, one)
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["first", "a, train", "a, test", "b, train", "model"]
    first, a, same, b, last = (handle.get_color() for handle in handles)
    assert a == same and len({first, a, b, last}) == 4


def test_the_ends_of_paths_of_their_own_have_their_models_colours(axes):
    rows = ((1.0, 2.0),)
    curves = (LossCurve("a", "data", 1.0, rows), LossCurve("b", "data", 1.0, rows))
    plot_loss_curves(axes, LossCurves((0.0, 1.0), curves, ends={"a": 0.5, "b": 1.5}), label="run")
    bold, ends = axes.lines[:2], axes.lines[2:]
    assert [line.get_label() for line in bold] == ["run, a", "run, b"]
    assert [line.get_xdata()[0] for line in ends] == [0.5, 1.5]
    assert [line.get_color() for line in ends] == [line.get_color() for line in bold]

"""Plots of losses along lines and over planes, on matplotlib axes of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flatwise.flatness.guard import FlatnessError
from flatwise.flatness.paths import LossCurve, LossCurves
from flatwise.flatness.surfaces import LossSurface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet


# Okabe and Ito's colours, told apart by colour-blind readers, without the yellow; they repeat beyond seven.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", ":", "-.")


def plot_loss_curves(
    axes: Axes, curves: LossCurves, *, xlabel: str = "distance", log: bool = False, label: str | None = None
) -> None:
    """Loss against distance: the mean over the directions bold, each direction thin and transparent.

    Each model has a colour that no line on the axes has yet, each data set a line style. Where a loss is not finite the
    line has a gap. The other end of a path is a vertical line.

    Args:
        axes: where to draw.
        curves: what was measured.
        xlabel: text of the x axis. Default: ``"distance"``.
        log: whether the y axis is logarithmic. Default: ``False``.
        label: name of these curves in the legend, in place of the model's name, or before it if there are several
            models; default: the names alone.
    """
    order = np.argsort(curves.distances)
    x = np.asarray(curves.distances)[order]
    models, sets = _names(curves.curves)
    colors = _free_colors(axes)
    for curve in curves.curves:
        color = colors[models.index(curve.model) % len(colors)]
        style = _STYLES[sets.index(curve.data) % len(_STYLES)]
        if len(curve.losses) > 1:
            for losses in curve.losses:
                axes.plot(x, _gaps(losses)[order], linestyle=style, color=color, linewidth=0.7, alpha=0.3)
        text = _label(curve, models, sets, label)
        axes.plot(x, _gaps(curve.mean)[order], linestyle=style, color=color, linewidth=1.8, label=text, zorder=3)
    if curves.end is not None:
        axes.axvline(curves.end, color="0.6", linewidth=0.8, zorder=0)
    for name, end in curves.ends.items():
        axes.axvline(end, color=colors[models.index(name) % len(colors)], linewidth=0.8, zorder=0)
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("loss")


def plot_paired_losses(
    axes: Axes, curves: LossCurves, x: str, y: str, *, distance: float, data: str | None = None
) -> None:
    """One model's loss against another's, a point per direction (the paper's Figure 4), and the diagonal.

    Points above the diagonal are directions in which the model on the x axis has the smaller loss. A direction in which
    a loss is not finite has no point; the corner says how many these are.

    Args:
        axes: where to draw.
        curves: of both models along the same directions.
        x, y: the models' names.
        distance: at which of ``curves.distances``.
        data: which data set; default: the only one.

    Raises:
        FlatnessError: no such model, data set or distance.
    """
    if distance not in curves.distances:
        raise FlatnessError(f"distance must be one of {curves.distances}; got {distance}")
    index = curves.distances.index(distance)
    pairs = np.array([[row[index] for row in curves.curve(name, data).losses] for name in (x, y)], dtype=np.float64)
    finite = np.isfinite(pairs).all(axis=0)
    axes.plot(*pairs[:, finite], "o", color=_COLORS[0], markersize=4, alpha=0.7)
    axes.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    if not finite.all():
        axes.annotate(f"{(~finite).sum()} not finite", (0.02, 0.95), xycoords="axes fraction", fontsize=8)
    axes.set_xlabel(f"loss of {x}")
    axes.set_ylabel(f"loss of {y}")


def plot_loss_surface(
    axes: Axes,
    surface: LossSurface,
    *,
    model: str | None = None,
    data: str | None = None,
    levels: int | Sequence[float] = 15,
) -> QuadContourSet:
    """Contours of one model's loss over one data set. Where the loss is not finite nothing is drawn.

    Args:
        axes: where to draw.
        surface: what was measured.
        model, data: which; default: the only ones.
        levels: how many contours, or their losses: give the same ones to compare models. Default: 15.

    Returns:
        The contours, for a colour bar.

    Raises:
        FlatnessError: no such model or data set, or more than one; no loss is finite; a grid of fewer than 2 × 2.
    """
    losses = _gaps(surface.grid(model, data).losses)
    if min(losses.shape) < 2 or np.isnan(losses).all():
        raise FlatnessError(
            f"nothing to draw: the grid is {losses.shape} with {np.isfinite(losses).sum()} finite losses"
        )
    columns, rows = np.argsort(surface.xs), np.argsort(surface.ys)
    x, y = np.asarray(surface.xs)[columns], np.asarray(surface.ys)[rows]
    values = np.ma.masked_invalid(losses[np.ix_(rows, columns)])
    drawn = axes.contourf(x, y, values, levels=levels, cmap="viridis")
    axes.contour(x, y, values, levels=drawn.levels, colors="white", linewidths=0.4)
    for name, (across, up) in (surface.points or {"": (0.0, 0.0)}).items():
        axes.plot(across, up, "o", color="white", markersize=5, markeredgecolor="black")
        axes.annotate(name, (across, up), textcoords="offset points", xytext=(5, 5), color="white", fontsize=8)
    return drawn


def _names(curves: Sequence[LossCurve]) -> tuple[list[str], list[str]]:
    return list(dict.fromkeys(c.model for c in curves)), list(dict.fromkeys(c.data for c in curves))


def _free_colors(axes: Axes) -> list[str]:
    """The colours, those first that no line on the axes has."""
    taken = {str(line.get_color()) for line in axes.get_lines()}
    return sorted(_COLORS, key=lambda color: color in taken)


def _label(curve: LossCurve, models: list[str], sets: list[str], label: str | None) -> str:
    parts = [curve.model] * (len(models) > 1) + [curve.data] * (len(sets) > 1)
    if label is not None:
        parts.insert(0, label)
    return ", ".join(parts) or curve.model


def _gaps(losses: Sequence[float] | Sequence[Sequence[float]]) -> np.ndarray:
    """An array with NaN where a loss is not finite: infinite values would move the axes."""
    values = np.asarray(losses, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)

"""Optimization paths as pictures, on matplotlib axes that the caller made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from flatwise_papers.escape.test_function_paths import OptimizationPaths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Four of Okabe and Ito's colours, told apart by colour-blind readers; they repeat beyond four.
_COLORS = ("#D55E00", "#009E73", "#0072B2", "#CC79A7")


def plot_optimization_paths(axes: Axes, paths: Sequence[OptimizationPaths], run: int = 0, points: int = 200) -> None:
    """One run of each of some paths over the contours of their test function, a colour per optimizer.

    The start is a circle, each end a square, the global minimum a star. What leaves the region is cut off.

    Args:
        axes: where to draw.
        paths: paths over the same function, at least one.
        run: which of the starts; default: the first.
        points: grid points of the contours along each axis; default 200.

    Raises:
        ValueError: no paths, or of different functions.
    """
    if not paths or any(entry.function is not paths[0].function for entry in paths):
        raise ValueError("plot_optimization_paths needs paths over one and the same test function, at least one")
    function = paths[0].function
    x, y = (torch.linspace(low, high, points, dtype=torch.float64, device="cpu") for low, high in function.region)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    # Ranks in place of values: a contour line at every tenth of the area, whether the function spans 4 or 10,000.
    ranks = function.formula(grid.reshape(-1, 2)).argsort().argsort().reshape(points, points)
    axes.contourf(x.numpy(), y.numpy(), ranks.numpy() / points**2, levels=12, cmap="Greys", alpha=0.45)
    for index, entry in enumerate(paths):
        line = entry.paths[:, run].numpy()
        color = _COLORS[index % len(_COLORS)]
        axes.plot(line[:, 0], line[:, 1], color=color, linewidth=1, label=entry.optimizer)
        axes.plot(line[-1:, 0], line[-1:, 1], "s", color=color, markersize=5, markeredgecolor="white", zorder=4)
    start = paths[0].paths[0, run].numpy()
    axes.plot(*start, "o", color="black", markersize=5, zorder=5)
    axes.plot(*function.minimum, "*", color="black", markersize=9, markeredgecolor="white", zorder=5)
    axes.set_xlim(*function.region[0])
    axes.set_ylim(*function.region[1])

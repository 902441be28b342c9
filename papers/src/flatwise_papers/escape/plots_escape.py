"""Escape times as pictures, on matplotlib axes that the caller made. They draw what was computed, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flatwise_papers.escape.waiting_times import FittedLaw, WaitingTimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_escape_law(
    axes: Axes,
    label: str,
    exponents: Sequence[float],
    samples: Sequence[WaitingTimes],
    law: FittedLaw | None = None,
    color: str | None = None,
) -> None:
    """Mean escape times with their 95 % intervals against the predicted exponent, and the fitted law as a line.

    Args:
        axes: where to draw; its y axis becomes logarithmic.
        label: the legend's text.
        exponents, samples: as :func:`fit_law` takes them.
        law: what it returned; default: no line.
        color: any colour of matplotlib's; default: the next of its cycle.
    """
    means = np.array([sample.mean for sample in samples])
    lows, highs = np.array([sample.interval() for sample in samples]).T
    errors = np.stack([means - lows, highs - means])
    drawn = axes.errorbar(
        exponents, means, yerr=errors, fmt="o", markersize=4, capsize=2, color=color, label=label, zorder=3
    )
    if law is not None:
        x = np.array([min(exponents), max(exponents)])
        axes.plot(x, np.exp(law.intercept + law.slope * x), color=drawn.lines[0].get_color(), linewidth=1)
    axes.set_yscale("log")
    axes.set_xlabel("predicted exponent")
    axes.set_ylabel("mean updates until the escape")


def plot_survival(axes: Axes, label: str, sample: WaitingTimes, color: str | None = None) -> None:
    """The share of replicas that still wait, and the exponential law with the fitted mean, dashed.

    Args:
        axes: where to draw; its y axis becomes logarithmic, so that an exponential law is a straight line.
        label: the legend's text.
        sample: the waiting times.
        color: any colour of matplotlib's; default: the next of its cycle.
    """
    times = np.concatenate([[0.0], np.sort(sample.times), [sample.horizon]])
    events = np.arange(len(sample.times) + 1)
    shares = 1 - np.append(events, events[-1]) / sample.replicas
    line = axes.step(times, shares, where="post", color=color, linewidth=1.5, label=label)[0]
    axes.plot(
        [0, sample.horizon],
        [1.0, np.exp(-sample.horizon / sample.mean)],
        linestyle="--",
        color=line.get_color(),
        linewidth=1,
    )
    axes.set_yscale("log")
    axes.set_xlabel("updates")
    axes.set_ylabel("share that has not escaped")

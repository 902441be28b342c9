"""Waiting times, some cut off by the end of the run: their mean, whether they are exponential, and a fitted law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import special

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WaitingTimes:
    """How long each of some independent replicas waited for its event, in runs of one length.

    Attributes:
        times: shape (events,): the waiting times of those replicas whose event came, in (0, horizon].
        waiting: number of replicas that still waited at the end: their times are censored, not lost.
        horizon: length of the runs, in the unit of the times.
    """

    times: Array
    waiting: int
    horizon: float

    def __post_init__(self) -> None:
        times = np.asarray(self.times, dtype=np.float64)
        object.__setattr__(self, "times", times)
        if not 0 < self.horizon < math.inf:
            raise ValueError(f"WaitingTimes: horizon must be finite and above 0, got {self.horizon!r}")
        if times.ndim != 1 or not ((times > 0) & (times <= self.horizon)).all():
            raise ValueError("WaitingTimes: times must be a list of numbers in (0, horizon]")
        if self.waiting < 0 or len(times) + self.waiting == 0:
            raise ValueError(
                f"WaitingTimes: needs at least one replica, got {len(times)} times and waiting={self.waiting!r}"
            )

    @property
    def replicas(self) -> int:
        """Number of replicas, those that still waited among them."""
        return len(self.times) + self.waiting

    @property
    def mean(self) -> float:
        """Maximum-likelihood mean of an exponential distribution: all time waited, over the events; ∞ without events.

        The mean of the observed times alone would be too short: the long ones are those that are missing.
        """
        return self._exposure / len(self.times) if len(self.times) else math.inf

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean: ``2 T/χ²_{2d+2}`` to ``2 T/χ²_{2d}`` with d events in the total time T.

        It covers at least as often as it says, also without a single event (then it has no upper end).

        Raises:
            ValueError: ``confidence`` is not in (0, 1).
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, both excluded; got {confidence!r}")
        tail, events = (1 - confidence) / 2, len(self.times)
        low = self._exposure / special.gammainccinv(events + 1, tail)
        return float(low), float(self._exposure / special.gammaincinv(events, tail)) if events else math.inf

    @property
    def _exposure(self) -> float:
        return float(self.times.sum() + self.waiting * self.horizon)


@dataclass(frozen=True, slots=True)
class ExponentialTest:
    """What :func:`exponential_test` found.

    Attributes:
        distance: Kolmogorov–Smirnov distance: the largest difference between the observed distribution function and the
            fitted exponential one, up to the horizon.
        p: probability of at least this distance if the times are exponential.
    """

    distance: float
    p: float


def exponential_test(sample: WaitingTimes, simulations: int = 999, seed: int = 0) -> ExponentialTest:
    """Kolmogorov–Smirnov test of exponential waiting times, with censoring and with a mean that was fitted.

    The textbook's p value is for a mean known beforehand and is far too large for a fitted one. Here it is the rank of
    the distance among those of simulated exponential samples, censored and fitted alike.

    Args:
        sample: the times, at least two events.
        simulations: how many samples; the smallest p is 1/(simulations + 1). Default: 999.
        seed: of a generator of its own.

    Raises:
        ValueError: fewer than two events.
    """
    if len(sample.times) < 2:
        raise ValueError(f"exponential_test needs at least two events, got {len(sample.times)}")
    observed = _distance(np.sort(sample.times), sample.mean, sample)
    rng = np.random.default_rng(seed)
    larger = 0
    for _ in range(simulations):
        times = np.sort(rng.exponential(sample.mean, sample.replicas))
        times = times[times <= sample.horizon]
        if len(times) == 0:
            continue
        mean = (times.sum() + (sample.replicas - len(times)) * sample.horizon) / len(times)
        larger += _distance(times, mean, sample) >= observed
    return ExponentialTest(observed, (larger + 1) / (simulations + 1))


def _distance(times: Array, mean: float, sample: WaitingTimes) -> float:
    """The largest difference, from sorted ``times``: just before or at an event, or at the horizon."""
    expected = -np.expm1(-np.append(times, sample.horizon) / mean)
    observed = np.arange(len(times) + 1) / sample.replicas
    return float(max((observed[1:] - expected[:-1]).max(), (expected - observed).max()))


@dataclass(frozen=True, slots=True)
class FittedLaw:
    """A straight line through the logarithms of mean waiting times.

    Attributes:
        slope: by how much the logarithm of the mean grows per unit of the predicted exponent; 1 if the law holds.
        low, high: the slope's 95 % interval, from the events' number alone (a logarithm of a mean over d events has the
            standard error 1/√d).
        intercept: logarithm of the mean at a predicted exponent of 0.
        chi2: sum of the squared residuals in standard errors; about n − 2 if a line describes the n means.
        p: probability of at least this ``chi2`` on a line; NaN for two means.
    """

    slope: float
    low: float
    high: float
    intercept: float
    chi2: float
    p: float


def fit_law(exponents: Sequence[float], samples: Sequence[WaitingTimes]) -> FittedLaw:
    """Weighted least squares: ``log mean_i = intercept + slope · exponent_i``.

    Args:
        exponents: what a theory says stands in the exponential, for each sample; finite, at least two different ones.
        samples: the waiting times, each with at least one event.

    Raises:
        ValueError: as described, or the numbers of exponents and samples differ.
    """
    x = np.asarray(exponents, dtype=np.float64)
    if len(x) != len(samples) or not np.isfinite(x).all() or len(set(x.tolist())) < 2:
        raise ValueError("fit_law needs one finite exponent per sample, and at least two different ones")
    events = np.array([len(sample.times) for sample in samples], dtype=np.float64)
    if not events.all():
        raise ValueError("fit_law needs at least one event in every sample: run longer, or leave that sample out")
    y = np.log([sample.mean for sample in samples])
    center_x, center_y = np.average(x, weights=events), np.average(y, weights=events)
    spread = float((events * (x - center_x) ** 2).sum())
    slope = float((events * (x - center_x) * (y - center_y)).sum() / spread)
    half = 1.959964 / math.sqrt(spread)
    intercept = float(center_y - slope * center_x)
    chi2 = float((events * (y - intercept - slope * x) ** 2).sum())
    p = float(special.chdtrc(len(x) - 2, chi2)) if len(x) > 2 else math.nan
    return FittedLaw(slope, slope - half, slope + half, intercept, chi2, p)


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

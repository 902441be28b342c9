"""A double well of parabolas with minibatches: exact escape times, and simulated ones with flatwise's own noise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from flatwise._attach import perturb
from flatwise.distributions import Constant, Distribution
from flatwise.perturbation import Perturbation, Scope
from flatwise_papers.escape.theory import EscapeTime, noise_amplification, sgd_escape_time
from flatwise_papers.escape.waiting_times import Array, WaitingTimes


@dataclass(frozen=True)
class DoubleWell:
    """A loss of one weight x: a parabola at each of two minima, and an upside-down one between them, at the saddle 0.

    The pieces meet with equal value and slope, so the curvature is constant on each and known. The loss of sample i is
    ``L(x) + z_i S(x)``, where the z have mean 0 and variance 1 over the samples: their mean is L, and the gradient of a
    minibatch has the variance ``Σ(x) = S'(x)² / batch size``.

    Args:
        barriers: loss at the saddle above the left and the right minimum, both > 0.
        curvatures: H > 0 at the left and the right minimum.
        saddle_curvature: H < 0 at the saddle.
        noise: ``"hessian"``: the variance of a sample's gradient is ``noise_scale · |H(x)|``, as the theorem assumes
            (and as for a Gaussian likelihood); ``"constant"``: it is ``noise_scale``. Default: ``"hessian"``.
        noise_scale: > 0; default 1.

    Raises:
        ValueError: an argument is outside the range above or not finite.
    """

    barriers: tuple[float, float]
    curvatures: tuple[float, float] = (1.0, 1.0)
    saddle_curvature: float = -1.0
    noise: Literal["hessian", "constant"] = "hessian"
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("barriers", "curvatures"):
            values = getattr(self, name)
            if len(values) != 2 or not all(0 < value < math.inf for value in values):
                raise ValueError(f"DoubleWell: {name} must be two finite numbers above 0, got {values!r}")
        if not -math.inf < self.saddle_curvature < 0:
            raise ValueError(f"DoubleWell: saddle_curvature must be finite and negative, got {self.saddle_curvature!r}")
        if self.noise not in ("hessian", "constant"):
            raise ValueError(f"DoubleWell: noise must be 'hessian' or 'constant', got {self.noise!r}")
        if not 0 < self.noise_scale < math.inf:
            raise ValueError(f"DoubleWell: noise_scale must be finite and above 0, got {self.noise_scale!r}")

    @property
    def slopes(self) -> tuple[float, float]:
        """The steepest slope on either side, where the parabolas meet: ``sqrt(2 ΔL / (1/H_a + 1/|H_b|))``."""
        h = abs(self.saddle_curvature)
        left, right = (math.sqrt(2 * b / (1 / c + 1 / h)) for b, c in zip(self.barriers, self.curvatures, strict=True))
        return left, right

    @property
    def joints(self) -> tuple[float, float]:
        """Where the parabolas meet: x on the left (negative) and on the right."""
        left, right = (slope / abs(self.saddle_curvature) for slope in self.slopes)
        return -left, right

    @property
    def minima(self) -> tuple[float, float]:
        """Where the two minima are."""
        (left, right), (a, b) = self.joints, self.slopes
        return left - a / self.curvatures[0], right + b / self.curvatures[1]

    @property
    def path_weights(self) -> tuple[float, float]:
        """The theorem's s of either side: the share of the barrier that belongs to the minimum's parabola."""
        h = abs(self.saddle_curvature)
        return h / (self.curvatures[0] + h), h / (self.curvatures[1] + h)

    def loss(self, x: Tensor) -> Tensor:
        """L(x), 0 at the saddle; any shape."""
        left, right = self.joints
        middle = x.clamp(left, right)
        value = middle.square() * (self.saddle_curvature / 2)
        for beyond, slope, curvature in (
            ((x - left).clamp(max=0), self.slopes[0], self.curvatures[0]),
            ((x - right).clamp(min=0), -self.slopes[1], self.curvatures[1]),
        ):
            value = value + slope * beyond + curvature / 2 * beyond.square()
        return value

    def gradient(self, x: Tensor) -> Tensor:
        """L'(x), the mean of the samples' gradients; any shape."""
        left, right = self.joints
        at_saddle = x.clamp(left, right) * self.saddle_curvature
        return at_saddle + (x - left).clamp(max=0) * self.curvatures[0] + (x - right).clamp(min=0) * self.curvatures[1]

    def sample_noise(self, x: Tensor) -> Tensor:
        """S'(x): the standard deviation over the samples of their gradients at x; any shape."""
        if self.noise == "constant":
            return torch.full_like(x, math.sqrt(self.noise_scale))
        left, right = self.joints
        amplitudes = [math.sqrt(self.noise_scale * abs(h)) for h in (*self.curvatures, self.saddle_curvature)]
        value = torch.full_like(x, amplitudes[2])
        value[x < left] = amplitudes[0]
        value[x > right] = amplitudes[1]
        return value

    def escape_time(self, lr: float, batch_size: int, factor: Distribution | None = None) -> EscapeTime:
        """:func:`sgd_escape_time` from the left minimum, with this well's own numbers."""
        curvature = self.curvatures[0]
        at_minimum, at_saddle = (
            self.noise_scale * (abs(h) if self.noise == "hessian" else 1.0) / batch_size
            for h in (curvature, self.saddle_curvature)
        )
        return sgd_escape_time(
            barrier=self.barriers[0],
            minimum_curvature=curvature,
            saddle_curvature=self.saddle_curvature,
            lr=lr,
            minimum_noise=at_minimum,
            saddle_noise=at_saddle,
            path_weight=self.path_weights[0],
            factor=factor,
        )


@dataclass(frozen=True, slots=True)
class ExactEscape:
    """What :func:`exact_escape` computes.

    Attributes:
        updates: mean number of updates from the left minimum until x is beyond the right joint.
        right: share of its updates that a run without end spends at x > 0, on the right minimum's side.
    """

    updates: float
    right: float


def exact_escape(well: DoubleWell, lr: float, batch_size: int, factor: Distribution | None = None) -> ExactEscape:
    """Mean escape time and occupancy of SGD on a double well, by linear algebra: no diffusion limit, no sampling error.

    SGD is a Markov chain. One update from x is normal with mean ``x − η f L'(x)`` and standard deviation
    ``η |f| S'(x)/√B``, averaged over the factor f; here it moves between the points of a fine grid. That is exact up to
    the grid where the noise of a minibatch is normal and a new factor is drawn at every step.

    Args:
        well: the loss.
        lr: η > 0, well below 2/H.
        batch_size: B, samples in a minibatch, ≥ 1.
        factor: distribution of the rate's factor; default: none (the factor is 1).

    Raises:
        ValueError: the grid would need more than 2000 points in one parabola: the noise of one update is too small
            beside the well.
    """
    factor = Constant(1.0) if factor is None else factor
    edges = _edges(well, lr, batch_size, factor)
    grid, widths = (edges[1:] + edges[:-1]) / 2, torch.diff(edges)
    points, inner = len(grid), edges[1:-1]
    drift, noise = lr * well.gradient(grid), lr * well.sample_noise(grid) / math.sqrt(batch_size)

    below = torch.zeros(points, points - 1, dtype=torch.float64, device="cpu")  # probability to end below an edge
    values, weights = _quantiles(factor)
    for f, weight in zip(values.tolist(), weights.tolist(), strict=True):
        # Sheppard's correction: collecting into bins adds a variance of width²/12.
        spread = ((f * noise).square() - widths.square() / 12).clamp_min(1e-24).sqrt()[:, None]
        below += weight * torch.special.ndtr((inner - (grid - f * drift)[:, None]) / spread)
    zero, one = below.new_zeros(points, 1), below.new_ones(points, 1)
    step = torch.diff(torch.cat([zero, below, one], dim=1), dim=1)  # [from, to]; what would leave the grid stays on it

    identity = torch.eye(points, dtype=torch.float64, device="cpu")
    inside = int(torch.count_nonzero(grid < well.joints[1]))
    remaining = (identity - step)[:inside, :inside]
    times = torch.linalg.solve(remaining, torch.ones(inside, dtype=torch.float64, device="cpu"))
    updates = float(np.interp(well.minima[0], grid[:inside].numpy(), times.numpy()))

    balance = step.T - identity
    balance[-1] = 1.0  # one equation is redundant: the probabilities sum to 1 in its place
    stationary = torch.linalg.solve(balance, identity[-1])
    return ExactEscape(updates, float(stationary[grid > 0].sum()))


def _edges(well: DoubleWell, lr: float, batch_size: int, factor: Distribution) -> Tensor:
    """Edges of the grid's bins: in each parabola equally wide, at most a quarter of an update's standard deviation.

    From 8 standard deviations left of the left minimum to as many right of the right one. The joints and the saddle
    are edges: a bin that a joint cuts would have two noises.
    """
    (left, right), (first, last) = well.joints, well.minima

    def noise_at(x: float) -> float:
        return float(well.sample_noise(torch.tensor([x], dtype=torch.float64, device="cpu"))) / math.sqrt(batch_size)

    ends = []
    for minimum, curvature, sign in ((first, well.curvatures[0], -1), (last, well.curvatures[1], 1)):
        variance = lr * noise_amplification(factor) * noise_at(minimum) ** 2 / (2 * curvature)
        ends.append(minimum + sign * 8 * math.sqrt(variance))
    stretches = []
    for low, high in itertools.pairwise((ends[0], left, 0.0, right, ends[1])):
        bins = math.ceil((high - low) / (0.25 * lr * noise_at((low + high) / 2)))
        if bins > 2000:
            raise ValueError(
                f"exact_escape would need {bins} grid points between {low:.3g} and {high:.3g} (at most 2000): raise "
                "the rate, or lower the barriers or the batch size"
            )
        stretches.append(torch.linspace(low, high, bins + 1, dtype=torch.float64, device="cpu")[:-1])
    return torch.cat([*stretches, torch.tensor([ends[1]], dtype=torch.float64, device="cpu")])


def _quantiles(factor: Distribution, count: int = 200) -> tuple[Tensor, Tensor]:
    """Values and weights that stand for a factor: evenly spaced quantiles, with its exact mean and variance."""
    words = ((torch.arange(count, dtype=torch.float64, device="cpu") + 0.5) / count * 2**32).long()
    values = factor.sample(words.to(torch.int32)).double()  # int32 keeps the low 32 bits
    spread = values.std(correction=0)
    if spread > 0:
        values = factor.mean + (values - values.mean()) * (factor.std / spread)
    distinct, counts = torch.unique(values, return_counts=True)
    return distinct, counts.double() / count


_SAMPLES = 1000
"""Samples of the dataset: normal quantiles, so that a minibatch's noise is close to normal at every batch size."""


def simulate_escape(
    well: DoubleWell,
    *,
    lr: float,
    batch_size: int | None = 1,
    perturbation: Perturbation | None = None,
    replicas: int = 1000,
    updates: int = 100_000,
    seed: int = 0,
    start: float | None = None,
) -> WaitingTimes:
    """Escape times from the left minimum: the number of updates until x is at the right joint or beyond.

    The right joint lies behind the saddle, where the loss is steepest: whatever gets there goes on to the right
    minimum. Each replica is one element of one parameter, trained by ``torch.optim.SGD`` in float64, with
    :func:`flatwise.perturb` if ``perturbation`` is given, and draws its own minibatches and its own factors.

    Args:
        well: the loss and its samples.
        lr: η > 0.
        batch_size: samples of a minibatch, drawn with replacement; ``None``: the gradient of all data, without noise.
        perturbation: the rate's noise; of any scope that needs no epochs, since with one weight all scopes mean the
            same. Default: none.
        replicas: number of independent runs; default 1000.
        updates: length of the runs; replicas that are still there at the end are censored. Default: 100,000.
        seed: of the minibatches and of the factors; torch's own generators are neither read nor moved.
        start: x at the beginning; default: the left minimum.

    Raises:
        ValueError: an argument is outside its range, or the perturbation has bounds or needs to know the epochs.
    """
    _check(lr, batch_size=batch_size, replicas=replicas, updates=updates)
    begin = well.minima[0] if start is None else start
    beyond = well.joints[1]
    if not -math.inf < begin < beyond:
        raise ValueError(f"start must be finite and left of the right joint at {beyond:.4g}, got {begin!r}")
    escaped_at = torch.full((replicas,), -1, dtype=torch.int64, device="cpu")
    starts = torch.full((replicas,), begin, dtype=torch.float64, device="cpu")
    for update, x in enumerate(_run(well, lr, batch_size, perturbation, updates, seed, starts), start=1):
        escaped_at[(x >= beyond) & (escaped_at < 0)] = update
        if update % 256 == 0 and bool((escaped_at >= 0).all()):
            break
    times = escaped_at[escaped_at >= 0].numpy().astype(np.float64)
    return WaitingTimes(times, replicas - len(times), float(updates))


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Where runs that go on and on are.

    Attributes:
        shares: shape (replicas,): the share of its updates that each run spent at x > 0, on the right minimum's side.
        share: their mean.
        low, high: its 95 % interval, from the spread over the replicas.
    """

    shares: Array
    share: float
    low: float
    high: float


def simulate_occupancy(
    well: DoubleWell,
    *,
    lr: float,
    batch_size: int = 1,
    perturbation: Perturbation | None = None,
    replicas: int = 1000,
    updates: int = 100_000,
    seed: int = 0,
) -> Occupancy:
    """The share of training that is spent on the right minimum's side: which minimum is selected in the long run.

    Half of the replicas start in either minimum, and the first half of the updates does not count. That is long enough
    if it is several times the shorter escape time.

    Args, Raises:
        as of :func:`simulate_escape`; at least two replicas.
    """
    _check(lr, batch_size=batch_size, replicas=replicas, updates=updates)
    if replicas < 2:
        raise ValueError(f"simulate_occupancy needs at least two replicas for an interval, got {replicas!r}")
    begin = torch.tensor(well.minima, dtype=torch.float64, device="cpu").repeat(replicas)[:replicas]
    counted = torch.zeros(replicas, dtype=torch.int64, device="cpu")
    for update, x in enumerate(_run(well, lr, batch_size, perturbation, updates, seed, begin)):
        if update >= updates // 2:
            counted += x > 0
    shares = counted.numpy() / (updates - updates // 2)
    half = 1.959964 * float(shares.std(ddof=1)) / math.sqrt(replicas)
    mean = float(shares.mean())
    return Occupancy(shares, mean, mean - half, mean + half)


def per_replica(perturbation: Perturbation, scope: Scope) -> Perturbation:
    """The perturbation with draws of its own for each replica; the replicas are the first dimension of one tensor.

    Args:
        perturbation: any that has no bounds on the rate and does not need to know the epochs.
        scope: ``"element"``, or ``"channel"`` for one draw per replica.

    Raises:
        ValueError: the perturbation has bounds, or acts by the epoch or in a window.
    """
    if perturbation.is_bounded:
        raise ValueError("min_lr and max_lr bound one rate, and each replica has its own here: leave them out")
    if perturbation.needs_steps_per_epoch:
        raise ValueError(
            "a simulation has no epochs: give a perturbation that is drawn at every step, such as "
            "Perturbation(distribution, scope, cadence='step')"
        )
    return replace(perturbation, scope=scope)


def _run(
    well: DoubleWell,
    lr: float,
    batch_size: int | None,
    perturbation: Perturbation | None,
    updates: int,
    seed: int,
    start: Tensor,
) -> Iterator[Tensor]:
    """Yields the positions of all replicas after every update: always the same tensor."""
    x = torch.nn.Parameter(start)
    optimizer = torch.optim.SGD([x], lr=lr)
    if perturbation is not None:
        perturb(optimizer, per_replica(perturbation, "element"), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    slopes = _samples()
    for _ in range(updates):
        position = x.detach()
        gradient = well.gradient(position)
        if batch_size is not None:
            batch = torch.randint(_SAMPLES, (batch_size, len(x)), generator=generator, device="cpu")
            gradient += well.sample_noise(position) * slopes[batch].mean(0)
        x.grad = gradient
        optimizer.step()
        yield position


def _check(lr: float, **counts: int | None) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and above 0, got {lr!r}")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")


def _samples() -> Tensor:
    """The z of the samples: quantiles of a normal distribution, with mean 0 and variance 1."""
    z = torch.special.ndtri((torch.arange(_SAMPLES, dtype=torch.float64, device="cpu") + 0.5) / _SAMPLES)
    standard: Tensor = z / z.std(correction=0)
    return standard

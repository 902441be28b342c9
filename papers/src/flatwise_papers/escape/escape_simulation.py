"""Many runs of SGD on a double well at once, with minibatches and with flatwise's own noise: when they escape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flatwise._attach import perturb
from flatwise.perturbation import Perturbation, Scope
from flatwise_papers.escape.waiting_times import Array, WaitingTimes
from flatwise_papers.escape.wells import DoubleWell

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
    positions = _run(
        well,
        lr,
        batch_size,
        perturbation,
        updates,
        seed,
        torch.full((replicas,), begin, dtype=torch.float64, device="cpu"),
    )
    for update, x in enumerate(positions, start=1):
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

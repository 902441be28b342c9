"""Paths of optimizers over a test function, with and without noise in the rate, and how many reach the minimum."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from scipy import stats as scipy_stats
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from flatwise._attach import perturb
from flatwise.perturbation import Perturbation
from flatwise_papers.escape.escape_simulation import per_replica
from flatwise_papers.escape.test_functions import TestFunction

OptimizerFactory = Callable[[list[Tensor], float], Optimizer]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "SGD": lambda parameters, lr: SGD(parameters, lr=lr),
    "momentum": lambda parameters, lr: SGD(parameters, lr=lr, momentum=0.9),
    "Adam": lambda parameters, lr: Adam(parameters, lr=lr),
    "RMSprop": lambda parameters, lr: RMSprop(parameters, lr=lr),
}
"""The four optimizers of RN's pictures, from parameters and a rate."""


@dataclass(frozen=True, slots=True)
class ReachedShare:
    """How many runs reached the minimum.

    Attributes:
        reached, runs: numbers of runs.
        low, high: exact (Clopper–Pearson) 95 % interval of the share.
    """

    reached: int
    runs: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """``reached / runs``."""
        return self.reached / self.runs


@dataclass(frozen=True)
class OptimizationPaths:
    """One optimizer's paths over one test function from many starts.

    Attributes:
        function: the test function.
        optimizer: the optimizer's name.
        arm: what was done to its rate.
        lr: the rate; where it was annealed, the rate of the first half.
        paths: shape (steps + 1, runs, 2), float64: the starts and the points after every step; NaN or infinite where
            a run diverged.
    """

    function: TestFunction
    optimizer: str
    arm: str
    lr: float
    paths: Tensor

    @property
    def reached(self) -> Tensor:
        """Shape (runs,), bool: whether the last point lies within the function's radius of its minimum.

        The last point and no earlier one: a path that only passes has not found the minimum.
        """
        distance: Tensor = (self.paths[-1] - self.paths.new_tensor(self.function.minimum)).norm(dim=-1)
        return distance < self.function.radius  # false for NaN

    @property
    def share(self) -> ReachedShare:
        """How many of the runs reached the minimum; one that diverged did not."""
        reached, runs = int(self.reached.sum()), len(self.reached)
        interval = scipy_stats.binomtest(reached, runs).proportion_ci(0.95, method="exact")
        return ReachedShare(reached, runs, float(interval.low), float(interval.high))


def optimization_paths(
    function: TestFunction,
    arms: Mapping[str, Perturbation | None],
    *,
    optimizers: Mapping[str, OptimizerFactory] = OPTIMIZERS,
    lr: float,
    anneal: bool = False,
    steps: int = 500,
    runs: int = 100,
    seed: int = 0,
    starts: Tensor | None = None,
) -> list[OptimizationPaths]:
    """Run every optimizer with every arm from the same starts, on the function's exact gradient.

    All runs of an arm are one parameter, in float64, so that they take as long as one. The optimizers treat its
    elements apart, and each run has its own noise: a perturbation with scope ``"element"`` (or ``"channel"``) draws for
    x and y, one with a coarser scope draws once for both.

    Args:
        function: the test function.
        arms: by name, the perturbation of the rate, drawn at every step; ``None`` is the plain optimizer.
        optimizers: by name, what makes the optimizer from parameters and a rate; it must treat elements apart. Default:
            :data:`OPTIMIZERS`.
        lr: the rate, > 0.
        anneal: whether the rate falls linearly to 0 in the second half of the steps, for all arms alike: at a constant
            rate a noisy path never settles, and where it stops is partly chance. Default: a constant rate.
        steps: number of steps, ≥ 1; default 500.
        runs: number of starts, ≥ 1, drawn from the function's region. Default: 100.
        seed: of the starts and of the noise.
        starts: shape (runs, 2): the starts, in place of drawn ones; ``runs`` is then their number.

    Returns:
        One entry per optimizer and arm, in the order given.

    Raises:
        ValueError: a number is outside its range, ``starts`` is not as described, there is no arm or no optimizer, or a
            perturbation has bounds or needs to know the epochs.
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be finite and above 0, got {lr!r}")
    if steps < 1 or runs < 1:
        raise ValueError(f"steps and runs must be at least 1, got steps={steps!r}, runs={runs!r}")
    if not arms or not optimizers:
        raise ValueError("optimization_paths needs at least one arm and one optimizer")
    starts = function.starts(runs, seed) if starts is None else starts.detach().double()
    if starts.ndim != 2 or starts.shape[1] != 2 or len(starts) == 0 or not bool(torch.isfinite(starts).all()):
        raise ValueError(f"starts must be finite points of shape (runs, 2), got shape {tuple(starts.shape)}")
    return [
        OptimizationPaths(
            function, name, arm, lr, _paths(function, make, perturbation, lr, anneal, steps, seed, starts)
        )
        for name, make in optimizers.items()
        for arm, perturbation in arms.items()
    ]


def paired_p_value(first: OptimizationPaths, second: OptimizationPaths) -> float:
    """Exact McNemar test of "both reach the minimum equally often", for two sets of paths from the same starts.

    Only the starts from which one of the two reaches it and the other does not say anything: under the hypothesis each
    of them is a fair coin.

    Returns:
        The two-sided p value; 1 where there is no such start.

    Raises:
        ValueError: the starts differ.
    """
    if first.paths[0].shape != second.paths[0].shape or not bool((first.paths[0] == second.paths[0]).all()):
        raise ValueError("paired_p_value needs two sets of paths from the same starts")
    only_first = int((first.reached & ~second.reached).sum())
    only_second = int((second.reached & ~first.reached).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(scipy_stats.binomtest(only_first, only_first + only_second).pvalue)


def share_table(all_paths: Iterable[OptimizationPaths]) -> str:
    """A Markdown table of the shares that reached the minimum: a row per function and optimizer, a column per arm.

    Each cell has the share in % with its interval, and the rate.
    """
    entries = list(all_paths)
    arms = list(dict.fromkeys(entry.arm for entry in entries))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for entry in entries:
        share = entry.share
        text = f"{100 * share.share:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f}), rate {entry.lr:g}"
        cells.setdefault((entry.function.name, entry.optimizer), {})[entry.arm] = text
    lines = [f"| function | optimizer | {' | '.join(arms)} |", "|---" * (2 + len(arms)) + "|"]
    for (function, optimizer), row in cells.items():
        lines.append(f"| {function} | {optimizer} | {' | '.join(row.get(arm, '') for arm in arms)} |")
    return "\n".join(lines)


def _paths(
    function: TestFunction,
    make: OptimizerFactory,
    perturbation: Perturbation | None,
    lr: float,
    anneal: bool,
    steps: int,
    seed: int,
    starts: Tensor,
) -> Tensor:
    points = torch.nn.Parameter(starts.clone())
    optimizer = make([points], lr)
    if perturbation is not None:
        per_element = perturbation.scope in ("channel", "element")
        perturb(optimizer, per_replica(perturbation, "element" if per_element else "channel"), seed=seed)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, 2 * (1 - step / steps)) if anneal else 1.0)
    paths = torch.empty(steps + 1, *starts.shape, dtype=torch.float64, device=starts.device)
    paths[0] = starts
    for step in range(steps):
        points.grad = function.gradient(points)
        optimizer.step()
        scheduler.step()
        paths[step + 1] = points.detach()
    return paths

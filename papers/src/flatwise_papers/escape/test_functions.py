"""The two-dimensional test functions of the papers' pictures, with the minima that they really have.

The papers' own statements are not all right. A quadratic with two Gaussian wells: the text calls (1, 0) the global
minimum, the figure (−1, 0); with the printed depths it is the left one. "Rastrigin": printed with sines, for which
(0, 0) is no minimum at all. The Beale-like function: its optimum is printed as (−0.74, 1.40), near where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from scipy import stats as scipy_stats
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from flatwise._attach import perturb
from flatwise.perturbation import Perturbation
from flatwise_papers.escape.double_well import per_replica

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class TestFunction:
    """A function of two variables, to be minimised.

    Attributes:
        name: its name.
        formula: maps points, shape (n, 2), to values, shape (n,); differentiable by autograd.
        region: ((lowest x, highest x), (lowest y, highest y)): where runs start and what pictures show; runs may leave
            it.
        minimum: the global minimum.
        radius: a run reached the minimum if it ends nearer to it than this: no other minimum lies within twice that.
    """

    name: str
    formula: Callable[[Tensor], Tensor]
    region: tuple[tuple[float, float], tuple[float, float]]
    minimum: tuple[float, float]
    radius: float

    __test__: ClassVar[bool] = False  # not a test: pytest looks at the name

    def starts(self, count: int, seed: int = 0) -> Tensor:
        """``count`` points, uniform in the region: shape (count, 2), float64, from a generator of their own."""
        generator = torch.Generator().manual_seed(seed)
        low, high = torch.tensor(self.region, dtype=torch.float64, device="cpu").T
        uniform = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return torch.lerp(low, high, uniform)

    def gradient(self, points: Tensor) -> Tensor:
        """The gradient at each point, by autograd: shape (n, 2) as ``points``."""
        points = points.detach().requires_grad_()
        return torch.autograd.grad(self.formula(points).sum(), points)[0]


def _two_wells(points: Tensor) -> Tensor:
    """``x² + y² − 3 exp(−((x+1)² + y²)/d) − 2 exp(−((x−1)² + y²)/d)``; the paper gives no d: 0.2 here."""
    x, y = points.unbind(-1)
    left, right = ((x + 1) ** 2 + y**2) / 0.2, ((x - 1) ** 2 + y**2) / 0.2
    return x**2 + y**2 - 3 * torch.exp(-left) - 2 * torch.exp(-right)


def _sine_rastrigin(points: Tensor) -> Tensor:
    """``x² + y² − sin 2πx − sin 2πy``."""
    return (points**2 - torch.sin(2 * math.pi * points)).sum(-1)


def _ackley(points: Tensor) -> Tensor:
    """``−20 exp(−0.2 √((x² + y²)/2)) − exp((cos 2πx + cos 2πy)/2) + e + 20``."""
    distance = torch.linalg.vector_norm(points, dim=-1) / math.sqrt(2)  # a gradient of 0 at 0, where the root has none
    ripple = torch.exp(torch.cos(2 * math.pi * points).mean(-1))
    return -20 * torch.exp(-0.2 * distance) - ripple + math.e + 20


def _beale_like(points: Tensor) -> Tensor:
    """``(1.5 − x² + xy)² + (2.25 − x² + xy²)² + (2.625 − x² + xy³)²``."""
    x, y = points.unbind(-1)
    return (1.5 - x**2 + x * y) ** 2 + (2.25 - x**2 + x * y**2) ** 2 + (2.625 - x**2 + x * y**3) ** 2


TWO_WELLS = TestFunction("two wells", _two_wells, ((-2.0, 2.0), (-2.0, 2.0)), (-0.9363006, 0.0), 0.5)
"""RN, supplement Eq. 6, with a = 3 and b = 2. The other minimum is (0.905, 0)."""

SINE_RASTRIGIN = TestFunction(
    "Rastrigin with sines", _sine_rastrigin, ((-5.12, 5.12), (-5.12, 5.12)), (0.2379345, 0.2379345), 0.45
)
"""RN, supplement Eq. 7, as printed: 49 minima on a grid of spacing 0.95."""

ACKLEY = TestFunction("Ackley", _ackley, ((-5.0, 5.0), (-5.0, 5.0)), (0.0, 0.0), 0.45)
"""RN, supplement Eq. 8, with Ackley's signs."""

BEALE_LIKE = TestFunction("Beale-like", _beale_like, ((-4.0, 0.0), (-2.0, 3.0)), (-0.7494017, 1.4164937), 0.5)
"""LRD, Eq. 9. In the region there is one more minimum, (−1.504, −0.334); for y → −∞ it falls, slowly, along x = 0."""

TEST_FUNCTIONS = (TWO_WELLS, SINE_RASTRIGIN, ACKLEY, BEALE_LIKE)


OptimizerFactory = Callable[[list[Tensor], float], Optimizer]

OPTIMIZERS: dict[str, OptimizerFactory] = {
    "SGD": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "Adam": Adam,
    "RMSprop": RMSprop,
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

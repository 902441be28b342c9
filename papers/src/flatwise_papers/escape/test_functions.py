"""The two-dimensional test functions of the papers' pictures, with the minima that they really have.

The papers' own statements are not all right. A quadratic with two Gaussian wells: the text calls (1, 0) the global
minimum, the figure (−1, 0); with the printed depths it is the left one. "Rastrigin": printed with sines, for which
(0, 0) is no minimum at all. The Beale-like function: its optimum is printed as (−0.74, 1.40), near where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


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

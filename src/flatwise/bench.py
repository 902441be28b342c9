"""What the noise costs: optimizer steps with and without it, measured side by side.

Contenders take turns, a few steps each, round after round; a ratio is the median over rounds of the ratio within a
round. What disturbs the machine for a while disturbs both sides of a ratio.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flatwise import optim
from flatwise._attach import perturb
from flatwise.methods import leap, lr_dropout
from flatwise.perturbation import Perturbation

Step = Callable[[], object]

# The classes of torch.optim and flatwise.optim that are measured, and their arguments.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 1e-6, "momentum": 0.9},
    "Adam": {"lr": 1e-6},
    "AdamW": {"lr": 1e-6},
    "RMSprop": {"lr": 1e-6},
}
METHODS: dict[str, Perturbation] = {"LEAP": leap(0.05), "LRD": lr_dropout(0.5)}


def resnet18() -> list[tuple[int, ...]]:
    """The shapes of the 62 parameters of ResNet-18 for ImageNet, 11.7 million elements."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            shapes += [(width, inputs, 3, 3), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            if block == 0 and inputs != width:
                shapes += [(width, inputs, 1, 1), (width,), (width,)]
            inputs = width
    return [*shapes, (1000, 512), (1000,)]


MODELS: dict[str, list[tuple[int, ...]]] = {
    "mlp": [(128, 784), (128,), (64, 128), (64,), (10, 64), (10,)],
    "resnet18": resnet18(),
    "50m": [(50_000_000,)],
}


@dataclass(frozen=True)
class Timing:
    """One contender's measurement.

    Attributes:
        model, optimizer, method: what stepped; method is ``"plain"`` where there is no noise.
        way: how: ``"torch fused"`` (torch's plain step with ``fused=True``, or its default where it has none),
            ``"torch foreach"``, ``"flatwise.optim"``, ``"perturb"`` (on torch's fused), ``"naive"`` (a loop around
            torch's default step), or ``"memory floor"`` (torch operations that stream the same bytes).
        milliseconds: median time of a step.
        ratio: median over rounds of its time over that of torch's fused plain step.
    """

    model: str
    optimizer: str
    method: str
    way: str
    milliseconds: float
    ratio: float


def measure(
    models: Sequence[str], optimizers: Sequence[str] = tuple(OPTIMIZERS), *, rounds: int = 15, slice_ms: float = 20.0
) -> Iterator[Timing]:
    """Measures every optimizer on every model.

    Args:
        models: names in ``MODELS``.
        optimizers: names in ``OPTIMIZERS``.
        rounds: how many times every contender has its turn; default 15.
        slice_ms: about how long a turn is, in milliseconds; default 20. It is at least one step.

    Yields:
        One row per contender.

    Raises:
        ValueError: an unknown model or optimizer.
    """
    for asked, known in ((models, MODELS), (optimizers, OPTIMIZERS)):
        if unknown := [name for name in asked if name not in known]:
            raise ValueError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    for model in models:
        for name in optimizers:
            contenders = _contenders(MODELS[model], name)
            times = take_turns([step for _, _, step in contenders], rounds, slice_ms)
            for (method, way, _), own in zip(contenders, times, strict=True):
                ratio = statistics.median(a / b for a, b in zip(own, times[0], strict=True))
                yield Timing(model, name, method, way, statistics.median(own) * 1e3, ratio)


def write_csv(rows: Sequence[Timing], path: Path) -> None:
    """Writes rows as CSV, with a header."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Timing)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def table(rows: Sequence[Timing]) -> str:
    """Rows as text: for every model and optimizer, ratios to torch's fused plain step."""
    lines = [f"{'model':<10}{'optimizer':<10}{'method':<8}{'way':<15}{'ms':>10}{'ratio':>9}"]
    lines += [
        f"{row.model:<10}{row.optimizer:<10}{row.method:<8}{row.way:<15}{row.milliseconds:>10.4f}{row.ratio:>9.3f}"
        for row in rows
    ]
    return "\n".join(lines)


def take_turns(steps: Sequence[Step], rounds: int, slice_ms: float) -> list[list[float]]:
    """Time steps that take turns.

    Args:
        steps: calls to time. Each is first called four times, which may compile.
        rounds: how many times every step has its turn.
        slice_ms: about how long a turn is, in milliseconds; it is at least one step.

    Returns:
        For each step its seconds in every round, the mean over the turn.
    """
    counts = []
    for step in steps:
        for _ in range(3):  # the first compiles or loads a kernel, and allocates
            step()
        begin = time.perf_counter()
        step()
        counts.append(max(1, round(slice_ms * 1e-3 / (time.perf_counter() - begin))))
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, count, own in zip(steps, counts, times, strict=True):
            step()  # brings its data where it will be
            begin = time.perf_counter()
            for _ in range(count):
                step()
            own.append((time.perf_counter() - begin) / count)
    return times


def _contenders(shapes: list[tuple[int, ...]], name: str) -> list[tuple[str, str, Step]]:
    """(method, way, step); the first is torch's fused plain step. All share parameters and gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    settings = OPTIMIZERS[name]
    torchs, ours = getattr(torch.optim, name), getattr(optim, name)
    best = settings if name == "RMSprop" else {**settings, "fused": True}
    contenders: list[tuple[str, str, Step]] = [
        ("plain", "torch fused", torchs(params, **best).step),
        ("plain", "torch foreach", torchs(params, **settings, foreach=True).step),
    ]
    for method, perturbation in METHODS.items():
        generic = torchs(params, **best)
        perturb(generic, perturbation, seed=0)
        contenders += [
            (method, "flatwise.optim", ours(params, **settings, perturbation=perturbation, seed=0).step),
            (method, "perturb", generic.step),
            (method, "naive", _naive(torchs(params, **settings), params, method)),
        ]
    contenders.append(("plain", "memory floor", _floor(params, states=2 if "Adam" in name else 1)))
    return contenders


def _naive(optimizer: torch.optim.Optimizer, params: list[Tensor], method: str) -> Step:
    """A step with the noise written by hand, tensor by tensor."""

    @torch.no_grad()
    def step() -> None:
        old = [param.clone() for param in params]
        optimizer.step()
        for param, before in zip(params, old, strict=True):
            if method == "LEAP":
                factor = 1 + 0.05 * torch.randn_like(param)
            else:
                factor = torch.bernoulli(torch.full_like(param, 0.5))
            param.copy_(before + factor * (param - before))

    return step


def _floor(params: list[Tensor], states: int) -> Step:
    """Reads and writes parameter and states and reads the gradient, with no arithmetic to speak of."""
    size = sum(param.numel() for param in params)
    param, grad, *memory = (torch.zeros(size) for _ in range(2 + states))

    def step() -> None:
        torch.add(param, grad, out=param)
        for state in memory:
            state.mul_(1.0)

    return step

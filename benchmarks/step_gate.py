"""Fail if an optimizer step with noise has become slower, as a ratio to torch's plain step.

Run with `python benchmarks/step_gate.py` (`make step-cost`); it needs the `fast` extra (numba). For each case
`benchmarks/step_bounds.csv` has the measured ratio (the median of several tries) and the bound, which leaves a margin
for other machines. `--record` measures and writes them anew; do so on an idle machine.

Method: torch's step and the noisy one take turns, a few steps each. A side's time is the lower quartile over its turns:
what else runs on the machine makes a turn longer, never shorter, and so it falls out on both sides. A case above its
bound is measured again, and its least ratio counts. Exit status: 0 if every case keeps its bound, 1 if not.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import flatwise
from flatwise import bench

BOUNDS = Path(__file__).with_name("step_bounds.csv")
MARGIN = 1.5  # a bound is this times the measured ratio: processors differ, and no bound is below this
METHODS = {
    "leap": flatwise.leap(0.05),
    "lr_dropout": flatwise.lr_dropout(0.5),
    "ralr": flatwise.ralr(),
}
MODELS = ("mlp", "resnet18")
OPTIMIZERS = ("SGD", "AdamW")
WAYS = ("perturb", "flatwise.optim")


@dataclass(frozen=True)
class Case:
    """What is held to a bound: a method on an optimizer, by `flatwise.perturb` or `flatwise.optim`, on a model."""

    model: str
    optimizer: str
    way: str
    method: str


CASES = [
    Case(model, optimizer, way, method)
    for model in MODELS
    for optimizer in OPTIMIZERS
    for way in WAYS
    for method in METHODS
    if not (way == "flatwise.optim" and method == "ralr")  # coarse: the same path as perturb's
]


def steps(case: Case) -> list[bench.Step]:
    """Return torch's fused plain step and the case's, on the same parameters and gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in bench.MODELS[case.model]]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    settings, method = bench.OPTIMIZERS[case.optimizer], METHODS[case.method]
    plain = getattr(torch.optim, case.optimizer)(params, **settings, fused=True)
    if case.way == "perturb":
        noisy = getattr(torch.optim, case.optimizer)(params, **settings, fused=True)
        flatwise.perturb(noisy, method, seed=0, steps_per_epoch=1000)
    else:
        noisy = getattr(flatwise.optim, case.optimizer)(params, **settings, perturbation=method, seed=0)
    return [plain.step, noisy.step]


def ratio(case: Case, rounds: int, slice_ms: float) -> float:
    """Return the cost of the case's step as a multiple of torch's plain step."""
    plain, noisy = bench.take_turns(steps(case), rounds, slice_ms)
    return statistics.quantiles(noisy, n=4)[0] / statistics.quantiles(plain, n=4)[0]


def read(path: Path) -> dict[Case, float]:
    """Return the bound of each case.

    Raises:
        ValueError: the file's cases are not those that are measured.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    bounds = {Case(row["model"], row["optimizer"], row["way"], row["method"]): float(row["bound"]) for row in rows}
    if bounds.keys() != set(CASES):
        raise ValueError(f"{path} has other cases than {Path(__file__).name}: write it anew with --record")
    return bounds


def write(path: Path, measured: dict[Case, float]) -> None:
    """Write each case's measured ratio, and its bound."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "optimizer", "way", "method", "measured", "bound"])
        for case, value in measured.items():
            bound = max(value, 1.0) * MARGIN
            writer.writerow([case.model, case.optimizer, case.way, case.method, f"{value:.2f}", f"{bound:.2f}"])


def hold(bounds: dict[Case, float], *, tries: int, rounds: int, slice_ms: float) -> list[str]:
    """Measure every case, those above their bounds again, and say which stay above.

    Returns:
        One sentence per case that is above its bound in every try.
    """
    above = []
    for case, bound in bounds.items():
        best = float("inf")
        for _ in range(tries):
            best = min(best, ratio(case, rounds, slice_ms))
            if best <= bound:
                break
        name = f"{case.optimizer}, {case.method} by {case.way}, {case.model}"
        print(f"{name:<46} {best:6.2f}   bound {bound:5.2f}   {'ok' if best <= bound else 'ABOVE'}", flush=True)
        if best > bound:
            above.append(f"{name}: {best:.2f} times torch's plain step in the best of {tries} tries, bound {bound:.2f}")
    return above


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and compare with the bounds or record them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the bounds instead of comparing with them")
    parser.add_argument("--bounds", type=Path, default=BOUNDS)
    parser.add_argument("--tries", type=int, default=4, help="how often a case may be measured; default 4")
    parser.add_argument("--rounds", type=int, default=41, help="turns of each side; default 41")
    parser.add_argument("--slice-ms", type=float, default=5.0, help="length of a turn in milliseconds; default 5")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # one thread meets less of the machine's other work than several that wait for each other
    if given.record:
        tried = {case: [ratio(case, given.rounds, given.slice_ms) for _ in range(given.tries)] for case in CASES}
        write(given.bounds, {case: statistics.median(values) for case, values in tried.items()})
        return 0
    options = {"tries": given.tries, "rounds": given.rounds, "slice_ms": given.slice_ms}
    above = hold(read(given.bounds), **options)
    if above:
        print("\nSlower than the recorded bound:", *above, sep="\n  ", file=sys.stderr)
        print("Find what became slower; after a deliberate change, record new bounds with --record.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

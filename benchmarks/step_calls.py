"""Count the calls of flatwise's functions in one optimizer step with noise, and the files that they are in.

Run with `python benchmarks/step_calls.py`; it needs the `fast` extra (numba). Each case takes a few steps first, so
that kernels are compiled and buffers made, and then one under `sys.setprofile`. Comprehensions are not counted: they
are frames of their own in some versions of Python only. `--list` prints the calls in order.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import flatwise

SHAPES = ((16, 8), (16,), (4, 16), (4,))
PACKAGE = Path(flatwise.__file__).parent
COMPREHENSIONS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")
WARM_UP = 5  # steps before the one that is counted

Call = tuple[str, int, str]  # file, line and name of the function


def parameters() -> list[torch.Tensor]:
    """Return four parameters with gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return params


def perturbed(perturbation: flatwise.Perturbation) -> torch.optim.Optimizer:
    """Return torch's SGD under `flatwise.perturb`."""
    optimizer = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    flatwise.perturb(optimizer, perturbation, seed=0, steps_per_epoch=100)
    return optimizer


def fused(perturbation: flatwise.Perturbation) -> torch.optim.Optimizer:
    """Return `flatwise.optim.SGD`."""
    return flatwise.optim.SGD(parameters(), lr=0.1, momentum=0.9, perturbation=perturbation, seed=0)


CASES: dict[str, Callable[[], torch.optim.Optimizer]] = {
    "perturb, leap": lambda: perturbed(flatwise.leap(0.05)),
    "perturb, lr_dropout": lambda: perturbed(flatwise.lr_dropout(0.5)),
    "perturb, ralr": lambda: perturbed(flatwise.ralr()),
    "flatwise.optim.SGD, leap": lambda: fused(flatwise.leap(0.05)),
    "flatwise.optim.SGD, lr_dropout": lambda: fused(flatwise.lr_dropout(0.5)),
}


def calls_of(optimizer: torch.optim.Optimizer) -> list[Call]:
    """Return the calls of functions in flatwise's files during one step, in order, after a warm-up."""
    for _ in range(WARM_UP):
        optimizer.step()
    calls: list[Call] = []

    def record(frame: types.FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name not in COMPREHENSIONS and PACKAGE in Path(code.co_filename).parents:
            calls.append((str(Path(code.co_filename).relative_to(PACKAGE)), code.co_firstlineno, code.co_name))

    sys.setprofile(record)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return calls


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the calls of each case in order")
    given = parser.parse_args(arguments)
    print(f"{'case':<32}{'calls':>7}{'files':>7}")
    for name, make in CASES.items():
        calls = calls_of(make())
        print(f"{name:<32}{len(calls):>7}{len({file for file, _, _ in calls}):>7}")
        if given.list:
            print("".join(f"    {file}:{line} {function}\n" for file, line, function in calls), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())

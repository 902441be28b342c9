"""What per-element noise costs in an optimizer step; the same measurement as `flatwise bench`.

Run with `python benchmarks/optimizer_step.py --models mlp,resnet18 --csv steps.csv`; it needs the `fast` extra (numba).
Every ratio is a median over rounds in which all contenders take turns, so that other load on the machine meets all
of them; on a busy machine, repeat it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from flatwise import bench


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="mlp,resnet18", help=f"of {', '.join(bench.MODELS)}")
    parser.add_argument("--optimizers", default=",".join(bench.OPTIMIZERS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, default=None)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = list(bench.measure(given.models.split(","), given.optimizers.split(","), rounds=given.rounds))
    print(bench.table(rows))
    if given.csv is not None:
        bench.write_csv(rows, given.csv)


if __name__ == "__main__":
    main()

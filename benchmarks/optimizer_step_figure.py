"""The tables and the picture of docs/optim.md, from the CSV files that `optimizer_step.py` writes.

Run with `python benchmarks/optimizer_step_figure.py mlp.csv resnet18.csv --out steps.png`; it needs matplotlib.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes

Key = tuple[str, str]  # (method, way)

COLUMNS: dict[Key, str] = {
    ("plain", "torch foreach"): "foreach, plain",
    ("plain", "memory floor"): "memory floor",
    ("LEAP", "flatwise.optim"): "LEAP: fused",
    ("LEAP", "perturb"): "perturb",
    ("LEAP", "naive"): "naive",
    ("LRD", "flatwise.optim"): "LRD: fused",
    ("LRD", "perturb"): "perturb",
    ("LRD", "naive"): "naive",
}
BARS: dict[Key, tuple[str, str]] = {
    ("LEAP", "flatwise.optim"): ("LEAP, flatwise.optim", "#1f77b4"),
    ("LRD", "flatwise.optim"): ("LRD, flatwise.optim", "#2ca02c"),
    ("LEAP", "perturb"): ("LEAP, perturb", "#9ecae1"),
    ("LRD", "perturb"): ("LRD, perturb", "#a1d99b"),
    ("LEAP", "naive"): ("LEAP, by hand", "#d62728"),
    ("LRD", "naive"): ("LRD, by hand", "#ff9896"),
}
TITLES = {"mlp": "MLP, 0.1 M parameters", "resnet18": "ResNet-18, 11.7 M", "50m": "one tensor, 50 M"}

Ratios = dict[str, dict[str, dict[Key, float]]]  # model → optimizer → contender → ratio


def read(paths: list[Path]) -> tuple[Ratios, dict[Key, float]]:
    """Ratios of all contenders, and the milliseconds of the plain fused step by (model, optimizer)."""
    ratios: Ratios = {}
    milliseconds: dict[Key, float] = {}
    for path in paths:
        with path.open() as file:
            for row in csv.DictReader(file):
                of = ratios.setdefault(row["model"], {}).setdefault(row["optimizer"], {})
                of[row["method"], row["way"]] = float(row["ratio"])
                if row["way"] == "torch fused":
                    milliseconds[row["model"], row["optimizer"]] = float(row["milliseconds"])
    return ratios, milliseconds


def table(of_model: dict[str, dict[Key, float]], model: str, milliseconds: dict[Key, float]) -> str:
    """One model's ratios as a Markdown table."""
    lines = ["| optimizer | torch fused, plain | " + " | ".join(COLUMNS.values()) + " |", "|---" * 10 + "|"]
    for optimizer, ratios in of_model.items():
        cells = [f"{milliseconds[model, optimizer]:.3g} ms"] + [f"{ratios[key]:.2f}" for key in COLUMNS]
        lines.append(f"| {optimizer} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(axes: Axes, of_model: dict[str, dict[Key, float]], model: str) -> None:
    """One model's bars, from torch's fused plain step (1) on a logarithmic scale."""
    width = 0.8 / len(BARS)
    for number, (key, (label, colour)) in enumerate(BARS.items()):
        places = [at + (number - (len(BARS) - 1) / 2) * width for at in range(len(of_model))]
        heights = [ratios[key] for ratios in of_model.values()]
        axes.bar(places, [height - 1 for height in heights], width, bottom=1, color=colour, label=label)
    for at, ratios in enumerate(of_model.values()):
        floor = ratios["plain", "memory floor"]
        axes.hlines(
            floor, at - 0.45, at + 0.45, colors="black", linestyles="dotted", label="memory floor" if at == 0 else ""
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xticks(range(len(of_model)), list(of_model))
    ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]
    axes.set_yticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(TITLES.get(model, model), fontsize=10)


def main() -> None:
    """Print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    ratios, milliseconds = read(given.csv)
    for model, of_model in ratios.items():
        print(f"{TITLES.get(model, model)}\n\n{table(of_model, model, milliseconds)}\n")
    if given.out is not None:
        matplotlib.use("agg")
        figure, axes = pyplot.subplots(
            1, len(ratios), figsize=(11, 3.6), sharey=True, layout="constrained", squeeze=False
        )
        for at, (model, of_model) in zip(axes[0], ratios.items(), strict=True):
            draw(at, of_model, model)
        axes[0][0].set_ylabel("time of a step ÷ torch's fused plain step")
        figure.legend(
            *axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=7, fontsize=8, frameon=False
        )
        figure.savefig(given.out, dpi=110)


if __name__ == "__main__":
    main()

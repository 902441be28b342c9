"""Does noise in the rate lead to the global minimum? The papers' test functions and optimizers, from many starts.

Run with `python papers/benchmarks/optimization_paths.py [figure.png]`; the figure needs matplotlib. About four
minutes on one core. Every generator has a fixed seed, so the numbers repeat.

Two tables. First at one constant rate for all arms, as in the papers' pictures, with the control that has RN's mean
rate and no noise. Then every arm at its own best rate, searched on other starts, and annealed: an arm is neither
punished for a rate that was chosen for another, nor for the noise that is left at its last step.
"""

from __future__ import annotations

import sys

import torch

import flatwise
from flatwise.stats import holm
from flatwise_papers.escape.test_functions import (
    OPTIMIZERS,
    TEST_FUNCTIONS,
    optimization_paths,
    paired_p_value,
    share_table,
)

RANDOM_LR = flatwise.Perturbation(flatwise.Uniform(0.0, 8.0), "all")  # RN's factor; a toy has no epochs, so every step
ARMS = {"plain": None, "RN": RANDOM_LR, "LEAP 0.1": flatwise.leap(0.1), "LRD 0.5": flatwise.lr_dropout(0.5)}
SAME_RATE = 0.01
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RUNS, TUNING_RUNS = 1000, 300


def same_rate():
    """Print the shares that reach the minimum at one rate, and how often a noisy arm differs from the plain one."""
    arms = {**ARMS, "4 × the rate (RN's mean)": RANDOM_LR.matched_rate()}
    entries = []
    for function in TEST_FUNCTIONS:
        entries += optimization_paths(function, arms, lr=SAME_RATE, runs=RUNS, seed=1)
    print(f"share of {RUNS} starts that end at the global minimum, in % (95 %), all at the rate {SAME_RATE:g}\n")
    print(share_table(entries).replace(f", rate {SAME_RATE:g}", ""))
    judge(entries)


def best_rates():
    """Print the same with every arm at the best of the rates, annealed, chosen on other starts."""
    entries = []
    for function in TEST_FUNCTIONS:
        for name, make in OPTIMIZERS.items():
            for arm, perturbation in ARMS.items():
                chosen = {"optimizers": {name: make}, "arms": {arm: perturbation}, "anneal": True}
                tuning = [optimization_paths(function, **chosen, lr=lr, runs=TUNING_RUNS, seed=2)[0] for lr in RATES]
                best = max(tuning, key=lambda entry: entry.share.reached)
                entries += optimization_paths(function, **chosen, lr=best.lr, runs=RUNS, seed=3)
    rates = ", ".join(f"{lr:g}" for lr in RATES)
    print(f"\nthe same, every arm at its best rate of {rates} on {TUNING_RUNS} other starts, annealed\n")
    print(share_table(entries))
    judge(entries)


def judge(entries):
    """Print in how many of the settings each arm does better or worse than the plain optimizer, after correction."""
    plain = {(e.function.name, e.optimizer): e for e in entries if e.arm == "plain"}
    others = [entry for entry in entries if entry.arm != "plain"]
    corrected = holm([paired_p_value(entry, plain[entry.function.name, entry.optimizer]) for entry in others])
    print("\nagainst plain, same starts, exact McNemar test, p corrected (Holm) over the whole table, level 0.05")
    for arm in dict.fromkeys(entry.arm for entry in others):
        signs = [
            entry.share.reached - plain[entry.function.name, entry.optimizer].share.reached
            for entry, p in zip(others, corrected, strict=True)
            if entry.arm == arm and p <= 0.05
        ]
        better, worse = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
        print(f"{arm}: better in {better}, worse in {worse} of {len(plain)} settings")


def draw(path):
    """Write the pictures: a row per test function, a column per arm, the same start in a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from flatwise_papers.escape.test_functions import plot_optimization_paths

    figure, axes = pyplot.subplots(len(TEST_FUNCTIONS), len(ARMS), figsize=(11, 11), layout="constrained")
    for row, function in enumerate(TEST_FUNCTIONS):
        entries = optimization_paths(function, ARMS, lr=SAME_RATE, runs=1, seed=6)
        for column, arm in enumerate(ARMS):
            plot_optimization_paths(axes[row, column], [entry for entry in entries if entry.arm == arm])
            axes[row, column].tick_params(labelsize="small")
            if row == 0:
                axes[row, column].set_title(arm)
        axes[row, 0].set_ylabel(function.name)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    torch.set_num_threads(1)
    same_rate()
    best_rates()
    if len(sys.argv) > 1:
        draw(sys.argv[1])

"""Does SGD leave a minimum as LEAP's Theorem 1 says? Simulated escapes against the theorem, the update's own noise, and
an exact solution; then which of two minima is selected.

Run with `python papers/benchmarks/escape_time.py [figure.png]`; the figure needs matplotlib. About four
minutes on one core. Nothing is timed and every generator has a fixed seed, so the numbers repeat.
"""

from __future__ import annotations

import sys

import torch

import flatwise
from flatwise_papers.escape.double_well import DoubleWell, exact_escape, simulate_escape, simulate_occupancy
from flatwise_papers.escape.theory import leap_escape_time, noise_amplification, selection_probabilities
from flatwise_papers.escape.waiting_times import exponential_test, fit_law

LR = 0.05
EXPONENTS = (3.0, 4.0, 5.0, 6.0)  # of plain SGD
REPLICAS = 1000
ARMS = {
    "SGD": None,
    "LEAP 0.1": flatwise.leap(0.1),
    "LEAP 0.5": flatwise.leap(0.5),
    "LEAP 1": flatwise.leap(1.0),
    "LRD 0.5": flatwise.lr_dropout(0.5),
}


def factor_of(perturbation):
    """Return the distribution of the rate's factor; `None` for plain SGD."""
    return None if perturbation is None else perturbation.distribution


def well_with(exponent, noise_scale=1.0):
    """Return a symmetric well (all curvatures 1) whose barrier gives plain SGD this exponent."""
    barrier = exponent * LR * noise_scale / 2
    return DoubleWell((barrier, barrier), noise_scale=noise_scale)


def theorem_exponent(well, sigma, lr=LR):
    """Return the exponent of LEAP's Theorem 1 for the well's left minimum."""
    return leap_escape_time(
        barrier=well.barriers[0],
        minimum_curvature=well.curvatures[0],
        saddle_curvature=well.saddle_curvature,
        lr=lr,
        sigma=sigma,
        path_weight=well.path_weights[0],
    ).exponent


def simulate(well, perturbation, seed):
    """Return simulated escapes; the runs are twice as long as the exact mean."""
    expected = exact_escape(well, LR, 1, factor_of(perturbation)).updates
    return simulate_escape(
        well, lr=LR, perturbation=perturbation, replicas=REPLICAS, updates=int(2 * expected), seed=seed
    )


def own_noise():
    """Print the escapes of every arm against three predictions; return the samples and the laws."""
    print(f"rate {LR}, curvature 1 everywhere, batch size 1, {REPLICAS} replicas, runs twice the exact mean")
    print("mean updates until the escape\n")
    columns = f"{'exact':>9}{'Kramers':>9}{'exponent':>9}{'Thm 1':>8}{'KS p':>7}"
    print(f"{'arm':9}{'ΔL·1000':>8}{'simulated (95 %)':>27}{columns}")
    results = {}
    for name, perturbation in ARMS.items():
        factor = factor_of(perturbation)
        own, printed, samples = [], [], []
        for index, exponent in enumerate(EXPONENTS):
            well = well_with(exponent)
            sample = simulate(well, perturbation, seed=100 + index)
            predicted = well.escape_time(LR, 1, factor)
            own.append(predicted.exponent)
            printed.append(theorem_exponent(well, 0.0 if factor is None else factor.std))
            samples.append(sample)
            low, high = sample.interval()
            print(
                f"{name:9}{1000 * well.barriers[0]:8.0f}{sample.mean:11.0f} ({low:6.0f} to {high:6.0f})"
                f"{exact_escape(well, LR, 1, factor).updates:9.0f}{predicted.updates:9.0f}{own[-1]:9.2f}"
                f"{printed[-1]:8.1f}{exponential_test(sample).p:7.2f}",
                flush=True,
            )
        results[name] = own, printed, samples, fit_law(own, samples)
    print("\nslope of log(mean) per unit of the predicted exponent; 1 if the prediction is right")
    print(f"{'arm':9}{'of the own noise (95 %)':>27}{'p of a line':>13}{'of Theorem 1 (95 %)':>29}")
    for name, (_, printed, samples, law) in results.items():
        text = f"{law.slope:7.3f} ({law.low:6.3f} to {law.high:6.3f}){law.p:13.2f}"
        if ARMS[name] is not None and name.startswith("LEAP"):
            other = fit_law(printed, samples)
            text += f"{other.slope:11.4f} ({other.low:7.4f} to {other.high:7.4f})"
        print(f"{name:9}  {text}")
    return results


def theorem_noise():
    """Print the escapes where the noise that the theorem puts in is the only one; return the samples and the law."""
    print("\nthe theorem's own dynamics: the only noise has the variance σ² |H|")
    samples, exponents = [], []
    sigma = 0.1
    for index, exponent in enumerate(EXPONENTS):
        well = well_with(exponent, noise_scale=sigma**2)
        exponents.append(theorem_exponent(well, sigma))
        samples.append(simulate(well, None, seed=200 + index))
    law = fit_law(exponents, samples)
    print(f"σ = {sigma}: slope {law.slope:.3f} ({law.low:.3f} to {law.high:.3f}), p of a line {law.p:.2f}")
    return exponents, samples, law


def prefactors():
    """Print the exact mean over exp(exponent), in units of the printed and of the Itô pre-factor."""
    print("\npre-factor: exact mean over both formulas, plain SGD, exponent 16")
    print(f"{'rate':>8}{'H_a':>6}{'|H_b|':>7}{'2π/|H_b| (printed)':>20}{'2π/H_a (Itô)':>15}")
    for lr in (0.02, 0.01, 0.005, 0.0025):
        for minimum, saddle in ((1.0, 1.0), (1.5, 0.75), (0.75, 1.5)):
            weight = saddle / (minimum + saddle)
            barrier = 16 * lr / 2 / (weight / minimum + (1 - weight) / saddle)
            well = DoubleWell((barrier, barrier), (minimum, minimum), -saddle)
            exact = exact_escape(well, lr, 1).updates
            ito = well.escape_time(lr, 1).updates
            print(f"{lr:8g}{minimum:6g}{saddle:7g}{exact / (ito * minimum / saddle):20.3f}{exact / ito:15.3f}")


def full_batch():
    """Print how many replicas escape without minibatches, whatever the rate's noise."""
    print("\nthe gradient of all data, from half way up to the saddle")
    well = well_with(3.0)
    for name in ("LEAP 0.1", "LEAP 1"):
        sample = simulate_escape(
            well,
            lr=LR,
            batch_size=None,
            perturbation=ARMS[name],
            replicas=REPLICAS,
            updates=20_000,
            seed=300,
            start=well.minima[0] / 2,
        )
        print(
            f"{name:9} {len(sample.times)} of {REPLICAS} escape in 20000 updates; with minibatches of 1 the mean is "
            f"{exact_escape(well, LR, 1, factor_of(ARMS[name])).updates:.0f}"
        )


def selection():
    """Print the share of training that is spent at the flatter of two minima of equal loss."""
    print(
        "\nshare of updates at the flat minimum (curvature 1) and not at the sharp one (4), equal barriers, |H_b| = 1"
    )
    print(f"{'arm':9}{'simulated (95 %)':>26}{'exact':>8}{'Kramers':>9}{'Thm 1':>8}")
    barrier = 0.1
    sharp_left = DoubleWell((barrier, barrier), (4.0, 1.0))
    flat_left = DoubleWell((barrier, barrier), (1.0, 4.0))
    for name, perturbation in ARMS.items():
        factor = factor_of(perturbation)
        occupancy = simulate_occupancy(
            sharp_left, lr=LR, perturbation=perturbation, replicas=REPLICAS, updates=20_000, seed=400
        )
        own = selection_probabilities([well.escape_time(LR, 1, factor) for well in (sharp_left, flat_left)])[1]
        printed = "–"
        if name.startswith("LEAP"):
            times = [
                leap_escape_time(
                    barrier=barrier,
                    minimum_curvature=well.curvatures[0],
                    saddle_curvature=-1.0,
                    lr=LR,
                    sigma=factor.std,
                    path_weight=well.path_weights[0],
                )
                for well in (sharp_left, flat_left)
            ]
            printed = f"{selection_probabilities(times)[1]:.3f}"
        print(
            f"{name:9}{occupancy.share:10.3f} ({occupancy.low:.3f} to {occupancy.high:.3f})"
            f"{exact_escape(sharp_left, LR, 1, factor).right:8.3f}{own:9.3f}{printed:>8}",
            flush=True,
        )


def draw(path, results, theorem):
    """Write the figure: the law with its fits, and the survival curves of the highest barrier."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from flatwise_papers.escape.waiting_times import plot_escape_law, plot_survival

    colors = dict(zip(ARMS, ("#7d8590", "#56B4E9", "#1F83C4", "#D55E00", "#009E73"), strict=True))
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for name, (own, printed, samples, law) in results.items():
        plot_escape_law(axes[0], name, own, samples, law, colors[name])
        plot_survival(axes[2], name, samples[1], colors[name])
        if name.startswith("LEAP"):
            plot_escape_law(axes[1], name, printed, samples, color=colors[name])
    plot_escape_law(axes[1], "the theorem's own noise", *theorem, color="#7d8590")
    axes[0].set_xlabel("exponent from the update's own noise")
    axes[1].set_xlabel("exponent of LEAP's Theorem 1")
    axes[1].set_xscale("log")
    axes[2].set_title("one barrier: exponential waiting times", fontsize="medium")
    axes[0].set_title("all arms on lines of slope 1", fontsize="medium")
    axes[1].set_title("the theorem fits its own noise alone", fontsize="medium")
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", frameon=False)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print("noise amplification κ:", {n: round(noise_amplification(p.distribution), 3) for n, p in ARMS.items() if p})
    measured = own_noise()
    theorem = theorem_noise()
    prefactors()
    full_batch()
    selection()
    if len(sys.argv) > 1:
        draw(sys.argv[1], measured, theorem)

"""What an optimizer step with per-element noise costs on a GPU, against torch's fused step without noise.

Run with `python benchmarks/gpu_step.py` on a machine with a CUDA device and Triton; elsewhere it says so and exits with
status 2. The 1 B parameter rows need about 40 GB of GPU memory; sizes that do not fit are left out, and named.

Method: all variants of one optimizer share parameters, gradients and states (float32; but Adam's step counters are
where torch keeps them: on the CPU, with `fused=True` on the device), and are timed in turn, round after round; a table
row is the median over rounds. Device time is taken between CUDA events around several steps in a row, queued behind a
pause of the device, so that the host's work is hidden (perhaps not all of the naive way's). Wall time is that of the
same steps as a training loop would see them, the host's work included. The copy bandwidth is that of `copy_` between
two 1 GiB tensors, timed in the same rounds. "Bandwidth" divides the bytes that the plain step must move by a variant's
device time: the noise's own traffic, if any, counts as time lost.

`--device cpu --sizes dry` runs the program through on the CPU, to see that it runs: its times say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
import time
from collections.abc import Callable

import torch

import flatwise

Variant = Callable[[], None]

SEED = 0
STEPS = 10  # in a row
PAUSE = 100_000_000  # cycles, some 50 ms

# Width and number of transformer-like blocks: 25 M and 1 B parameters.
SIZES = {"25 M": (512, 8), "1 B": (2048, 20), "dry": (8, 1)}

# Tensors that a plain step reads and writes: parameter and states twice, the gradient once.
OPTIMIZERS = {
    "SGD, momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, 5),
    "Adam": (torch.optim.Adam, {"lr": 1e-4}, 7),
    "AdamW": (torch.optim.AdamW, {"lr": 1e-4, "weight_decay": 0.01}, 7),
}
METHODS = {"LEAP": flatwise.leap(0.05), "LRD": flatwise.lr_dropout(0.5)}


def make_parameters(width: int, blocks: int, device: torch.device) -> list[torch.Tensor]:
    """Returns parameters shaped as those of a transformer's blocks, with gradients."""
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    shapes += [(3 * width,), (width,), (4 * width,), (width,), *[(width,)] * 4]
    parameters = []
    for _ in range(blocks):
        for shape in shapes:
            parameter = torch.randn(shape, device=device).requires_grad_()
            parameter.grad = torch.randn(shape, device=device)
            parameters.append(parameter)
    return parameters


def make_variants(name: str, parameters: list[torch.Tensor]) -> dict[str, Variant]:
    """Returns the steps to compare, all on the same parameters and states."""
    optimizer_of, options, _ = OPTIMIZERS[name]
    plain = optimizer_of(parameters, fused=True, **options)
    plain.step()  # makes the states

    def sharing(cls: type[torch.optim.Optimizer], **more: object) -> torch.optim.Optimizer:
        other = cls(parameters, **options, **more)
        for parameter in parameters:
            state = dict(plain.state[parameter])
            if "step" in state and not more.get("fused"):
                state["step"] = state["step"].cpu()  # where torch keeps it by default
            other.state[parameter] = state
        return other

    variants: dict[str, Variant] = {
        "torch fused, plain": plain.step,
        "torch foreach, plain": sharing(optimizer_of, foreach=True).step,
    }
    for method, perturbation in METHODS.items():
        for label, more in {"": {}, ", fused=True": {"fused": True}}.items():
            ours = sharing(getattr(flatwise.optim, optimizer_of.__name__), perturbation=perturbation, seed=SEED, **more)
            ours.step()
            if ours.fallback is not None:
                sys.exit(f"gpu_step: flatwise.optim.{optimizer_of.__name__} is not fused here: {ours.fallback}")
            variants[f"flatwise.optim {method}{label}"] = ours.step
    for method, perturbation in METHODS.items():
        generic = sharing(optimizer_of, fused=True)
        flatwise.perturb(generic, perturbation, seed=SEED)
        variants[f"perturb {method}"] = generic.step
    for method, perturbation in METHODS.items():
        variants[f"naive {method}"] = naive_step(
            sharing(optimizer_of, fused=True), parameters, perturbation.distribution
        )
    return variants


def naive_step(optimizer, parameters, distribution) -> Variant:
    """Returns the step of a loop over parameters with torch's own random numbers."""

    @torch.no_grad()
    def step() -> None:
        olds = [parameter.clone() for parameter in parameters]
        optimizer.step()
        for parameter, old in zip(parameters, olds, strict=True):
            if isinstance(distribution, flatwise.Normal):
                factor = torch.randn_like(parameter).mul_(distribution.scale).add_(distribution.loc)
            else:
                factor = torch.bernoulli(torch.full_like(parameter, distribution.keep))
            parameter.copy_(old + factor * (parameter - old))

    return step


def time_once(step: Variant, device: torch.device) -> tuple[float, float]:
    """Returns device and wall milliseconds of one step, each the mean of some in a row; on the CPU the same."""
    if device.type == "cpu":
        wall = wall_once(step, lambda: None)
        return wall, wall
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(PAUSE)
    start.record()
    for _ in range(STEPS):
        step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / STEPS, wall_once(step, torch.cuda.synchronize)


def wall_once(step: Variant, wait: Callable[[], None]) -> float:
    """Returns the wall milliseconds of one step, the mean of some in a row and of waiting for them."""
    begun = time.perf_counter()
    for _ in range(STEPS):
        step()
    wait()
    return (time.perf_counter() - begun) * 1e3 / STEPS


def measure(variants: dict[str, Variant], rounds: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Returns median device and wall milliseconds of each variant, timed in turn."""
    for step in variants.values():
        for _ in range(3):  # compiles, and fills torch's memory pool
            step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, step in variants.items():
            times[name].append(time_once(step, device))
    return {
        name: (statistics.median(d for d, _ in pairs), statistics.median(w for _, w in pairs))
        for name, pairs in times.items()
    }


def report(size: str, name: str, count: int, medians: dict[str, tuple[float, float]], copied: int) -> None:
    """Prints the rows of one optimizer and size."""
    *_, tensors = OPTIMIZERS[name]
    bandwidth = copied / medians["copy"][0] / 1e6  # GB/s
    print(f"\n{name}, {size} parameters ({count:,}); copy bandwidth {bandwidth:.0f} GB/s")
    print("| variant | device ms | ÷ torch fused, plain | bandwidth ÷ copy | wall ms |\n|---|---|---|---|---|")
    plain, _ = medians["torch fused, plain"]
    for variant, (device, wall) in medians.items():
        if variant != "copy":
            share = 4 * tensors * count / device / 1e6 / bandwidth
            print(f"| {variant} | {device:.3f} | {device / plain:.2f} | {share:.0%} | {wall:.3f} |")


def main() -> int:
    """Measures and prints; the exit status is 2 where there is nothing to measure on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="how often each variant is timed (default 15)")
    parser.add_argument("--sizes", default="25 M,1 B", help=f"of {', '.join(SIZES)} (default '25 M,1 B')")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for a dry run")
    given = parser.parse_args()
    rounds = given.rounds
    if given.device == "cuda" and not torch.cuda.is_available():
        print("gpu_step: no CUDA device here; nothing was measured", file=sys.stderr)
        return 2
    if importlib.util.find_spec("triton") is None:
        print("gpu_step: Triton is not installed (pip install 'flatwise[fast]'); nothing was measured", file=sys.stderr)
        return 2
    import triton

    cuda = given.device == "cuda"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    print(torch.cuda.get_device_name(device) if cuda else "CPU (a dry run)", end=", ")
    print(f"torch {torch.__version__}, Triton {triton.__version__}, {rounds} rounds of {STEPS} steps, float32")
    for size in given.sizes.split(","):
        width, blocks = SIZES[size]
        count = blocks * (12 * width**2 + 13 * width)
        if cuda and (needed := 9 * 4 * count + (3 << 30)) > torch.cuda.mem_get_info(device)[0]:
            print(f"\n{size}: left out, it needs {needed / 2**30:.0f} GiB of free GPU memory")
            continue
        for name in OPTIMIZERS:
            parameters = make_parameters(width, blocks, device)
            assert sum(map(torch.numel, parameters)) == count
            variants = make_variants(name, parameters)
            source, target = torch.empty(2, 1 << 28 if cuda else 1 << 16, device=device).unbind()
            variants["copy"] = lambda source=source, target=target: target.copy_(source)
            medians = measure(variants, rounds, device)
            if not all(math.isfinite(parameter.sum().item()) for parameter in parameters):
                print(f"{name}: parameters are not finite after the run: its times mean nothing")
            report(size, name, count, medians, 2 * source.nbytes)
            del parameters, variants, source, target
            if cuda:
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())

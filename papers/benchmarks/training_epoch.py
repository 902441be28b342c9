"""What the noise costs in training: forward, backward and step, with each optimizer and without noise.

Run with `python papers/benchmarks/training_epoch.py --data-dir DATA`; it needs MNIST. An MLP (the LEAP paper's MLP-3)
and a small convolutional net train on MNIST; contenders take turns of some steps each, over the same batches, until
each has seen an epoch. A ratio is the median over turns of the time over plain training's in that turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import flatwise
from flatwise.study.tasks.classification import build_mlp
from flatwise_papers.data.mnist import load_mnist
from flatwise_papers.tasks.classifiers import MNIST_WIDTHS

Make = Callable[[nn.Module], torch.optim.Optimizer]
SETTINGS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


def convnet() -> nn.Module:
    """Two convolutions and two linear layers, 225,034 parameters."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 140), nn.ReLU(), nn.Linear(140, 10),
    )  # fmt: skip


MODELS: dict[str, Callable[[], nn.Module]] = {"MLP-3": lambda: build_mlp(MNIST_WIDTHS[3]), "convnet": convnet}


def perturbed(perturbation: flatwise.Perturbation) -> Make:
    """Torch's fused SGD with the generic plug-in."""

    def make(model: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(model.parameters(), **SETTINGS, fused=True)
        flatwise.perturb(optimizer, perturbation, seed=0)
        return optimizer

    return make


def fused(perturbation: flatwise.Perturbation) -> Make:
    """Flatwise's fused SGD."""
    return lambda model: flatwise.optim.SGD(model.parameters(), **SETTINGS, perturbation=perturbation, seed=0)


CONTENDERS: dict[str, Make] = {
    "plain": lambda model: torch.optim.SGD(model.parameters(), **SETTINGS, fused=True),
    "plain again": lambda model: torch.optim.SGD(model.parameters(), **SETTINGS, fused=True),
    "LEAP, flatwise.optim": fused(flatwise.leap(0.05)),
    "LEAP, perturb": perturbed(flatwise.leap(0.05)),
    "LRD, flatwise.optim": fused(flatwise.lr_dropout(0.5)),
    "LRD, perturb": perturbed(flatwise.lr_dropout(0.5)),
    "RALR, perturb": perturbed(flatwise.Perturbation(flatwise.Uniform(1, 3), "all")),
}


def trainer(build: Callable[[], nn.Module], make: Make) -> Callable[[list[tuple[Tensor, Tensor]]], None]:
    """A function that trains its own copy of a model on some batches."""
    torch.manual_seed(0)
    model = build()
    optimizer = make(model)

    def train(batches: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return train


def turns(x: Tensor, y: Tensor, batch_size: int, steps: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The batches of one epoch, ``steps`` at a time."""
    batches = list(zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True))
    for first in range(0, len(batches), steps):
        yield batches[first : first + steps]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with MNIST; default: FLATWISE_DATA")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="steps in a turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = load_mnist(given.data_dir)
    for name, build in MODELS.items():
        trainers = {contender: trainer(build, make) for contender, make in CONTENDERS.items()}
        for train in trainers.values():
            train([(data.train_x[:128], data.train_y[:128])] * 3)  # compiles, or loads what was compiled
        times: dict[str, list[float]] = {contender: [] for contender in trainers}
        for number, batches in enumerate(turns(data.train_x, data.train_y, given.batch_size, given.steps)):
            order = list(trainers)
            for contender in order[number % len(order) :] + order[: number % len(order)]:
                begin = time.perf_counter()
                trainers[contender](batches)
                times[contender].append(time.perf_counter() - begin)
        size = sum(p.numel() for p in build().parameters())
        print(f"{name}: {size:,} parameters, batches of {given.batch_size}, {len(times['plain'])} turns")
        for contender, own in times.items():
            ratio = statistics.median(a / b for a, b in zip(own, times["plain"], strict=True))
            print(f"  {contender:<22}{ratio:7.3f}")


if __name__ == "__main__":
    main()

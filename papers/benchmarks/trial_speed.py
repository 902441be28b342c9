"""What a trial costs over a loop written by hand: an epoch of a task's training function against minimal loops.

Run with `python papers/benchmarks/trial_speed.py --data-dir DATA`; it needs MNIST and Cora. The loops have the task's
data, model, optimizer and evaluation and nothing else; one that differs in more says so in its name. Task and loop
take turns of one epoch each; a ratio is the median over epochs of the task's time over the loop's, evaluation
included in both.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from flatwise.study.arms import Arm
from flatwise.study.registry import get_task
from flatwise.study.task import Settings
from flatwise.study.tasks.classification import Classification, build_mlp
from flatwise.study.trial import Trial
from flatwise_papers.data.graphs import NodeClassification
from flatwise_papers.tasks.classifiers import MNIST_WIDTHS
from flatwise_papers.tasks.graphs import Dropout, Kind, build_graph_network, propagation

Epoch = Callable[[], float]  # trains and evaluates once; the test error in percent


def percent_wrong(outputs: torch.Tensor, y: torch.Tensor) -> float:
    """Error in percent."""
    return 100 * float((outputs.argmax(1) != y).double().mean())


def mlp_loop(data: Classification, settings: Settings) -> Epoch:
    """Batches in random order, then the validation and the test split."""
    model = build_mlp(MNIST_WIDTHS[3])
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=settings.learning_rate,
        momentum=0.9,
        weight_decay=settings.weight_decay,
    )

    def epoch() -> float:
        total = torch.zeros(())
        for batch in torch.randperm(len(data.train_x)).split(settings.batch_size):
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(batch)
        total.item()
        with torch.no_grad():
            percent_wrong(model(data.val_x), data.val_y)
            return percent_wrong(model(data.test_x), data.test_y)

    return epoch


def graph_epoch(data: NodeClassification, settings: Settings, model: torch.nn.Module, train, whole) -> Epoch:
    """A step, then one evaluation. ``train()`` gives the training nodes' outputs, ``whole()`` all nodes'."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    labels = data.labels[data.train]

    def epoch() -> float:
        model.train()
        loss = F.cross_entropy(train(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        model.eval()
        with torch.no_grad():
            outputs = whole()
            percent_wrong(outputs[data.val], data.labels[data.val])
            return percent_wrong(outputs[data.test], data.labels[data.test])

    return epoch


def graph_loop(data: NodeClassification, settings: Settings, *, kind: Kind, part: bool) -> Epoch:
    """The task's own network, trained on the part of the graph that reaches the training nodes, or on all of it."""
    nodes = len(data.labels)
    model = build_graph_network(kind, data.features.shape[1], data.classes, Dropout(settings.dropout, 0))
    whole = data.features, propagation(kind, data.edges, nodes)
    if not part:
        return graph_epoch(data, settings, model, lambda: model(*whole)[data.train], lambda: model(*whole))
    reach = data.within_hops(data.train, 2)
    near = data.features.select_rows(reach), propagation(kind, data.edges, nodes, within=reach)
    train = torch.searchsorted(reach, data.train)
    return graph_epoch(data, settings, model, lambda: model(*near)[train], lambda: model(*whole))


def geometric_loop(data: NodeClassification, settings: Settings) -> Epoch:
    """torch_geometric's example of a GCN: dense words, torch's dropout."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        from torch_geometric.nn import GCNConv

    first = GCNConv(data.features.shape[1], 16, cached=True)
    second = GCNConv(16, data.classes, cached=True)
    model = torch.nn.ModuleList([first, second])
    words = data.features @ torch.eye(data.features.shape[1])

    def outputs() -> torch.Tensor:
        x = F.dropout(words, settings.dropout, training=model.training)
        x = F.dropout(first(x, data.edges).relu(), settings.dropout, training=model.training)
        return second(x, data.edges)

    return graph_epoch(data, settings, model, lambda: outputs()[data.train], outputs)


CASES: dict[str, tuple[int, dict[str, Callable[..., Epoch]]]] = {
    "mnist-mlp-3": (6, {"by hand": mlp_loop}),
    "cora-gcn": (
        200,
        {
            "by hand": partial(graph_loop, kind="gcn", part=True),
            "by hand, trained on the whole graph": partial(graph_loop, kind="gcn", part=False),
            "torch_geometric, dense words": geometric_loop,
        },
    ),
}


def measure(name: str, data_dir: Path | None) -> None:
    """Run one task beside each of its loops, and print."""
    epochs, factories = CASES[name]
    task = get_task(name)
    data, settings = task.load(data_dir), task.settings.updated({"epochs": epochs})
    print(f"{name}, {epochs} epochs")
    for loop, factory in factories.items():
        torch.manual_seed(0)
        epoch = factory(data, settings)
        alternation = Alternation(epoch)
        task.train(Trial(Arm("vanilla"), 0, alternation), settings, data)
        ratio = statistics.median(alternation.ratios[1:])  # the first has the preparation in it
        own, other = alternation.errors
        print(f"  over {loop:<37}{ratio:7.3f}   (test errors at the end: {own:.1f} % and {other:.1f} %)")


class Alternation:
    """After each epoch of the task, one of the loop; both are timed."""

    def __init__(self, epoch: Epoch) -> None:
        self.epoch = epoch
        self.ratios: list[float] = []
        self.errors = (0.0, 0.0)
        self.begin = 0.0

    def __call__(self, metrics: Mapping[str, float]) -> None:
        """What a trial calls as it is told of an epoch."""
        middle = time.perf_counter()
        error = self.epoch()
        end = time.perf_counter()
        self.ratios.append((middle - self.begin) / (end - middle))
        self.errors = metrics["test_error"], error
        self.begin = time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=None, help="folder with the data; default: FLATWISE_DATA")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("tasks", nargs="*", default=list(CASES), help=f"default: {' '.join(CASES)}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.tasks:
        measure(name, given.data_dir)


if __name__ == "__main__":
    main()

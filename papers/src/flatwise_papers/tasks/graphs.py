"""Node classification on citation networks: the tasks, and the training function that they share."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from flatwise.flatness import BatchLoss
from flatwise.study.task import Settings, Task
from flatwise.study.tasks.schedules import attach
from flatwise.study.tasks.training import build_optimizer, find_device, initialized, now, percent_wrong
from flatwise_papers.data import NodeClassification, load_citeseer, load_cora, load_pubmed
from flatwise_papers.tasks.graph_models import Dropout, Kind, build_graph_network, propagation

if TYPE_CHECKING:
    from flatwise.study.trial import Trial


class GraphSettings(Settings):
    """How a graph network trains: every step uses the whole graph, so an epoch is one step.

    Attributes:
        batch_size: ``"full"``, and nothing else: there are no batches.
        dropout: probability that an entry of what goes into a layer is dropped (and an attention coefficient of GAT),
            in [0, 1); rounded to a multiple of 1/65,536.
    """

    batch_size: Literal["full"] = "full"  # type: ignore[assignment]
    dropout: float = Field(default=0.5, ge=0, lt=1)


# Kipf & Welling's (2017), but for weight decay on the second layer, which they leave out. LEAP has 2 layers of 16 units
# too, and does not say its dropout or epochs.
GRAPH_SETTINGS = GraphSettings(epochs=200, learning_rate=0.01, optimizer="adam", weight_decay=5e-4)


def train_graph_network(trial: Trial, settings: GraphSettings, data: NodeClassification, *, kind: Kind) -> None:
    """Train a graph network with cross-entropy on the training nodes, and report every epoch to the trial.

    The trial's seed decides the initial weights and the dropout masks, and nothing else does: they are drawn on the CPU
    by generators of this function's own, so they are the same on every device and in every arm, step by step, and the
    global random state is as it was.

    A step computes what reaches the training nodes through the two layers, and no more: the same loss, from a seventh
    of PubMed's nodes. Evaluation is one pass over the whole graph.

    Reported per epoch: ``train_loss``, the loss at its step; ``val_error`` and, where the data have a test split,
    ``test_error`` after it, in percent, NaN when an output of the split is not finite; ``seconds``, the time for
    training alone, evaluation excluded. The flatness, where it is asked for, is that of the cross-entropy on all
    training nodes, without weight decay and dropout.

    Args:
        trial: the seed, and where to attach and report.
        settings: how to train.
        data: what to train on, on any device.
        kind: of network: see :func:`build_graph_network`.

    Raises:
        SettingsError: the settings ask for a device that is not there.
    """
    device = find_device(settings)
    data = data.to(device)
    # Two seeds from one: the same numbers must not decide both the weights and what is dropped.
    init_seed, dropout_seed = (int(s) for s in np.random.SeedSequence(trial.seed).generate_state(2, np.uint64))
    dropout = Dropout(settings.dropout, dropout_seed)
    model = initialized(lambda: build_graph_network(kind, data.features.shape[1], data.classes, dropout), init_seed).to(
        device
    )

    nodes = len(data.labels)
    whole = data.features, propagation(kind, data.edges, nodes)
    reach = data.within_hops(data.train, 2)
    part = data.features.select_rows(reach), propagation(kind, data.edges, nodes, within=reach)
    train, labels = torch.searchsorted(reach, data.train), data.labels[data.train]

    optimizer = build_optimizer(settings, model.parameters())
    pace = attach(trial, optimizer, settings, 1)

    for _ in range(settings.epochs):
        start = now(device)
        model.train()
        loss = F.cross_entropy(model(*part)[train], labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        pace.step_ended()
        pace.epoch_ended()
        seconds = now(device) - start

        trial.report(seconds=seconds, train_loss=loss.item(), **_errors(model, whole, data))
    trial.measure_flatness(model, BatchLoss(partial(_loss, graph=part)), (train, labels))


def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], graph: tuple[Any, Any]) -> torch.Tensor:
    """Cross-entropy of the nodes of a batch."""
    nodes, labels = batch
    return F.cross_entropy(model(*graph)[nodes], labels)


@torch.no_grad()
def _errors(model: nn.Module, graph: tuple[Any, Any], data: NodeClassification) -> dict[str, float]:
    """Error on the validation split, and on the test split where the data have one."""
    model.eval()
    outputs = model(*graph)
    errors = {"val_error": percent_wrong(outputs[data.val], data.labels[data.val])}
    if data.test is not None:
        errors["test_error"] = percent_wrong(outputs[data.test], data.labels[data.test])
    return errors


NETWORKS: dict[Kind, str] = {"gcn": "GCN", "gat": "GAT", "gin": "GIN", "sage": "GraphSAGE"}
DATA_SETS = {"cora": ("Cora", load_cora), "citeseer": ("CiteSeer", load_citeseer), "pubmed": ("PubMed", load_pubmed)}

GRAPH_TASKS: tuple[Task, ...] = tuple(
    Task(
        name=f"{data_name}-{kind}",
        summary=f"{network} of 2 layers, 16 hidden units, on {title}: classes of papers from words and citations",
        settings=GRAPH_SETTINGS,
        load=load,
        train=partial(train_graph_network, kind=kind),
    )
    for data_name, (title, load) in DATA_SETS.items()
    for kind, network in NETWORKS.items()
)

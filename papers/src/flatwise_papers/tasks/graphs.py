"""Graph networks (GCN, GAT, GIN, GraphSAGE) and the tasks that train them on citation networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from flatwise.flatness import BatchLoss
from flatwise.study.task import Settings, Task
from flatwise.study.tasks.training import find_device, initialized, percent_wrong, seeds_from, train_epochs
from flatwise_papers.data.graphs import NodeClassification, SparseMatrix, load_citeseer, load_cora, load_pubmed

if TYPE_CHECKING:
    from flatwise.study.trial import Trial


Kind = Literal["gcn", "gat", "gin", "sage"]
Features = TypeVar("Features", torch.Tensor, SparseMatrix)
HIDDEN = 16  # LEAP, appendix A.2
GAT_HEADS = 8


class GCNConv(nn.Module):
    """Kipf & Welling (2017): ``D^-1/2 (A + I) D^-1/2 X W + b``. Glorot's initialization; the bias begins at 0."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_glorot(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: torch.Tensor | SparseMatrix, graph: SparseMatrix) -> torch.Tensor:
        """Features of all nodes, shape ``(nodes, inputs)``, to shape ``(nodes, outputs)``."""
        return graph @ (x @ self.weight.t()) + self.bias


class SAGEConv(nn.Module):
    """GraphSAGE (Hamilton et al., 2017) with the mean of the neighbours: ``D^-1 A X W1 + b + X W2``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.neighbours = nn.Linear(inputs, outputs)
        self.own = nn.Linear(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor | SparseMatrix, graph: SparseMatrix) -> torch.Tensor:
        """Features of all nodes, shape ``(nodes, inputs)``, to shape ``(nodes, outputs)``."""
        both = x @ torch.cat([self.neighbours.weight, self.own.weight]).t()
        neighbours, own = both.chunk(2, dim=1)
        return graph @ neighbours + self.neighbours.bias + own


class GINConv(nn.Module):
    """GIN-0 (Xu et al., 2019): an MLP with one hidden layer, no batch normalization, of a node plus its neighbours."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, HIDDEN)
        self.second = nn.Linear(HIDDEN, outputs)

    def forward(self, x: torch.Tensor | SparseMatrix, graph: SparseMatrix) -> torch.Tensor:
        """Features of all nodes, shape ``(nodes, inputs)``, to shape ``(nodes, outputs)``."""
        hidden = graph @ (x @ self.first.weight.t()) + self.first.bias
        outputs: torch.Tensor = self.second(hidden.relu())
        return outputs


class GATConv(nn.Module):
    """Graph attention (Veličković et al., 2018) with heads side by side, and dropout of attention coefficients."""

    def __init__(self, inputs: int, outputs: int, *, heads: int, dropout: Dropout) -> None:
        super().__init__()
        self.weight = nn.Parameter(_glorot(outputs, inputs))
        self.source_attention = nn.Parameter(_glorot(heads, outputs // heads))
        self.target_attention = nn.Parameter(_glorot(heads, outputs // heads))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.dropout = dropout

    def forward(self, x: torch.Tensor | SparseMatrix, graph: Incidence) -> torch.Tensor:
        """Features of all nodes, shape ``(nodes, inputs)``, to shape ``(nodes, outputs)``."""
        # (heads, outputs), 1 where an output is of a head: products with it run faster than sums over a last dimension
        # of 2.
        heads, width = self.source_attention.shape
        of_head = torch.eye(heads, device=self.bias.device, dtype=self.bias.dtype).repeat_interleave(width, dim=1)
        projected = x @ self.weight.t()
        source_score = projected @ (of_head * self.source_attention.flatten()).t()
        target_score = projected @ (of_head * self.target_attention.flatten()).t()
        score = F.leaky_relu(graph.source @ source_score + graph.target @ target_score, 0.2)
        # Softmax over the edges of each target; its highest score is taken off first, or exp would overflow.
        highest = torch.segment_reduce(score.detach(), "max", offsets=graph.target.transposed.starts)
        share = torch.exp(score - graph.target @ highest)
        total = graph.target.transposed_times(share)
        messages = (self.dropout(share) @ of_head) * (graph.source @ projected)
        return graph.target.transposed_times(messages) / (total @ of_head) + self.bias


class Dropout(nn.Module):
    """Dropout from a generator of its own, of dense and of sparse features; does nothing in evaluation mode.

    Only entries that are there draw a number: whether a 0 is dropped makes no difference. Numbers are drawn on the CPU,
    so they are the same on every device, four from each 64 random bits, which is some ten times as fast as torch's.
    That makes the probability a multiple of 1/65,536, which the scale of what is kept takes into account.

    Args:
        rate: probability of being dropped, in [0, 1), rounded to a multiple of 1/65,536.
        seed: seed of the generator.
    """

    def __init__(self, rate: float, seed: int) -> None:
        super().__init__()
        self._kept = max(65_536 - round(65_536 * rate), 1)
        self._random = np.random.SFC64(seed)

    def forward(self, x: Features) -> Features:
        """``x`` with dropped entries set to 0 and the others scaled up, so that the mean stays."""
        if not self.training or self._kept == 65_536:
            return x
        if isinstance(x, SparseMatrix):
            return x.with_values(self._dropped(x.rows.values))
        return self._dropped(x)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        bits = self._random.random_raw(math.ceil(x.numel() / 4)).view(np.int16)[: x.numel()]
        kept = torch.from_numpy(bits).to(x.device) < self._kept - 32_768
        return x * (kept.view(x.shape) * (65_536 / self._kept))


class GraphNetwork(nn.Module):
    """Two graph convolutions with an activation between them, and dropout of what goes into each.

    Args:
        first, second: the convolutions.
        activation: between them.
        dropout: before each; may be the same object as in the convolutions.
    """

    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        activation: Callable[[torch.Tensor], torch.Tensor],
        dropout: Dropout,
    ) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.activation = activation
        self.dropout = dropout

    def forward(self, features: SparseMatrix, graph: Graph) -> torch.Tensor:
        """Scores of each class for each node, shape ``(nodes, classes)``.

        Args:
            features: shape ``(nodes, features)``.
            graph: what :func:`propagation` gives for this kind of network.
        """
        hidden = self.activation(self.first(self.dropout(features), graph))
        scores: torch.Tensor = self.second(self.dropout(hidden), graph)
        return scores


def build_graph_network(kind: Kind, features: int, classes: int, dropout: Dropout) -> GraphNetwork:
    """Return a network with 16 hidden units a node, as in the LEAP paper, and torch_geometric's initialization.

    GAT's 16 are 8 heads of 2 side by side, and one head gives the classes: LEAP says "hidden size 16", and 8 heads are
    the GAT paper's (of 8 each). Its activation is ELU, that of the others ReLU.
    """
    if kind == "gat":
        first = GATConv(features, HIDDEN, heads=GAT_HEADS, dropout=dropout)
        return GraphNetwork(first, GATConv(HIDDEN, classes, heads=1, dropout=dropout), F.elu, dropout)
    convolution = {"gcn": GCNConv, "gin": GINConv, "sage": SAGEConv}[kind]
    return GraphNetwork(convolution(features, HIDDEN), convolution(HIDDEN, classes), F.relu, dropout)


@dataclass(frozen=True, slots=True, eq=False)
class Incidence:
    """Edges as two matrices of shape ``(edges, nodes)``, 1 where an edge begins and where it ends.

    ``source @ x`` takes the rows of ``x`` to the edges; ``target.transposed_times(y)`` adds those of ``y`` up where
    edges end. Edges are ordered by target.
    """

    source: SparseMatrix
    target: SparseMatrix


Graph = SparseMatrix | Incidence


def propagation(kind: Kind, edges: torch.Tensor, nodes: int, within: torch.Tensor | None = None) -> Graph:
    """Return what a network of that kind passes features along by: weights of the edges, degrees worked in.

    Args:
        kind: of the network.
        edges: source and target, shape ``(2, edges)``, without self-loops.
        nodes: number of nodes.
        within: only these nodes, ascending, in this order, with the weights that they have in the whole graph;
            default: all.
    """
    source, target = edges
    loops = torch.arange(nodes, device=edges.device)
    degree = torch.bincount(target, minlength=nodes)
    if kind == "sage":
        weight = 1.0 / degree[target]
    else:
        source, target = torch.cat([source, loops]), torch.cat([target, loops])
        weight = torch.ones(len(source), device=edges.device)
    if kind == "gcn":
        weight = ((degree[source] + 1) * (degree[target] + 1)) ** -0.5
    if within is not None:
        inside = torch.zeros(nodes, dtype=torch.bool, device=edges.device).index_fill_(0, within, True)
        kept = inside[source] & inside[target]
        source, target = torch.searchsorted(within, source[kept]), torch.searchsorted(within, target[kept])
        weight = weight[kept]
        nodes = len(within)
    if kind == "gat":
        by_target = torch.argsort(target, stable=True)
        edge = torch.arange(len(target), device=edges.device)
        shape = (len(target), nodes)
        return Incidence(*(SparseMatrix.of(edge, ends[by_target], weight, shape) for ends in (source, target)))
    return SparseMatrix.of(target, source, weight, (nodes, nodes))


def _glorot(*shape: int) -> torch.Tensor:
    return nn.init.xavier_uniform_(torch.empty(shape))


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
    init_seed, dropout_seed = seeds_from(trial.seed, 2)
    dropout = Dropout(settings.dropout, dropout_seed)
    model = initialized(lambda: build_graph_network(kind, data.features.shape[1], data.classes, dropout), init_seed).to(
        device
    )

    nodes = len(data.labels)
    whole = data.features, propagation(kind, data.edges, nodes)
    reach = data.within_hops(data.train, 2)
    part = data.features.select_rows(reach), propagation(kind, data.edges, nodes, within=reach)
    train, labels = torch.searchsorted(reach, data.train), data.labels[data.train]

    def losses() -> Iterator[tuple[torch.Tensor, int]]:
        yield F.cross_entropy(model(*part)[train], labels), 1

    train_epochs(trial, settings, model, 1, losses, lambda: _errors(model, whole, data))
    trial.measure_flatness(model, BatchLoss(partial(_loss, graph=part)), (train, labels))


def _loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], graph: tuple[Any, Any]) -> torch.Tensor:
    """Cross-entropy of the nodes of a batch."""
    nodes, labels = batch
    return F.cross_entropy(model(*graph)[nodes], labels)


@torch.no_grad()
def _errors(model: nn.Module, graph: tuple[Any, Any], data: NodeClassification) -> dict[str, float]:
    """Error on the validation split, and on the test split if the data have one."""
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

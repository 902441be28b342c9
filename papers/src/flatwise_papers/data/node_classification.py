"""One graph whose nodes are to be classified, some of them labelled for training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from flatwise_papers.data.sparse import SparseMatrix


@dataclass(frozen=True, slots=True, eq=False)
class NodeClassification:
    """A graph, a class for each node, and which nodes train, validate and test.

    Training sees features and edges of all nodes, and labels of the training nodes alone (transductive learning).

    Attributes:
        features: one row per node, shape ``(nodes, features)``.
        edges: each edge in both directions, as source and target: int64, shape ``(2, edges)``. No self-loops, none
            twice.
        labels: class of each node, int64, shape ``(nodes,)``, in ``0 .. classes - 1``.
        train, val, test: the nodes of each split, int64, shape ``(n,)``. ``test`` is ``None`` in what a tuning trial is
            handed: see :meth:`without_test`.
        classes: number of classes.
    """

    features: SparseMatrix
    edges: torch.Tensor
    labels: torch.Tensor
    train: torch.Tensor
    val: torch.Tensor
    test: torch.Tensor | None
    classes: int

    def to(self, device: torch.device | str) -> NodeClassification:
        """Return the same data on ``device``; tensors that are there already are shared, not copied."""
        return NodeClassification(
            features=self.features.to(device),
            edges=self.edges.to(device),
            labels=self.labels.to(device),
            train=self.train.to(device),
            val=self.val.to(device),
            test=None if self.test is None else self.test.to(device),
            classes=self.classes,
        )

    def without_test(self) -> NodeClassification:
        """Return the same data without the test split and its nodes' labels, which become class 0."""
        if self.test is None:
            return self
        # The nodes themselves stay, as the graph is one; what is not there cannot be chosen on.
        return replace(self, labels=self.labels.index_fill(0, self.test, 0), test=None)

    def within_hops(self, nodes: torch.Tensor, hops: int) -> torch.Tensor:
        """The nodes from which ``nodes`` are reached over at most so many edges, themselves included, ascending."""
        reached = torch.zeros(len(self.labels), dtype=torch.bool, device=nodes.device).index_fill_(0, nodes, True)
        source, target = self.edges
        for _ in range(hops):
            reached = reached.index_fill(0, source[reached[target]], True)
        return reached.nonzero()[:, 0]

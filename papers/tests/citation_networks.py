"""A made-up citation network, written as the planetoid files are."""

import hashlib
import io
import pickle
from typing import ClassVar

import numpy as np
import scipy.sparse
import torch

from flatwise_papers.data import graphs as planetoid


class Python2Pickler(pickle._Pickler):
    """Writes the bytes of arrays as Python 2 did, and the names that modules had then."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, content):
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(content)

    dispatch[bytes] = save_bytes


def pickled(content):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return (
        file.getvalue()
        .replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        .replace(b"cscipy.sparse._csr\n", b"cscipy.sparse.csr\n")
    )


class MadeUp:
    """Papers of three classes that use the words of their class, mostly, and cite within it, mostly.

    As in CiteSeer, one of the test range is missing; it has no words and no citations.
    """

    def __init__(self):
        numbers = np.random.RandomState(0)
        self.nodes, self.before_test, self.train, self.val, self.missing = 120, 70, 12, 50, 100
        self.labels = np.arange(self.nodes) % 3
        self.labels[self.missing] = 0
        own = np.arange(30) // 10 == self.labels[:, None]
        self.words = (numbers.rand(self.nodes, 30) < np.where(own, 0.4, 0.1)).astype(np.float32)
        self.words[:, 0] = 1  # none without words
        self.words[self.missing] = 0
        same = self.labels[:, None] == self.labels
        cites = numbers.rand(self.nodes, self.nodes) < np.where(same, 0.06, 0.01)
        cites[self.missing] = cites[:, self.missing] = False
        self.adjacency = (cites | cites.T) & ~np.eye(self.nodes, dtype=bool)
        self.test = numbers.permutation([n for n in range(self.before_test, self.nodes) if n != self.missing])

    def files(self):
        graph = planetoid.defaultdict(list, {n: np.flatnonzero(self.adjacency[n]).tolist() for n in range(self.nodes)})
        graph[5].append(5)  # a loop
        graph[3].append(graph[3][0])  # an edge twice
        graph[8].append(graph[8].pop(0))  # no order
        graph[9].pop()  # listed by the other paper alone
        one_hot = np.eye(3, dtype=np.int32)[self.labels]
        return {
            "allx": pickled(scipy.sparse.csr_matrix(self.words[: self.before_test])),
            "tx": pickled(scipy.sparse.csr_matrix(self.words[self.test])),
            "ally": pickled(one_hot[: self.before_test]),
            "ty": pickled(one_hot[self.test]),
            "y": pickled(one_hot[: self.train]),
            "graph": pickled(graph),
            "test.index": "".join(f"{n}\n" for n in self.test).encode(),
        }

    def write(self, folder, monkeypatch):
        folder.mkdir(parents=True)
        monkeypatch.setattr(planetoid, "VALIDATION_SIZE", self.val)
        for part, content in self.files().items():
            (folder / f"ind.cora.{part}").write_bytes(content)
            monkeypatch.setitem(planetoid.SHA256, f"ind.cora.{part}", hashlib.sha256(content).hexdigest())


def dense(matrix):
    return matrix @ torch.eye(matrix.shape[1])

"""Graphs whose nodes are classified, sparse matrices, and the citation networks Cora, CiteSeer and PubMed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flatwise.study.tasks.classification import DataError
from flatwise.study.tasks.training import moved
from flatwise_papers.data.files import DataFile, read_file, unpickle


@dataclass(frozen=True, slots=True, eq=False)
class CompressedRows:
    """A sparse matrix row by row: the compressed sparse rows (CSR) of the literature.

    Attributes:
        starts: where each row's entries begin, and at the end their number: int64, shape ``(rows + 1,)``.
        columns: column of each entry, int64, shape ``(entries,)``.
        values: value of each entry, float32, shape ``(entries,)``.
    """

    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    def times(self, dense: torch.Tensor) -> torch.Tensor:
        """The product with a dense matrix, without a gradient.

        To add up weighted rows of a table is what an embedding bag does: a fast kernel on every device, and one that
        adds in a fixed order, which scattering on a GPU does not.
        """
        values = self.values.to(dense.dtype)
        return torch.embedding_bag(
            dense.contiguous(), self.columns, self.starts, per_sample_weights=values, include_last_offset=True
        )[0]

    def to(self, device: torch.device | str) -> CompressedRows:
        """The same rows on ``device``."""
        return moved(self, device)


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix:
    """A constant sparse matrix, kept together with its transpose, which the gradient of a product needs.

    ``matrix @ dense`` has a gradient with respect to ``dense``, and that has one in turn.

    Attributes:
        rows: the matrix.
        transposed: the transpose.
        order: the transpose's values are ``rows.values[order]``; int64, shape ``(entries,)``.
    """

    rows: CompressedRows
    transposed: CompressedRows
    order: torch.Tensor

    @classmethod
    def of(cls, row: torch.Tensor, column: torch.Tensor, value: torch.Tensor, shape: tuple[int, int]) -> SparseMatrix:
        """Make a matrix of its entries, in any order; those at the same place add up.

        Args:
            row, column: place of each entry, int64, shape ``(entries,)``.
            value: value of each entry, shape ``(entries,)``; float32 is kept of it.
            shape: number of rows and of columns.
        """
        by_row = torch.argsort(row * shape[1] + column, stable=True)
        row, column, value = row[by_row], column[by_row], value[by_row].float()
        order = torch.argsort(column, stable=True)
        return cls(
            rows=CompressedRows(_starts(row, shape[0]), column, value),
            transposed=CompressedRows(_starts(column[order], shape[1]), row[order], value[order]),
            order=order,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.rows.starts) - 1, len(self.transposed.starts) - 1

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        """The product with a dense matrix of shape ``(columns, k)``: shape ``(rows, k)``."""
        return _product(dense, self.rows, self.transposed)

    def transposed_times(self, dense: torch.Tensor) -> torch.Tensor:
        """The product of the transpose with a dense matrix of shape ``(rows, k)``: shape ``(columns, k)``."""
        return _product(dense, self.transposed, self.rows)

    def with_values(self, values: torch.Tensor) -> SparseMatrix:
        """The matrix with other values at the same places, in the order of ``rows.values``."""
        return SparseMatrix(
            CompressedRows(self.rows.starts, self.rows.columns, values),
            CompressedRows(self.transposed.starts, self.transposed.columns, values[self.order]),
            self.order,
        )

    def select_rows(self, rows: torch.Tensor) -> SparseMatrix:
        """The matrix of some rows: their numbers ascending, int64, shape ``(k,)``."""
        counts = self.rows.starts.diff()
        row = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), counts)
        kept = torch.zeros(len(counts), dtype=torch.bool, device=rows.device).index_fill_(0, rows, True)[row]
        return SparseMatrix.of(
            torch.searchsorted(rows, row[kept]),
            self.rows.columns[kept],
            self.rows.values[kept],
            (len(rows), self.shape[1]),
        )

    def to(self, device: torch.device | str) -> SparseMatrix:
        """The same matrix on ``device``; tensors that are there already are shared, not copied."""
        return moved(self, device)


class _Product(torch.autograd.Function):
    """Of a sparse and a dense matrix. Its derivative is a product with the transpose, so it has one too."""

    @staticmethod
    def forward(ctx: Any, dense: torch.Tensor, rows: CompressedRows, transposed: CompressedRows) -> torch.Tensor:
        ctx.rows, ctx.transposed = rows, transposed
        return rows.times(dense)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _product(gradient, ctx.transposed, ctx.rows), None, None


def _product(dense: torch.Tensor, rows: CompressedRows, transposed: CompressedRows) -> torch.Tensor:
    product: torch.Tensor = _Product.apply(dense, rows, transposed)  # type: ignore[no-untyped-call]
    return product


def _starts(sorted_rows: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.searchsorted(sorted_rows, torch.arange(rows + 1, device=sorted_rows.device))


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
        return moved(self, device)

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


MIRRORS = ("https://github.com/kimiyoung/planetoid/raw/master/data/",)
SHA256 = {
    "ind.cora.allx": "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543",
    "ind.cora.ally": "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71",
    "ind.cora.graph": "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d",
    "ind.cora.test.index": "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875",
    "ind.cora.tx": "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a",
    "ind.cora.ty": "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad",
    "ind.cora.y": "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1",
    "ind.citeseer.allx": "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668",
    "ind.citeseer.ally": "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95",
    "ind.citeseer.graph": "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7",
    "ind.citeseer.test.index": "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4",
    "ind.citeseer.tx": "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21",
    "ind.citeseer.ty": "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce",
    "ind.citeseer.y": "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924",
    "ind.pubmed.allx": "508e538e2abdccdd54c4d3e9f49d638b4af7107d85845f66ddea5a5152658b7e",
    "ind.pubmed.ally": "0c37bbe3b5014ec365e9d393cf4791925e5ed94fb194305d74f064a8d7b50f0e",
    "ind.pubmed.graph": "5b89f0036ca22909471f1e6558eb42fa06e0c730a577bde5b058b40638f81dc9",
    "ind.pubmed.test.index": "b101d421688bbaecbd82e8a18f1e282378d6830f3a37666f28ebc47f844341b5",
    "ind.pubmed.tx": "4eb5f5d0f30f26497eb0ac6ac9719d09c67e284f1ed0385c93f3ef27a671da3d",
    "ind.pubmed.ty": "ee2e0d4819d9fbcc403689c3bf2e49face401b605932f093bc58ab6461130fdd",
    "ind.pubmed.y": "e6c807633307a07ed659249006536a147c7999c797f11a2560752990181b41b3",
}
VALIDATION_SIZE = 500


def load_cora(data_dir: str | Path | None = None) -> NodeClassification:
    """Return Cora: 2,708 papers of 7 classes, 1,433 words; 140 train. See :func:`load_planetoid`."""
    return load_planetoid("Cora", data_dir)


def load_citeseer(data_dir: str | Path | None = None) -> NodeClassification:
    """Return CiteSeer: 3,327 papers of 6 classes, 3,703 words; 120 train. See :func:`load_planetoid`."""
    return load_planetoid("CiteSeer", data_dir)


def load_pubmed(data_dir: str | Path | None = None) -> NodeClassification:
    """Return PubMed: 19,717 papers of 3 classes, 500 words; 60 train. See :func:`load_planetoid`."""
    return load_planetoid("PubMed", data_dir)


def load_planetoid(name: str, data_dir: str | Path | None = None) -> NodeClassification:
    """Return a citation network in the public split: 20 training nodes per class, 500 validation and 1,000 test nodes.

    Nodes are papers, edges citations in either direction, features the words of a paper, weighted so that they add up
    to 1 (Kipf & Welling, 2017). A paper without words keeps none: CiteSeer has 15, which the files leave out and which
    are in no split. Their label is 0.

    Args:
        name: ``"Cora"``, ``"CiteSeer"`` or ``"PubMed"``.
        data_dir: folder with the ``ind.*`` files in ``planetoid/<name>/raw``, ``<name>/raw``, ``planetoid/<name>``,
            ``<name>``, ``raw`` or the folder itself. ``None``: the environment variable ``FLATWISE_DATA``, else the
            per-user cache, which downloads.

    Raises:
        DataError: a file is missing, corrupt, unreadable or cannot be downloaded.
    """
    folders = (f"planetoid/{name}/raw", f"{name}/raw", f"planetoid/{name}", name, "raw", "")

    def read(part: str) -> tuple[str, bytes]:
        file_name = f"ind.{name.lower()}.{part}"
        file = DataFile(name=file_name, sha256=SHA256[file_name], folders=folders, mirrors=MIRRORS)
        return file_name, read_file(file, data_dir)

    # "all" is the nodes before the test nodes; the first of them, as many as y has, are the training nodes.
    words, test_words = parse_pickle(*read("allx")), parse_pickle(*read("tx"))
    classes, test_classes = parse_pickle(*read("ally")), parse_pickle(*read("ty"))
    train_size = len(parse_pickle(*read("y")))
    neighbours = parse_pickle(*read("graph"))
    test = np.array(read("test.index")[1].split(), dtype=np.int64)

    nodes = len(neighbours)
    labels = np.zeros(nodes, dtype=np.int64)
    labels[: len(classes)] = classes.argmax(axis=1)
    labels[test] = test_classes.argmax(axis=1)
    return NodeClassification(
        features=_features([(np.arange(len(classes)), words), (test, test_words)], nodes),
        edges=_edges(neighbours, nodes),
        labels=torch.from_numpy(labels),
        train=torch.arange(train_size),
        val=torch.arange(train_size, train_size + VALIDATION_SIZE),
        test=torch.from_numpy(np.sort(test)),
        classes=classes.shape[1],
    )


class CsrMatrix:
    """What is read of a pickled ``scipy.sparse.csr_matrix``: ``data``, ``indices``, ``indptr`` and ``_shape``."""

    data: Any
    indices: Any
    indptr: Any
    _shape: tuple[int, int]


_ALSO = {
    ("scipy.sparse.csr", "csr_matrix"): CsrMatrix,
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "list"): list,
}


def parse_pickle(name: str, content: bytes) -> Any:
    """Return the array, :class:`CsrMatrix` or dict of lists in a pickle of Python 2.

    Args:
        name: file name, for messages.
        content: the file.

    Raises:
        DataError: it is no pickle, is cut off, or holds something else.
    """
    try:
        return unpickle(content, "latin1", _ALSO)
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"'{name}' cannot be read as a planetoid file ({error}): get the file again.") from error


def _features(parts: list[tuple[Any, CsrMatrix]], nodes: int) -> SparseMatrix:
    """One matrix of parts, each with the nodes that its rows belong to; each row divided by its sum."""
    row = np.concatenate([np.repeat(numbers, np.diff(part.indptr)) for numbers, part in parts])
    column = np.concatenate([part.indices for _, part in parts]).astype(np.int64)
    value = np.concatenate([part.data for _, part in parts]).astype(np.float64)
    sums = np.bincount(row, weights=value, minlength=nodes)
    weight = torch.from_numpy(value / sums[row])
    shape = nodes, parts[0][1]._shape[1]
    return SparseMatrix.of(torch.from_numpy(row), torch.from_numpy(column), weight, shape)


def _edges(neighbours: dict[int, list[int]], nodes: int) -> torch.Tensor:
    """Both directions of each edge, once, ordered by target, then source; the files have some twice, and loops."""
    source = np.repeat(list(neighbours), [len(listed) for listed in neighbours.values()])
    target = np.concatenate([np.array(listed, dtype=np.int64) for listed in neighbours.values()])
    different = source != target
    source, target = source[different], target[different]
    codes = np.unique(np.concatenate([target * nodes + source, source * nodes + target]))
    return torch.from_numpy(np.stack([codes % nodes, codes // nodes]))

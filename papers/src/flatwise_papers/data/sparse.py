"""Sparse matrices to multiply dense ones by: no third-party kernels, differentiable as often as one likes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
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

    def to(self, device: torch.device | str) -> Rows:
        """The same rows on ``device``."""
        return Rows(self.starts.to(device), self.columns.to(device), self.values.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class SparseMatrix:
    """A constant sparse matrix, kept together with its transpose, which the gradient of a product needs.

    ``matrix @ dense`` has a gradient with respect to ``dense``, and that has one in turn.

    Attributes:
        rows: the matrix.
        transposed: the transpose.
        order: the transpose's values are ``rows.values[order]``; int64, shape ``(entries,)``.
    """

    rows: Rows
    transposed: Rows
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
            rows=Rows(_starts(row, shape[0]), column, value),
            transposed=Rows(_starts(column[order], shape[1]), row[order], value[order]),
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
            Rows(self.rows.starts, self.rows.columns, values),
            Rows(self.transposed.starts, self.transposed.columns, values[self.order]),
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
        return SparseMatrix(self.rows.to(device), self.transposed.to(device), self.order.to(device))


class _Product(torch.autograd.Function):
    """Of a sparse and a dense matrix. Its derivative is a product with the transpose, so it has one too."""

    @staticmethod
    def forward(ctx: Any, dense: torch.Tensor, rows: Rows, transposed: Rows) -> torch.Tensor:
        ctx.rows, ctx.transposed = rows, transposed
        return rows.times(dense)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _product(gradient, ctx.transposed, ctx.rows), None, None


def _product(dense: torch.Tensor, rows: Rows, transposed: Rows) -> torch.Tensor:
    product: torch.Tensor = _Product.apply(dense, rows, transposed)  # type: ignore[no-untyped-call]
    return product


def _starts(sorted_rows: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.searchsorted(sorted_rows, torch.arange(rows + 1, device=sorted_rows.device))

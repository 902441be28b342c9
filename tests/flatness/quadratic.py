"""A model whose loss is a quadratic in its weights: ``½ (w − w*)ᵀ H (w − w*) + ε``, times the mean of the data."""

import torch
from torch import nn

from flatwise.flatness import BatchLoss

SIZE = 8
FLOOR = 0.25


def hessian():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(SIZE, dtype=torch.float64)


class Quadratic(nn.Module):
    """Weights of two shapes, at the minimum: ``matrix``, three filters of two, and ``bias``."""

    def __init__(self, seed=1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.matrix = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))
        self.register_buffer("minimum", self.flat().detach().clone())

    def flat(self):
        return torch.cat([self.matrix.flatten(), self.bias])

    def forward(self, factor):
        off = self.flat() - self.minimum
        return factor * (off @ hessian() @ off / 2 + FLOOR)


LOSS = BatchLoss(lambda model, batch: model(batch[0]).mean())
ONE = torch.ones(3, dtype=torch.float64)
TRAIN = [(ONE,), (ONE[:1],)]
TEST = [(3 * ONE,)]


def expected(vector, factor=1.0):
    """The exact loss at the minimum plus a vector."""
    return factor * float(vector @ hessian() @ vector / 2 + FLOOR)

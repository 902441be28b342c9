"""Regularizations of networks.

All randomness comes from a generator that the caller owns, so that the arms of a seed see the same and the global
random state stays as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout as :class:`torch.nn.Dropout` has it, with masks from a generator of its own instead of the global one.

    In training mode each element is zeroed with the probability ``dropout``, the others are divided by
    ``1 - dropout``; in evaluation mode nothing is done.

    Args:
        dropout: probability in [0, 1) that an element is dropped. LRD gives the opposite: 0.9 retained.
        generator: of the device on which the model runs.
    """

    def __init__(self, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.dropout = dropout
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with some elements dropped, if in training mode."""
        if not self.training:
            return x
        kept = torch.empty_like(x, requires_grad=False).bernoulli_(1 - self.dropout, generator=self.generator)
        return x * kept.div_(1 - self.dropout)

    def extra_repr(self) -> str:
        """Return the probability."""
        return f"{self.dropout:g}"

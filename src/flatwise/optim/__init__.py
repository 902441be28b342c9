"""Fused optimizers: torch's own, with the noise drawn in registers inside their update."""

from flatwise.optim.optimizers import SGD, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

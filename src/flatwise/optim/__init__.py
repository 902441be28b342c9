"""Fused optimizers: torch's own, with the noise drawn in registers inside their update."""

from flatwise.optim.adam import Adam
from flatwise.optim.adamw import AdamW
from flatwise.optim.rmsprop import RMSprop
from flatwise.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

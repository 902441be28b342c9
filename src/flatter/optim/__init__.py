"""Fused optimizers: torch's own, with the noise drawn in registers inside their update."""

from flatter.optim.adam import Adam
from flatter.optim.adamw import AdamW
from flatter.optim.rmsprop import RMSprop
from flatter.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

"""Attaching a perturbation to an optimizer: factors, hooks, state, the handle, and which optimizers can have one."""

from flatwise._attach.handle import Handle, handle_of
from flatwise._attach.perturbing import SharedNoiseWarning, perturb

__all__ = ["Handle", "SharedNoiseWarning", "handle_of", "perturb"]

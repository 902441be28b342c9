"""Attaching a perturbation to an optimizer: hooks, restore, state, the handle."""

from flatwise.attach.handle import Handle, SharedNoiseWarning, handle_of, perturb

__all__ = ["Handle", "SharedNoiseWarning", "handle_of", "perturb"]

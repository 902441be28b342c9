"""Attaching a perturbation to an optimizer: hooks, restore, state, the handle."""

from flatter.attach.handle import Handle, perturb

__all__ = ["Handle", "perturb"]

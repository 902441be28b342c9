"""flatter: random and peaked learning rates for any PyTorch optimizer, and an honest test of whether they help."""

from __future__ import annotations

from flatter import lr_scheduler
from flatter.attach import Handle, perturb
from flatter.distributions import Bernoulli, Constant, Distribution, LogUniform, Mixture, Normal, Uniform
from flatter.methods import alrao, leap, lr_dropout, ralr, random_lr, random_lr_normal
from flatter.perturbation import Perturbation, Window

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Constant",
    "Distribution",
    "Handle",
    "LogUniform",
    "Mixture",
    "Normal",
    "Perturbation",
    "Uniform",
    "Window",
    "alrao",
    "leap",
    "lr_dropout",
    "lr_scheduler",
    "perturb",
    "ralr",
    "random_lr",
    "random_lr_normal",
]

"""Every method, optimizer and scheduler that the contract holds for: a new one is one more line here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.optim.lr_scheduler as torch_schedulers
from lion_pytorch import Lion
from torch import optim
from torch.optim.swa_utils import SWALR

import flatwise
from flatwise import lr_scheduler as flatwise_schedulers

STEPS_PER_EPOCH = 2
EPOCHS = 4

METHODS = {
    "leap": flatwise.leap(0.3),
    "lr_dropout": flatwise.lr_dropout(0.5),
    "random_lr": flatwise.random_lr(alpha=8, beta=0.6),
    "random_lr_normal": flatwise.random_lr_normal(mean=4, std=1, beta=0.6),
    "ralr": flatwise.ralr(p=0.5, low=1, high=3),
    "alrao": flatwise.alrao(1e-2, 10),
    "leap and ralr": [flatwise.leap(0.3), flatwise.ralr()],
}

SHAPES = ((4, 3), (4,), (2, 4))
MATRICES = ((4, 3), (2, 4))


@dataclass(frozen=True)
class OptimizerCase:
    """How to make an optimizer, and what it can train: Muon wants matrices, SparseAdam sparse gradients."""

    make: Callable
    shapes: tuple = SHAPES
    sparse: bool = False


OPTIMIZERS = {
    "SGD": OptimizerCase(lambda ps: optim.SGD(ps, lr=0.1)),
    "SGD momentum": OptimizerCase(lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, weight_decay=0.01)),
    "SGD Nesterov": OptimizerCase(lambda ps: optim.SGD(ps, lr=0.1, momentum=0.9, nesterov=True)),
    "Adam": OptimizerCase(lambda ps: optim.Adam(ps, lr=0.05)),
    "AMSGrad": OptimizerCase(lambda ps: optim.Adam(ps, lr=0.05, amsgrad=True, weight_decay=0.01)),
    "AdamW": OptimizerCase(lambda ps: optim.AdamW(ps, lr=0.05, weight_decay=0.1)),
    "RMSprop": OptimizerCase(lambda ps: optim.RMSprop(ps, lr=0.01, momentum=0.9, centered=True)),
    "Adagrad": OptimizerCase(lambda ps: optim.Adagrad(ps, lr=0.1)),
    "RAdam": OptimizerCase(lambda ps: optim.RAdam(ps, lr=0.05)),
    "NAdam": OptimizerCase(lambda ps: optim.NAdam(ps, lr=0.05)),
    "Adamax": OptimizerCase(lambda ps: optim.Adamax(ps, lr=0.05)),
    "Adadelta": OptimizerCase(lambda ps: optim.Adadelta(ps, lr=1.0)),
    "Muon": OptimizerCase(lambda ps: optim.Muon(ps, lr=0.02), MATRICES),
    "SparseAdam": OptimizerCase(lambda ps: optim.SparseAdam(ps, lr=0.05), MATRICES, sparse=True),
    "Lion": OptimizerCase(lambda ps: Lion(ps, lr=0.01, weight_decay=0.1)),
}
REFUSED = ("ASGD", "LBFGS", "Rprop")
REFUSED_PER_ELEMENT = ("Adafactor",)

S = torch_schedulers
SCHEDULERS = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: S.StepLR(o, step_size=3, gamma=0.5),
    "MultiStepLR": lambda o: S.MultiStepLR(o, milestones=[2, 5], gamma=0.3),
    "ConstantLR": lambda o: S.ConstantLR(o, factor=0.5, total_iters=4),
    "LinearLR": lambda o: S.LinearLR(o, start_factor=0.2, total_iters=5),
    "ExponentialLR": lambda o: S.ExponentialLR(o, gamma=0.9),
    "SequentialLR": lambda o: S.SequentialLR(
        o, [S.LinearLR(o, start_factor=0.1, total_iters=3), S.ExponentialLR(o, gamma=0.9)], milestones=[3]
    ),
    "PolynomialLR": lambda o: S.PolynomialLR(o, total_iters=6, power=2.0),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, T_max=5, eta_min=0.001),
    "ChainedScheduler": lambda o: S.ChainedScheduler(
        [S.ConstantLR(o, factor=0.1, total_iters=3), S.ExponentialLR(o, gamma=0.9)]
    ),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "CyclicLR": lambda o: S.CyclicLR(o, base_lr=0.01, max_lr=0.2, step_size_up=3, cycle_momentum=True),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, T_0=3, T_mult=2),
    "OneCycleLR": lambda o: S.OneCycleLR(o, max_lr=0.3, total_steps=30, cycle_momentum=True),
    "SWALR": lambda o: SWALR(o, swa_lr=0.03, anneal_epochs=4),
    "GaussianPeakLR": lambda o: flatwise_schedulers.GaussianPeakLR(o, 30, max_lr=0.3, start_lr=0.1),
    "LaplacianPeakLR": lambda o: flatwise_schedulers.LaplacianPeakLR(o, 30, max_lr=0.3, start_lr=0.1),
}

"""The registry is complete: a new optimizer, scheduler or method that it misses fails here."""

import inspect

import torch

from contract.registry import METHODS, OPTIMIZERS, REFUSED, REFUSED_PER_ELEMENT, SCHEDULERS
from contract.training import make_optimizer
from flatwise import lr_scheduler, methods


def classes(module, base):
    return {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, base) and value is not base and not name.startswith("_")
    }


def test_every_torch_optimizer_is_covered():
    made = {type(make_optimizer(name)).__name__ for name in OPTIMIZERS}
    assert classes(torch.optim, torch.optim.Optimizer) == (made - {"Lion"}) | {*REFUSED, *REFUSED_PER_ELEMENT}


def test_every_scheduler_is_covered():
    # ReduceLROnPlateau, ChainedScheduler and SequentialLR are LRSchedulers too in this torch; SWALR lives elsewhere.
    torchs = classes(torch.optim.lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
    ours = classes(lr_scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert torchs | {"SWALR", "GaussianPeakLR", "LaplacianPeakLR"} | ours == set(SCHEDULERS)


def test_every_method_is_covered():
    public = {
        name
        for name, value in vars(methods).items()
        if inspect.isfunction(value) and value.__module__ == methods.__name__ and not name.startswith("_")
    }
    assert public <= set(METHODS)

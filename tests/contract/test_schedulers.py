"""No scheduler ever sees the noise: scheduled rates and momenta are those of the unperturbed run, to the bit."""

import functools

import pytest
import torch

from contract.registry import METHODS, SCHEDULERS
from contract.training import attach, make_parameters, set_gradients

STEPS = 9


def two_groups(kind):
    first, *others = make_parameters()
    groups = [{"params": [first]}, {"params": others, "lr": 0.02}]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9) if kind == "SGD" else torch.optim.AdamW(groups, lr=0.1)


def scheduled(group):
    """What schedulers write: the rate, and the momentum where they cycle it."""
    return float(group["lr"]), group.get("momentum"), group.get("betas")


def run(optimizer, scheduler):
    schedule = []
    for step in range(STEPS):
        set_gradients(optimizer, step)
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(1.0)
        else:
            scheduler.step()
        schedule.append([scheduled(group) for group in optimizer.param_groups])
    return schedule


@functools.cache
def plain_schedule(kind, scheduler):
    optimizer = two_groups(kind)
    return run(optimizer, SCHEDULERS[scheduler](optimizer))


def perturbed_schedule(kind, scheduler, method, *, scheduler_first):
    optimizer = two_groups(kind)
    if scheduler_first:
        made = SCHEDULERS[scheduler](optimizer)
        attach(optimizer, method)
    else:
        attach(optimizer, method)
        made = SCHEDULERS[scheduler](optimizer)
    return run(optimizer, made)


@pytest.mark.parametrize("scheduler_first", [True, False], ids=["scheduler, noise", "noise, scheduler"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_schedule_is_the_unperturbed_runs(scheduler, method, scheduler_first):
    schedule = perturbed_schedule("SGD", scheduler, method, scheduler_first=scheduler_first)
    assert schedule == plain_schedule("SGD", scheduler)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scheduler", ["CyclicLR", "OneCycleLR"])
def test_cycled_betas_are_the_unperturbed_runs(scheduler, method):
    schedule = perturbed_schedule("AdamW", scheduler, method, scheduler_first=False)
    assert schedule == plain_schedule("AdamW", scheduler)
    assert len({betas for step in schedule for _, _, betas in step}) > 1  # they do cycle


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_schedule_moves(scheduler):
    assert len({step[0][0] for step in plain_schedule("SGD", scheduler)}) > 1

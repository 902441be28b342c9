"""No global random generator is ever moved, nor read: not by attaching, stepping, asking, nor the probe."""

import copy
import random

import numpy as np
import pytest
import schedulefree
import torch

from contract.registry import METHODS, OPTIMIZERS
from contract.training import attach, make_optimizer, make_parameters, parameters_of, random_states_unmoved, same_bits
from contract.training import train as train_steps
from flatwise._attach.probe import measure


def live(optimizer, method):
    """All that one does with a perturbed optimizer."""
    handle = attach(optimizer, method, seed=5)
    history = train_steps(optimizer, 4)
    asked = [handle.factor(step, p) for step in (0, 7) for p in parameters_of(optimizer)], handle.effective_lr()
    optimizer.load_state_dict(optimizer.state_dict())
    if type(optimizer).__module__.startswith("torch."):
        copy.deepcopy(optimizer)
    handle.remove()
    return history, asked


def reseed(seed):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_global_generator_is_moved_or_read(name, method):
    runs = []
    for seed in (1, 2):
        optimizer = make_optimizer(name)
        reseed(seed)
        with random_states_unmoved():
            runs.append(live(optimizer, method))
    assert same_bits(*runs)


def test_the_probe_moves_none():
    for optimizer in (make_optimizer("Lion"), schedulefree.SGDScheduleFree(make_parameters(), lr=0.1)):
        with random_states_unmoved():
            measure(optimizer)


@pytest.mark.parametrize("draw", [lambda: torch.rand(1), lambda: np.random.rand(), random.random])
def test_the_guard_itself_notices(draw):
    with pytest.raises(AssertionError, match="global random generator"), random_states_unmoved():
        draw()

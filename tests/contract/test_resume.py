"""Killed at any step and resumed is the unbroken run, bit for bit, whether the noise is attached before or after."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from contract.registry import METHODS, OPTIMIZERS
from contract.training import (
    attach,
    checkpoint,
    make_optimizer,
    parameters_of,
    restore,
    same_bits,
    train,
)

STEPS = 6
SEED = 11


def unbroken(name, method):
    """The parameters after every step, and a checkpoint before each and after the last."""
    optimizer = make_optimizer(name)
    handle = attach(optimizer, method, seed=SEED)
    history, checkpoints = [], []
    for step in range(STEPS):
        checkpoints.append(checkpoint(optimizer))
        history += train(optimizer, 1, start=step)
    checkpoints.append(checkpoint(optimizer))
    return handle, history, checkpoints


def resume(name, method, saved, *, attach_first):
    """What a new process does: builds everything again, loads, and attaches before or after loading."""
    optimizer = make_optimizer(name)
    handle = attach(optimizer, method) if attach_first else None
    restore(optimizer, saved)
    return handle or attach(optimizer, method)


def factors(handle):
    parameters = parameters_of(handle.optimizer)
    return [handle.factor(step, parameter) for step in (0, STEPS, 1000) for parameter in parameters]


@pytest.mark.parametrize("attach_first", [True, False], ids=["attach, load", "load, attach"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(name, method, attach_first):
    """From the checkpoint before any step, one step leads to the checkpoint after it: so, to the end, do all."""
    original, history, checkpoints = unbroken(name, method)
    for killed, (saved, after) in enumerate(itertools.pairwise(checkpoints)):
        handle = resume(name, method, saved, attach_first=attach_first)
        assert (handle.step, handle.seed) == (killed, SEED)
        assert same_bits(train(handle.optimizer, 1, start=killed), history[killed : killed + 1]), killed
        assert same_bits(checkpoint(handle.optimizer), after), killed
    assert same_bits(factors(handle), factors(original))


@pytest.mark.parametrize("method", METHODS)
def test_the_noise_is_felt(method):
    """Without noise, or with that of another seed or step, the run differs: the test above could fail."""
    _, history, checkpoints = unbroken("SGD momentum", method)
    plain = make_optimizer("SGD momentum")
    assert not same_bits(train(plain, STEPS), history)
    other = make_optimizer("SGD momentum")
    attach(other, method, seed=SEED + 1)
    assert not same_bits(train(other, STEPS), history)
    handle = resume("SGD momentum", method, checkpoints[3], attach_first=False)
    handle.step = 4
    rewound = same_bits(train(handle.optimizer, 3, start=3), history[3:])
    assert rewound == (method == "alrao")  # drawn once for all time


def test_a_new_process_draws_the_same_noise(tmp_path):
    """Nothing depends on the process: no salted hash, no address, no clock."""
    _, history, checkpoints = unbroken("AdamW", "leap and ralr")
    torch.save(checkpoints[2], tmp_path / "in.pt")
    program = (
        "import sys, torch; from contract.test_resume import resume, train\n"
        "handle = resume('AdamW', 'leap and ralr', torch.load(sys.argv[1]), attach_first=True)\n"
        "torch.save(train(handle.optimizer, 4, start=2), sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, tmp_path / "in.pt", tmp_path / "out.pt"],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert same_bits(torch.load(tmp_path / "out.pt"), history[2:])

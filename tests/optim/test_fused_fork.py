"""Fused steps in a forked process, as in a worker of a DataLoader: with one thread, the bits of the parent.

With two threads a child hangs for ever if its parent has run two threads before the fork, and not because of us:
torch's OpenMP runtime does not survive a fork once its pool runs, and torch's own fused step hangs in the same way
(both were seen). A DataLoader sets one thread in its workers. The tests fork in a process of their own, in which no
other threads are, and show what is safe.
"""

import subprocess
import sys

import pytest

pytest.importorskip("numba")

PROGRAM = """
import multiprocessing, sys, torch, flatwise
import warnings
from flatwise import optim

warnings.simplefilter("ignore", flatwise.SharedNoiseWarning)  # twins, on purpose
torch.set_num_threads(int(sys.argv[1]))

def start(fused):
    generator = torch.Generator().manual_seed(1)
    params = [torch.randn(size, generator=generator).requires_grad_() for size in (300_001, 7)]
    if fused:
        return params, optim.AdamW(params, lr=0.01, perturbation=flatwise.leap(0.3), seed=3)
    optimizer = torch.optim.AdamW(params, lr=0.01)  # the generic path, with the kernels that blend
    flatwise.perturb(optimizer, flatwise.leap(0.3), seed=3)
    return params, optimizer

def train(params, optimizer):
    for _ in range(2):
        for param in params:
            param.grad = torch.cos(param.detach())
        optimizer.step()
    return b"".join(param.detach().numpy().tobytes() for param in params)

def work(connection, *started):
    torch.set_num_threads(1)
    connection.send_bytes(train(*started))

for fused in (True, False):
    started = start(fused)
    before = train(*started)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=work, args=(theirs, *started))
    child.start()
    assert ours.poll(60), "the child hangs"
    childs = ours.recv_bytes()
    child.join(60)
    assert child.exitcode == 0, child.exitcode
    assert childs == train(*started) != before, "the child's bits are not the parent's"
    assert getattr(started[1], "fallback", None) is None
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("parents_threads", [1, 2])
def test_a_forked_child_with_one_thread_takes_the_parents_steps(parents_threads):
    # Python warns of a fork beside other threads, which is what this is about.
    arguments = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM]
    ended = subprocess.run([*arguments, str(parents_threads)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr

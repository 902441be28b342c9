"""Fused steps in a forked process, as in a worker of a DataLoader: with one thread, the bits of the parent.

With two threads a child is not safe, and not because of us: torch's OpenMP runtime does not survive a fork once its
pool runs, and torch's own operators hang in the child as the fused steps do. A DataLoader sets one thread in its
workers for that reason. The tests fork in a process of their own, in which no other threads are.
"""

import subprocess
import sys

import pytest

pytest.importorskip("numba")

PROGRAM = """
import multiprocessing, os, sys, torch, flatter
from flatter import optim

parents_threads, make = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(parents_threads)
generator = torch.Generator().manual_seed(1)
params = [torch.randn(size, generator=generator).requires_grad_() for size in (300_001, 7)]
if make == "fused":
    optimizer = optim.AdamW(params, lr=0.01, perturbation=flatter.leap(0.3), seed=3)
else:  # the generic path, with the kernels that blend
    optimizer = torch.optim.AdamW(params, lr=0.01)
    flatter.perturb(optimizer, flatter.leap(0.3), seed=3)

def train(steps):
    for _ in range(steps):
        for param in params:
            param.grad = torch.cos(param.detach())
        optimizer.step()
    return b"".join(param.detach().numpy().tobytes() for param in params)

def work(connection):
    torch.set_num_threads(1)
    connection.send_bytes(train(2))

before = train(2)
ours, theirs = multiprocessing.Pipe()
child = multiprocessing.get_context("fork").Process(target=work, args=(theirs,))
child.start()
assert ours.poll(60), "the child hangs"
childs = ours.recv_bytes()
child.join(60)
assert child.exitcode == 0, child.exitcode
assert childs == train(2), "the child's bits are not the parent's"
assert childs != before
assert getattr(optimizer, "fallback", None) is None
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("parents_threads", [1, 2])
@pytest.mark.parametrize("make", ["fused", "perturb"])
def test_a_forked_child_with_one_thread_takes_the_parents_steps(make, parents_threads):
    # Python warns of a fork beside other threads, which is what this is about.
    arguments = [sys.executable, "-W", "error", "-W", "ignore:This process:DeprecationWarning", "-c", PROGRAM]
    ended = subprocess.run([*arguments, str(parents_threads), make], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr

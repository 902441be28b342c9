"""Random sequences of schedules with peaks in them, against rates that are computed without torch.

The reference knows each schedule's closed form and one rule: a schedule of a sequence starts anew at its milestone.
"""

import io
import math

import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torchs

from flatwise.lr_scheduler import GaussianPeakLR, LaplacianPeakLR

BASES = (0.1, 0.02)
rates = st.floats(1e-3, 10)


class Peak:
    """A peak schedule by the paper's formulas, per base rate."""

    def __init__(self, shape, steps, height, drop, hold):
        self.shape, self.steps, self.height, self.drop, self.hold = shape, steps, height, drop, hold

    def make(self, optimizer):
        high = [base * self.height for base in BASES]
        low = [base / self.drop for base in BASES]
        return self.shape(optimizer, self.steps, max_lr=high, min_lr=low, steps_per_update=self.hold)

    def rate(self, base, step):
        low, high = base / self.drop, base * self.height
        updates = math.ceil(self.steps / self.hold)
        done = min(step // self.hold, updates - 1) / (updates - 1)
        fall = math.log(high / low)
        if self.shape is GaussianPeakLR:
            start = 0.5 - 0.5 * math.sqrt(math.log(high / base) / fall)
            t = start + (1 - start) * done
            return high * math.exp(-fall * (2 * t - 1) ** 2)
        start = 0.5 - 0.5 * math.log(high / base) / fall
        t = start + (1 - start) * done
        return high * math.exp(-fall * abs(2 * t - 1))


class Constant:
    def __init__(self, factor, steps):
        self.factor, self.steps = factor, steps

    def make(self, optimizer):
        return torchs.ConstantLR(optimizer, self.factor, self.steps)

    def rate(self, base, step):
        return base * self.factor if step < self.steps else base


class Warmup:
    def __init__(self, factor, steps):
        self.factor, self.steps = factor, steps

    def make(self, optimizer):
        return torchs.LinearLR(optimizer, self.factor, total_iters=self.steps)

    def rate(self, base, step):
        return base * (self.factor + (1 - self.factor) * min(step, self.steps) / self.steps)


class Exponential:
    def __init__(self, gamma):
        self.gamma = gamma

    def make(self, optimizer):
        return torchs.ExponentialLR(optimizer, self.gamma)

    def rate(self, base, step):
        return base * self.gamma**step


@st.composite
def peaks(draw):
    hold = draw(st.integers(1, 3))
    steps = draw(st.integers(2 * hold, 12))
    height, drop = draw(st.floats(1, 10)), draw(st.floats(1.5, 1e4))
    return Peak(draw(st.sampled_from([GaussianPeakLR, LaplacianPeakLR])), steps, height, drop, hold)


others = st.one_of(
    st.builds(Constant, st.floats(0.1, 1), st.integers(1, 4)),
    st.builds(Warmup, st.floats(0.1, 1), st.integers(1, 4)),
    st.builds(Exponential, st.floats(0.5, 1)),
)


@st.composite
def sequences(draw):
    """Schedules, and for how many steps each runs: a peak never for more than it was made for."""
    parts = draw(st.lists(st.one_of(peaks(), others), min_size=1, max_size=4))
    return [(part, draw(st.integers(1, part.steps if isinstance(part, Peak) else 6))) for part in parts]


def build(sequence):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": base} for base in BASES]
    optimizer = torch.optim.SGD(groups)
    parts = [part.make(optimizer) for part, _ in sequence]
    if len(parts) == 1:
        return optimizer, parts[0]
    milestones, at = [], 0
    for _, steps in sequence[:-1]:
        at += steps
        milestones.append(at)
    return optimizer, torchs.SequentialLR(optimizer, parts, milestones)


def walk(optimizer, scheduler, steps):
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@fuzz(200)
@given(sequences(), st.data())
def test_sequences_are_those_of_the_closed_forms_and_resume(sequence, data):
    total = sum(steps for _, steps in sequence)
    expected = [[part.rate(base, step) for base in BASES] for part, steps in sequence for step in range(steps)]
    optimizer, scheduler = build(sequence)
    seen = walk(optimizer, scheduler, total)
    for ours, theirs in zip(seen, expected, strict=True):
        for one, two in zip(ours, theirs, strict=True):
            assert math.isclose(one, two, rel_tol=1e-9)

    done = data.draw(st.integers(0, total - 1))
    optimizer, scheduler = build(sequence)
    walk(optimizer, scheduler, done)
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    optimizer, scheduler = build(sequence)
    optimizer.load_state_dict(saved[0])
    scheduler.load_state_dict(saved[1])
    assert walk(optimizer, scheduler, total - done) == seen[done:]

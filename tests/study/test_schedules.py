"""The schedule recipes: every rate against its closed form, under a rate and a number of steps of the test's own."""

import math
from typing import get_args

import pytest
import torch

from flatwise.study.arms import Arm, Peak
from flatwise.study.task import ScheduleName, Settings
from flatwise.study.tasks.schedules import RECIPES, find_schedule
from flatwise.study.trial import Trial

RATE = 0.2
STEPS = 5


def rates(name, epochs, steps=STEPS):
    """The rate of every optimizer step."""
    settings = Settings(epochs=epochs, batch_size=1, learning_rate=RATE, schedule=name)
    schedule = find_schedule(settings, steps)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=RATE)
    if schedule.factory is None:
        return [RATE] * (epochs * steps)
    scheduler = schedule.factory(optimizer)
    seen = []
    for _ in range(epochs):
        for _ in range(steps):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if schedule.interval == "step":
                scheduler.step()
        if schedule.interval == "epoch":
            scheduler.step()
    return seen


def by_epoch(name, epochs):
    seen = rates(name, epochs)
    epochwise = seen[::STEPS]
    assert seen == [rate for rate in epochwise for _ in range(STEPS)]  # held within an epoch
    return epochwise


def expect_cuts(epochs, cuts):
    """RATE times the factors of the cuts that are behind: ``{80: 0.1}``."""
    return [RATE * math.prod(f for at, f in cuts.items() if epoch >= at) for epoch in range(epochs)]


def test_settings_know_every_recipe():
    assert list(get_args(ScheduleName)) == list(RECIPES)


def test_constant():
    assert set(rates("constant", 3)) == {RATE}


def test_cosine():
    expected = [RATE * (1 + math.cos(math.pi * epoch / 12)) / 2 for epoch in range(12)]
    assert by_epoch("cosine", 12) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "epochs", "cuts"),
    [
        ("step", 200, {100: 0.1, 150: 0.1}),
        ("step", 300, {150: 0.1, 225: 0.1}),
        ("step-half", 300, {150: 0.1}),
        ("step-thirds", 90, {30: 0.1, 60: 0.1}),
        ("step-quarters", 80, {20: 0.1, 40: 0.1, 60: 0.1}),
        ("rn-step", 200, {80: 0.1, 120: 0.1, 160: 0.1, 180: 0.5}),
        ("rn-step", 10, {4: 0.1, 6: 0.1, 8: 0.1, 9: 0.5}),
        ("rn-step", 15, {6: 0.1, 9: 0.1, 12: 0.1, 14: 0.5}),  # 13.5 epochs, rounded up
    ],
)
def test_cuts_are_the_papers(name, epochs, cuts):
    assert by_epoch(name, epochs) == pytest.approx(expect_cuts(epochs, cuts))


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in RECIPES if "cyclic" not in name])
def test_short_runs_begin_with_the_full_rate(name, epochs):
    assert rates(name, epochs)[0] == RATE


def test_exponential_counts_steps():
    expected = [RATE * 0.96 ** (step / 600) for step in range(20 * STEPS)]
    assert rates("exponential", 20) == pytest.approx(expected, rel=1e-12)


def triangle(step):
    within = step % (16 * STEPS)
    half = 8 * STEPS
    return 1 + 2 * (within if within <= half else 2 * half - within) / half


def test_cyclic_is_smiths_triangle():
    seen = rates("cyclic", 40)
    assert seen == pytest.approx([RATE * triangle(step) for step in range(40 * STEPS)])
    assert seen[0] == seen[16 * STEPS] == RATE
    assert max(seen) == seen[8 * STEPS] == pytest.approx(3 * RATE)


def test_cyclic_is_torchs_cyclic():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=RATE)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, RATE, 3 * RATE, 8 * STEPS, cycle_momentum=False)
    for rate in rates("cyclic", 40):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        optimizer.step()
        scheduler.step()


def test_rn_cyclic_decays_with_rn_step():
    steps = by_epoch("rn-step", 50)
    expected = [rate * triangle(step) for step, rate in enumerate(r for r in steps for _ in range(STEPS))]
    assert rates("rn-cyclic", 50) == pytest.approx(expected)


def test_warm_restarts():
    """SGDR, Eq. 5, with the fraction of the epoch: T_0 = 10, T_mult = 2."""
    expected = []
    for start, length in ((0, 10), (10, 20), (30, 40)):
        for step in range(length * STEPS):
            expected.append(RATE * (1 + math.cos(math.pi * step / (length * STEPS))) / 2)
        assert rates("warm-restarts", 71)[start * STEPS] == RATE
    assert rates("warm-restarts", 70) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_multiply_the_rate_of_every_group(name):
    settings = Settings(epochs=20, batch_size=1, learning_rate=RATE, schedule=name)
    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": RATE}, {"params": [torch.zeros(1)], "lr": 2.0}])
    schedule = find_schedule(settings, 1)
    if schedule.factory is None:
        return
    scheduler = schedule.factory(optimizer)
    for _ in range(20):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(10 * first)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", RECIPES)
def test_the_control_of_a_peak_has_its_mean_rate_under_every_recipe(name):
    epochs = 20
    schedule = find_schedule(Settings(epochs=epochs, batch_size=1, learning_rate=RATE, schedule=name), STEPS)
    means = []
    for mean_only in (False, True):
        parameter = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=RATE)
        trial = Trial(Arm("peak", peak=Peak(mean_only=mean_only)), 0)
        scheduler = trial.attach(
            optimizer,
            steps_per_epoch=STEPS,
            epochs=epochs,
            scheduler=schedule.factory,
            interval=schedule.interval,
        )
        total = 0.0
        for step in range(epochs * STEPS):
            parameter.grad = torch.ones(1)
            before = parameter.item()
            optimizer.step()
            total += before - parameter.item()
            if schedule.interval == "step" or step % STEPS == STEPS - 1:
                scheduler.step()
        means.append(total)
    assert means[1] == pytest.approx(means[0], rel=1e-3)

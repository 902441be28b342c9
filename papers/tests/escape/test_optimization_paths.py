"""Test functions have the minima they claim, paths are paired, shares are counted right."""

import math

import pytest
import torch

import flatwise
from flatwise_papers.escape.test_functions import (
    ACKLEY,
    BEALE_LIKE,
    OPTIMIZERS,
    SINE_RASTRIGIN,
    TEST_FUNCTIONS,
    TWO_WELLS,
    OptimizationPaths,
    optimization_paths,
    paired_p_value,
    share_table,
)

by_function = pytest.mark.parametrize("function", TEST_FUNCTIONS, ids=lambda function: function.name)


def value(function, point):
    return float(function.formula(torch.tensor([point], dtype=torch.float64)))


@by_function
def test_the_minimum_is_the_lowest_point_of_the_region(function):
    axes = [torch.linspace(low, high, 801, dtype=torch.float64) for low, high in function.region]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    values = function.formula(grid)
    lowest = grid[values.argmin()]
    assert torch.linalg.vector_norm(lowest - torch.tensor(function.minimum)) < 0.01
    assert value(function, function.minimum) <= float(values.min()) + 1e-9


@by_function
def test_no_other_minimum_lies_within_twice_the_radius(function):
    axes = [torch.linspace(low, high, 801, dtype=torch.float64) for low, high in function.region]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    values = function.formula(grid.reshape(-1, 2)).reshape(1, 1, 801, 801)
    lowest_around = -torch.nn.functional.max_pool2d(-values, 5, stride=1, padding=2)
    minima = grid[(values == lowest_around)[0, 0]]
    distance = torch.linalg.vector_norm(minima - torch.tensor(function.minimum), dim=-1)
    assert int((distance < 0.02).sum()) == 1
    assert bool(((distance < 0.02) | (distance > 2 * function.radius)).all())


def test_values_by_hand():
    assert value(ACKLEY, (0.0, 0.0)) == pytest.approx(0.0, abs=1e-12)
    assert value(SINE_RASTRIGIN, (0.0, 0.0)) == 0.0
    assert value(SINE_RASTRIGIN, (1.25, -0.75)) == pytest.approx(1.25**2 + 0.75**2 - 1 - 1)
    assert value(BEALE_LIKE, (-1.0, 1.0)) == pytest.approx(0.5**2 + 0.25**2 + 0.625**2)
    assert value(TWO_WELLS, (-1.0, 0.0)) == pytest.approx(1 - 3 - 2 * math.exp(-20))


def test_the_papers_optimum_of_the_beale_like_function_is_near_the_real_one_and_rastrigins_is_not():
    assert math.dist(BEALE_LIKE.minimum, (-0.74, 1.40)) < 0.02
    assert float(SINE_RASTRIGIN.gradient(torch.zeros(1, 2, dtype=torch.float64)).abs().min()) > 6


def test_ackleys_gradient_at_its_minimum_is_finite():
    assert ACKLEY.gradient(torch.zeros(1, 2, dtype=torch.float64)).tolist() == [[0.0, 0.0]]


@by_function
def test_starts_lie_in_the_region_and_depend_on_the_seed_alone(function):
    before = torch.get_rng_state()
    starts = function.starts(200, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    low, high = torch.tensor(function.region, dtype=torch.float64).T
    assert bool(((starts >= low) & (starts <= high)).all())
    assert torch.equal(starts, function.starts(200, seed=1))
    assert not torch.equal(starts, function.starts(200, seed=2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_many_runs_at_once_are_what_one_run_is(name):
    chosen = {"optimizers": {name: OPTIMIZERS[name]}, "lr": 0.01, "steps": 30}
    together = optimization_paths(TWO_WELLS, {"plain": None}, runs=5, seed=1, **chosen)[0].paths
    alone = optimization_paths(TWO_WELLS, {"plain": None}, starts=together[0, 3:4], **chosen)[0].paths
    torch.testing.assert_close(together[:, 3], alone[:, 0], rtol=0, atol=1e-12)


def test_arms_are_paired_and_sigma_0_is_plain():
    arms = {"plain": None, "zero": flatwise.leap(0.0), "noise": flatwise.leap(0.5)}
    plain, zero, noise = optimization_paths(
        TWO_WELLS, arms, optimizers={"momentum": OPTIMIZERS["momentum"]}, lr=0.01, steps=20, runs=10, seed=2
    )
    assert torch.equal(plain.paths, zero.paths)
    assert torch.equal(plain.paths[0], noise.paths[0])
    assert not torch.equal(plain.paths[1], noise.paths[1])


def test_annealing_keeps_the_rate_for_half_of_the_steps_and_then_falls_linearly():
    chosen = {"optimizers": {"SGD": OPTIMIZERS["SGD"]}, "lr": 1e-3, "steps": 8, "runs": 4}
    constant, annealed = (
        optimization_paths(SINE_RASTRIGIN, {"plain": None}, anneal=anneal, **chosen)[0].paths
        for anneal in (False, True)
    )
    torch.testing.assert_close(constant[:6], annealed[:6], rtol=0, atol=0)  # steps 0 to 4: the whole rate
    for step, share in ((5, 0.75), (6, 0.5), (7, 0.25)):
        moved = annealed[step + 1] - annealed[step]
        torch.testing.assert_close(moved, -1e-3 * share * SINE_RASTRIGIN.gradient(annealed[step]))


def test_a_coarse_scope_draws_once_per_run_and_a_fine_one_per_coordinate():
    def factors(scope):
        perturbation = flatwise.Perturbation(flatwise.Uniform(0.0, 8.0), scope)
        arms = {"plain": None, "noise": perturbation}
        plain, noise = optimization_paths(
            SINE_RASTRIGIN, arms, optimizers={"SGD": OPTIMIZERS["SGD"]}, lr=1e-3, steps=1, runs=6
        )
        return (noise.paths[1] - noise.paths[0]) / (plain.paths[1] - plain.paths[0])

    for scope in ("all", "group", "tensor"):
        drawn = factors(scope)
        torch.testing.assert_close(drawn[:, 0], drawn[:, 1])
        assert len(set(drawn[:, 0].tolist())) == 6
    for scope in ("channel", "element"):
        assert len(set(factors(scope).flatten().tolist())) == 12


def test_the_share_counts_last_points_within_the_radius_and_divergence_as_a_failure():
    minimum = torch.tensor(ACKLEY.minimum, dtype=torch.float64)
    ends = torch.stack([minimum, minimum + 0.3, minimum + 0.4, torch.full((2,), math.nan), torch.full((2,), math.inf)])
    entry = OptimizationPaths(ACKLEY, "SGD", "plain", 0.1, torch.stack([torch.zeros(5, 2, dtype=torch.float64), ends]))
    assert entry.reached.tolist() == [True, True, False, False, False]
    share = entry.share
    assert (share.reached, share.runs, share.share) == (2, 5, 0.4)
    assert (share.low, share.high) == (pytest.approx(0.05274, abs=1e-4), pytest.approx(0.85337, abs=1e-4))  # textbook


def test_divergence_is_not_hidden():
    entry = optimization_paths(
        BEALE_LIKE, {"plain": None}, optimizers={"SGD": OPTIMIZERS["SGD"]}, lr=1.0, steps=20, runs=20
    )[0]
    assert not bool(torch.isfinite(entry.paths[-1]).all())
    assert entry.share.reached == 0


def reached(pattern):
    ends = torch.tensor([[0.0, 0.0] if hit else [3.0, 3.0] for hit in pattern], dtype=torch.float64)
    return OptimizationPaths(ACKLEY, "SGD", "arm", 0.1, torch.stack([torch.zeros_like(ends), ends]))


def test_paired_p_value_is_mcnemars():
    first, second = reached([1, 1, 1, 1, 1, 1, 1, 0]), reached([1, 0, 0, 0, 0, 0, 0, 0])
    assert paired_p_value(first, second) == pytest.approx(2 / 2**6)
    assert paired_p_value(first, first) == 1.0
    with pytest.raises(ValueError, match="same starts"):
        paired_p_value(first, reached([1]))


def test_table():
    entries = optimization_paths(TWO_WELLS, {"plain": None, "noise": flatwise.leap(0.1)}, lr=0.01, steps=3, runs=4)
    lines = share_table(entries).splitlines()
    assert lines[0] == "| function | optimizer | plain | noise |"
    assert len(lines) == 2 + 4
    assert all(line.count("|") == 5 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be"),
        ({"lr": math.inf}, "lr must be"),
        ({"steps": 0}, "steps and runs"),
        ({"runs": 0}, "steps and runs"),
        ({"optimizers": {}}, "at least one arm"),
        ({"arms": {}}, "at least one arm"),
        ({"starts": torch.zeros(3)}, "starts must be"),
        ({"starts": torch.full((1, 2), math.nan)}, "starts must be"),
        ({"starts": torch.zeros(0, 2)}, "starts must be"),
        ({"arms": {"RALR": flatwise.ralr()}}, "no epochs"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimization_paths(ACKLEY, **({"arms": {"plain": None}, "lr": 0.1, "steps": 1} | arguments))

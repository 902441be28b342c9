"""Wells, exact escape times and simulated ones, each against the others and against Kramers' law."""

import math

import numpy as np
import pytest
import torch

import flatwise
from flatwise_papers.escape.double_well import DoubleWell, exact_escape, simulate_escape, simulate_occupancy
from flatwise_papers.escape.waiting_times import exponential_test


def asymmetric():
    return DoubleWell((0.3, 0.2), (2.0, 0.7), -0.5)


def test_well_has_the_minima_barriers_and_curvatures_that_it_was_made_of():
    well = asymmetric()
    minima = torch.tensor(well.minima, dtype=torch.float64)
    assert well.loss(minima).tolist() == pytest.approx([-0.3, -0.2])
    assert well.gradient(minima).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert float(well.loss(torch.zeros(1))) == 0.0
    x = torch.tensor([well.minima[0], 0.0, well.minima[1]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(well.loss(x).sum(), x, create_graph=True)
    torch.testing.assert_close(slope, well.gradient(x))
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    assert curvature.tolist() == pytest.approx([2.0, -0.5, 0.7])


def test_gradient_is_the_slope_of_the_loss_everywhere():
    well = asymmetric()
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    slope = (well.loss(x + 1e-6) - well.loss(x - 1e-6)) / 2e-6
    torch.testing.assert_close(slope, well.gradient(x), atol=1e-6, rtol=0)


def test_path_weight_is_the_share_of_the_barrier_below_the_joint():
    well = asymmetric()
    joints = torch.tensor(well.joints, dtype=torch.float64)
    climbed = (well.loss(joints) + torch.tensor(well.barriers)) / torch.tensor(well.barriers)
    assert climbed.tolist() == pytest.approx(list(well.path_weights), rel=1e-6)


def test_noise_of_the_samples():
    x = torch.tensor([asymmetric().minima[0], 0.0, asymmetric().minima[1]], dtype=torch.float64)
    assert asymmetric().sample_noise(x).square().tolist() == pytest.approx([2.0, 0.5, 0.7])
    constant = DoubleWell((0.3, 0.2), (2.0, 0.7), -0.5, noise="constant", noise_scale=0.4)
    assert constant.sample_noise(x).square().tolist() == pytest.approx([0.4, 0.4, 0.4])


@pytest.mark.parametrize("noise", ["hessian", "constant"])
def test_exact_escape_is_kramers_law_in_the_limit_of_small_rates(noise):
    errors = []
    for lr in (0.02, 0.005):
        barrier = 6 * lr / 2  # exponent 6 on curvature 1
        well = DoubleWell((barrier, barrier), (1.0, 1.0), -1.0, noise=noise)
        errors.append(abs(exact_escape(well, lr, 1).updates / well.escape_time(lr, 1).updates - 1))
    assert errors[1] < 0.002


def test_exact_escape_is_kramers_law_on_unequal_curvatures_with_explicit_additive_noise():
    lr = 0.005
    for curvature in (1.5, 0.75):
        well = DoubleWell((0.02, 0.02), (curvature, curvature), -1.125 / curvature, noise="constant", noise_scale=0.8)
        assert exact_escape(well, lr, 1).updates == pytest.approx(well.escape_time(lr, 1).updates, rel=0.03)


def test_prefactor_is_the_one_of_ito_and_not_the_printed_one():
    lr = 0.0025
    for minimum, saddle in ((1.5, 0.75), (0.75, 1.5)):
        weight = saddle / (minimum + saddle)
        barrier = 16 * lr / 2 / (weight / minimum + (1 - weight) / saddle)
        well = DoubleWell((barrier, barrier), (minimum, minimum), -saddle)
        exact = exact_escape(well, lr, 1).updates
        assert well.escape_time(lr, 1).updates == pytest.approx(2 * math.pi / minimum / lr * math.exp(16))
        assert exact == pytest.approx(well.escape_time(lr, 1).updates, rel=0.1)
        assert exact != pytest.approx(2 * math.pi / saddle / lr * math.exp(16), rel=0.4)


def test_exact_occupancy_is_symmetric():
    well, mirrored = DoubleWell((0.1, 0.1), (4.0, 1.0)), DoubleWell((0.1, 0.1), (1.0, 4.0))
    share, other = exact_escape(well, 0.05, 1).right, exact_escape(mirrored, 0.05, 1).right
    assert share == pytest.approx(1 - other, abs=1e-3)
    assert share > 0.85


@pytest.mark.parametrize(
    "perturbation",
    [None, flatwise.leap(0.5), flatwise.leap(1.0), flatwise.lr_dropout(0.5)],
    ids=["plain", "leap 0.5", "leap 1", "lr dropout"],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_simulation_agrees_with_the_exact_mean(perturbation, batch_size):
    lr, factor = 0.1, perturbation and perturbation.distribution
    well = DoubleWell((0.1 / batch_size, 0.1 / batch_size))
    exact = exact_escape(well, lr, batch_size, factor).updates
    sample = simulate_escape(
        well, lr=lr, batch_size=batch_size, perturbation=perturbation, replicas=1500, updates=int(1.5 * exact), seed=5
    )
    low, high = sample.interval(0.999)
    assert low < exact < high
    assert 0.1 < sample.waiting / sample.replicas < 0.35  # e^−1.5 is 0.22: the interval lives on censored times


def test_simulated_kramers_rate_with_constant_noise():
    lr = 0.05
    well = DoubleWell((0.1, 0.1), noise="constant")  # exponent 4, where Kramers' law is right to a percent
    sample = simulate_escape(well, lr=lr, replicas=1500, updates=15_000, seed=6)
    low, high = sample.interval(0.999)
    assert low < well.escape_time(lr, 1).updates < high
    assert exponential_test(sample, simulations=199).p > 0.01


def test_full_batches_never_escape():
    well = DoubleWell((0.02, 0.02))
    sample = simulate_escape(
        well,
        lr=0.1,
        batch_size=None,
        perturbation=flatwise.leap(1.0),
        replicas=500,
        updates=2000,
        start=well.minima[0] / 2,
    )
    assert sample.waiting == 500
    assert sample.mean == math.inf
    assert sample.interval()[1] == math.inf


def test_same_seed_same_escapes_and_no_global_generator_moves():
    well = DoubleWell((0.05, 0.05))
    before = torch.get_rng_state()
    runs = [
        simulate_escape(well, lr=0.1, perturbation=flatwise.leap(0.5), replicas=50, updates=500, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(runs[0].times, runs[1].times)
    assert not np.array_equal(runs[0].times, runs[2].times)


def test_scope_does_not_matter_for_one_weight_and_replicas_stay_independent():
    well = DoubleWell((0.05, 0.05))
    by_scope = [
        simulate_escape(
            well,
            lr=0.1,
            perturbation=flatwise.Perturbation(flatwise.Normal(1.0, 0.5), scope),
            replicas=50,
            updates=500,
        ).times
        for scope in ("all", "tensor", "element")
    ]
    assert np.array_equal(by_scope[0], by_scope[1])
    assert np.array_equal(by_scope[0], by_scope[2])


def test_occupancy_agrees_with_the_exact_one():
    well = DoubleWell((0.04, 0.04), (4.0, 1.0))
    for perturbation in (None, flatwise.leap(1.0)):
        exact = exact_escape(well, 0.05, 1, perturbation and perturbation.distribution).right
        occupancy = simulate_occupancy(well, lr=0.05, perturbation=perturbation, replicas=600, updates=3000, seed=7)
        spread = (occupancy.high - occupancy.low) / 2 / 1.96
        assert abs(occupancy.share - exact) < 3.5 * spread
        assert spread < 0.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"barriers": (0.0, 1.0)}, "barriers"),
        ({"barriers": (1.0, math.nan)}, "barriers"),
        ({"barriers": (1.0,)}, "barriers"),
        ({"barriers": (1.0, 1.0), "curvatures": (1.0, 0.0)}, "curvatures"),
        ({"barriers": (1.0, 1.0), "saddle_curvature": 0.0}, "saddle_curvature"),
        ({"barriers": (1.0, 1.0), "saddle_curvature": 1.0}, "saddle_curvature"),
        ({"barriers": (1.0, 1.0), "noise": "fisher"}, "noise"),
        ({"barriers": (1.0, 1.0), "noise_scale": 0.0}, "noise_scale"),
    ],
)
def test_wells_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        DoubleWell(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": 0.0}, "lr must be"),
        ({"lr": math.nan}, "lr must be"),
        ({"replicas": 0}, "replicas must be"),
        ({"updates": 0}, "updates must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"start": math.nan}, "start must be"),
        ({"start": 10.0}, "start must be"),
        ({"perturbation": flatwise.ralr()}, "no epochs"),
        ({"perturbation": flatwise.random_lr(max_lr=1.0)}, "bound"),
    ],
)
def test_simulation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate_escape(DoubleWell((0.1, 0.1)), **({"lr": 0.1, "replicas": 2, "updates": 2} | arguments))


def test_occupancy_needs_two_replicas():
    with pytest.raises(ValueError, match="two replicas"):
        simulate_occupancy(DoubleWell((0.1, 0.1)), lr=0.1, replicas=1, updates=2)


def test_exact_escape_refuses_a_grid_too_fine():
    with pytest.raises(ValueError, match="grid points"):
        exact_escape(DoubleWell((10.0, 10.0)), 1e-4, 1)

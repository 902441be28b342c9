"""Escape formulas: identities, limits, and what they refuse."""

import math

import numpy as np
import pytest

import flatwise
from flatwise_papers.escape.theory import (
    EscapeTime,
    determinant_ratio,
    leap_escape_time,
    noise_amplification,
    selection_probabilities,
    sgd_escape_time,
)

LEAP = {"barrier": 0.2, "minimum_curvature": 2.0, "saddle_curvature": -0.5, "lr": 0.1, "sigma": 0.3}
SGD = {
    "barrier": 0.2,
    "minimum_curvature": 2.0,
    "saddle_curvature": -0.5,
    "lr": 0.1,
    "minimum_noise": 2.0,
    "saddle_noise": 0.5,
    "path_weight": 0.2,
}


def test_theorem_is_the_printed_formula():
    time = leap_escape_time(**LEAP, path_weight=0.3, minimum_diagonal=1.5, saddle_diagonal=-0.7, determinant_ratio=1.2)
    exponent = 2 * 0.2 / (0.1 * 0.3**2) * (0.3 / 1.5 + 0.7 / 0.7)
    printed = 2 * math.pi * 1.2 / 0.5 * math.exp(exponent)
    assert time.exponent == pytest.approx(exponent)
    assert time.updates == pytest.approx(printed / 0.1)  # an update takes η of the theorem's time


def test_theorem_takes_the_curvatures_for_the_diagonal():
    assert leap_escape_time(**LEAP) == leap_escape_time(**LEAP, minimum_diagonal=2.0, saddle_diagonal=-0.5)


def test_sigma_0_is_plain_sgd_and_for_the_theorem_no_escape():
    assert sgd_escape_time(**SGD, factor=flatwise.Normal(1.0, 0.0)) == sgd_escape_time(**SGD)
    assert leap_escape_time(**(LEAP | {"sigma": 0.0})).updates == math.inf


def test_theorem_has_the_exponent_of_sgd_with_sigma_squared_for_one_over_batch_size():
    sigma = 0.3
    noise = {"minimum_noise": 2.0 * sigma**2, "saddle_noise": 0.5 * sigma**2}
    sgd = sgd_escape_time(**(SGD | noise))
    leap = leap_escape_time(**LEAP, path_weight=0.2)
    assert leap.exponent == pytest.approx(sgd.exponent)
    # Itô: 2π/H_a in the place of the printed 2π/|H_b|.
    assert leap.log_prefactor - sgd.log_prefactor == pytest.approx(math.log(2.0 / 0.5))


def test_kramers_law_with_constant_noise():
    temperature = 0.1 * 0.8 / 2
    time = sgd_escape_time(**(SGD | {"minimum_noise": 0.8, "saddle_noise": 0.8}))
    kramers = 2 * math.pi / math.sqrt(2.0 * 0.5) * math.exp(0.2 / temperature)
    assert time.updates == pytest.approx(kramers / 0.1)


def test_a_constant_factor_is_another_rate():
    doubled = sgd_escape_time(**(SGD | {"lr": 0.2}))
    factor = sgd_escape_time(**SGD, factor=flatwise.Constant(2.0))
    assert factor.exponent == pytest.approx(doubled.exponent)
    assert factor.updates == pytest.approx(doubled.updates)


def test_amplification_of_the_methods():
    assert noise_amplification(flatwise.leap(0.1).distribution) == pytest.approx(1.01)
    for keep in (0.1, 0.5, 1.0):
        assert noise_amplification(flatwise.lr_dropout(keep).distribution) == pytest.approx(1.0)
    plain, dropout = sgd_escape_time(**SGD), sgd_escape_time(**SGD, factor=flatwise.Bernoulli(0.25))
    assert dropout.updates == pytest.approx(4 * plain.updates)  # as often, but only every fourth update counts


def test_without_minibatch_noise_nothing_escapes_whatever_the_factor():
    full_batch = SGD | {"minimum_noise": 0.0, "saddle_noise": 0.0}
    assert sgd_escape_time(**full_batch, factor=flatwise.Normal(1.0, 5.0)).updates == math.inf


def test_no_barrier_leaves_the_prefactor():
    assert leap_escape_time(**(LEAP | {"barrier": 0.0, "sigma": 0.0})).exponent == 0.0


def test_huge_exponents_do_not_overflow():
    time = leap_escape_time(**(LEAP | {"sigma": 1e-4}))
    assert math.isfinite(time.log_updates)
    assert time.log_updates > 1e6
    assert time.updates == math.inf


def test_selection():
    assert selection_probabilities([EscapeTime(0.0, math.log(1)), EscapeTime(math.log(3), 0.0)]) == pytest.approx(
        [0.25, 0.75]
    )
    assert selection_probabilities([EscapeTime(5000.0, 0.0), EscapeTime(5001.0, 0.0)])[1] == pytest.approx(
        1 / (1 + math.exp(-1))
    )
    assert selection_probabilities([EscapeTime(math.inf, 0.0), EscapeTime(3.0, 0.0)]) == [1.0, 0.0]
    with pytest.raises(ValueError, match="at least one"):
        selection_probabilities([])


def test_determinant_ratio():
    assert determinant_ratio(np.diag([3.0, 1.0]), np.diag([-0.2, 5.0])) == pytest.approx(1.0)
    minimum, saddle = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, 2.0], [2.0, 1.0]])
    assert determinant_ratio(minimum, saddle) == pytest.approx(math.sqrt((5 / 6) / (3 / 1)))
    assert determinant_ratio([[2.0]], [[-3.0]]) == pytest.approx(1.0)  # printed: the root of −1


@pytest.mark.parametrize(
    ("minimum", "saddle", "message"),
    [
        ([[1.0, 2.0], [2.0, 1.0]], np.diag([-1.0, 1.0]), "minimum_hessian must have 0 negative"),
        (np.eye(2), np.eye(2), "saddle_hessian must have 1 negative"),
        (np.eye(2), np.diag([-1.0, -1.0]), "saddle_hessian must have 1 negative"),
        (np.eye(2), [[0.0, 1.0], [1.0, 0.0]], "0 on its diagonal"),
        (np.eye(3), np.diag([-1.0, 1.0]), "differ in shape"),
        ([[1.0, 2.0], [0.0, 1.0]], np.eye(2), "symmetric"),
        ([[math.nan]], [[-1.0]], "finite"),
        ([1.0], [[-1.0]], "square"),
    ],
)
def test_determinant_ratio_refuses(minimum, saddle, message):
    with pytest.raises(ValueError, match=message):
        determinant_ratio(minimum, saddle)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("barrier", -0.1),
        ("barrier", math.nan),
        ("barrier", math.inf),
        ("minimum_curvature", 0.0),
        ("minimum_curvature", -1.0),
        ("saddle_curvature", 0.0),
        ("saddle_curvature", 0.5),
        ("saddle_curvature", -math.inf),
        ("lr", 0.0),
        ("lr", math.nan),
        ("path_weight", 1.1),
        ("path_weight", math.nan),
    ],
)
def test_both_formulas_refuse_what_is_no_escape(name, value):
    for formula, arguments in ((leap_escape_time, LEAP), (sgd_escape_time, SGD)):
        with pytest.raises(ValueError, match=name):
            formula(**(arguments | {name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sigma", -0.1),
        ("sigma", math.nan),
        ("determinant_ratio", 0.0),
        ("minimum_diagonal", 0.0),
        ("saddle_diagonal", 0.0),
    ],
)
def test_theorem_refuses(name, value):
    with pytest.raises(ValueError, match=name):
        leap_escape_time(**(LEAP | {name: value}))


@pytest.mark.parametrize("name", ["minimum_noise", "saddle_noise"])
@pytest.mark.parametrize("value", [-1.0, math.inf])
def test_sgd_refuses(name, value):
    with pytest.raises(ValueError, match=name):
        sgd_escape_time(**(SGD | {name: value}))


def test_a_factor_without_a_positive_mean_is_refused():
    with pytest.raises(ValueError, match="mean"):
        sgd_escape_time(**SGD, factor=flatwise.Normal(-1.0, 1.0))

"""Perturbations and methods as values: the papers' numbers, windows, fingerprints, and what is refused."""

import dataclasses
import json
import math

import pytest

import flatwise
from flatwise import Bernoulli, Constant, Mixture, Normal, Perturbation, Uniform, Window
from flatwise.perturbation import fingerprint

# The methods


def test_methods_are_the_papers():
    """As in the table of METHODS.md: distribution, scope, cadence, window."""
    table = {
        flatwise.leap(0.05): (Normal(1, 0.05), "element", "step", Window()),
        flatwise.lr_dropout(0.5): (Bernoulli(0.5), "element", "step", Window()),
        flatwise.random_lr(8, 0.6): (Uniform(0, 8), "all", "epoch", Window(0.4)),
        flatwise.random_lr_normal(4, 1, 0.6): (Normal(4, 1, minimum=0), "all", "epoch", Window(0.4)),
        flatwise.ralr(0.5, 1, 3): (Mixture(0.5, Uniform(1, 3), Constant(1)), "all", "epoch", Window()),
        flatwise.alrao(1e-5, 10): (flatwise.LogUniform(1e-5, 10), "channel", "once", Window()),
    }
    for method, expected in table.items():
        assert (method.distribution, method.scope, method.cadence, method.window) == expected
        assert (method.min_lr, method.max_lr) == (None, None)
        assert not method.is_identity


def test_defaults_are_the_papers():
    assert flatwise.lr_dropout() == flatwise.lr_dropout(keep=0.5)
    assert flatwise.random_lr() == flatwise.random_lr(alpha=8, beta=0.6)
    assert flatwise.random_lr_normal() == flatwise.random_lr_normal(mean=4, std=1, beta=0.6)
    assert flatwise.ralr() == flatwise.ralr(p=0.5, low=1, high=3)
    means = [m().distribution.mean for m in (flatwise.leap, flatwise.lr_dropout, flatwise.random_lr, flatwise.ralr)]
    assert means == [1, 0.5, 4, 1.5]


def test_bounds_reach_the_perturbation():
    for method in (flatwise.random_lr, flatwise.random_lr_normal):
        assert method(min_lr=0.01, max_lr=0.2).bounds == (0.01, 0.2)
        assert method(max_lr=0.2).bounds == (-math.inf, 0.2)


# Windows


@pytest.mark.parametrize("epochs", [1, 2, 5, 10, 30, 100, 200])
def test_the_window_is_the_last_share_of_the_epochs(epochs):
    """e ≥ (1 − β) S in exact hundredths: no epoch is lost or won to rounding."""
    for hundredths in range(1, 101):
        window = flatwise.random_lr(8, hundredths / 100).window
        inside = [window.contains(epoch, epochs) for epoch in range(epochs)]
        assert inside == [100 * epoch >= (100 - hundredths) * epochs for epoch in range(epochs)], hundredths
        assert window.contains(epochs + 5, epochs)  # a run that goes on beyond its end stays perturbed


def test_the_end_of_a_window_is_outside():
    window = Window(0.25, 0.75)
    assert [epoch for epoch in range(10) if window.contains(epoch, 8)] == [2, 3, 4, 5]
    assert not window.is_always
    assert Window().is_always


def test_what_must_be_known():
    needs = {
        "leap": (flatwise.leap(), False, False),
        "ralr": (flatwise.ralr(), True, False),
        "random_lr": (flatwise.random_lr(), True, True),
        "random_lr, beta 1": (flatwise.random_lr(beta=1), True, False),
        "windowed leap": (dataclasses.replace(flatwise.leap(), window=Window(0.5)), True, True),
        "once": (flatwise.alrao(), False, False),
    }
    for name, (perturbation, steps_per_epoch, epochs) in needs.items():
        assert (perturbation.needs_steps_per_epoch, perturbation.needs_epochs) == (steps_per_epoch, epochs), name


# Values


def test_identity():
    for one in (flatwise.leap(0), flatwise.lr_dropout(1), flatwise.ralr(p=0), Perturbation(Constant(1), "tensor")):
        assert one.is_identity
    for other in (flatwise.leap(1e-9), Perturbation(Constant(1), "all", max_lr=1), Perturbation(Constant(2))):
        assert not other.is_identity


def test_the_matched_rate_is_the_mean_without_the_noise():
    for method, mean in [(flatwise.leap(0.3), 1), (flatwise.lr_dropout(0.3), 0.3), (flatwise.random_lr(6, 0.5), 3)]:
        control = method.matched_rate()
        assert control.distribution == Constant(mean)
        assert (control.window, control.bounds) == (method.window, method.bounds)
        assert control.acts_on_rate
    bounded = flatwise.random_lr(max_lr=0.3, min_lr=0.1).matched_rate()
    assert bounded.bounds == (0.1, 0.3)
    assert Perturbation(Uniform(0, 4), "group").matched_rate().scope == "group"


DIFFERENT = [
    flatwise.leap(0.1),
    flatwise.leap(0.2),
    flatwise.lr_dropout(0.1),
    flatwise.ralr(0.5),
    flatwise.ralr(0.4),
    flatwise.random_lr(8, 0.6),
    flatwise.random_lr(8, 0.5),
    flatwise.random_lr(8, 0.6, max_lr=1.0),
    flatwise.random_lr(8, 0.6, min_lr=1.0),
    flatwise.random_lr_normal(),
    flatwise.alrao(),
    Perturbation(Uniform(1, 2), "element"),
    Perturbation(Uniform(1, 2), "channel"),
    Perturbation(Uniform(1, 2), "channel", "epoch"),
    Perturbation(flatwise.LogUniform(1, 2), "channel", "epoch"),
    Perturbation(Normal(1, 1)),
    Perturbation(Normal(1, 1, minimum=0)),
]


def test_fingerprints_tell_compositions_apart():
    compositions = [(p,) for p in DIFFERENT] + [(p, q) for p in DIFFERENT for q in DIFFERENT]
    marks = {fingerprint(composition) for composition in compositions}
    assert len(marks) == len(compositions)
    assert all(0 <= mark < 2**63 for mark in marks)


def test_equal_perturbations_have_one_fingerprint():
    """8 and 8.0 are the same number: a resumed run must not be told that its noise is another."""
    for one, two in [
        (flatwise.random_lr(8, 0.6), flatwise.random_lr(8.0, 0.6)),
        (flatwise.leap(1), flatwise.leap(1.0)),
        (flatwise.ralr(1, 1, 3), flatwise.ralr(1.0, 1.0, 3.0)),
        (flatwise.random_lr(min_lr=0, max_lr=1), flatwise.random_lr(min_lr=0.0, max_lr=1.0)),
        (Perturbation(Uniform(1, 2), window=Window(0, 0.5)), Perturbation(Uniform(1, 2), window=Window(0.0, 0.5))),
    ]:
        assert one == two
        assert fingerprint((one,)) == fingerprint((two,))


def test_plain_data_says_everything():
    data = flatwise.random_lr(8, 0.6, max_lr=1.0).to_dict()
    assert (
        json.loads(json.dumps(data))
        == data
        == {
            "distribution": "Uniform",
            "low": 0.0,
            "high": 8.0,
            "scope": "all",
            "cadence": "epoch",
            "window": [0.4, 1.0],
            "min_lr": None,
            "max_lr": 1.0,
        }
    )


# What is refused


BAD = [
    (lambda: Window(0.5, 0.5), ValueError, r"Window: needs 0 <= start < stop <= 1, got start=0.5, stop=0.5"),
    (lambda: Window(-0.1), ValueError, r"Window: needs .* got start=-0.1"),
    (lambda: Window(0, 1.1), ValueError, r"Window: needs .* stop=1.1"),
    (lambda: Window(math.nan), ValueError, r"Window: needs .* start=nan"),
    (lambda: Perturbation(0.1), TypeError, r"distribution must be a flatwise Distribution, got 0.1"),
    (lambda: Perturbation(Normal), TypeError, r"distribution must be a flatwise Distribution, got <class"),
    (lambda: Perturbation(Normal(1, 1), window=0.4), TypeError, r"window must be a flatwise.Window, got 0.4"),
    (lambda: Perturbation(Normal(1, 1), "layer"), ValueError, r"scope must be one of all, group, .*; got 'layer'"),
    (lambda: Perturbation(Normal(1, 1), "all", "daily"), ValueError, r"cadence must be one of step, .*; got 'daily'"),
    (lambda: Perturbation(Normal(1, 1), max_lr=1), ValueError, r"min_lr and max_lr bound one rate.*scope 'element'"),
    (lambda: Perturbation(Normal(1, 1), "channel", min_lr=0), ValueError, r"bound one rate.*scope 'channel'"),
    (lambda: flatwise.random_lr(min_lr=2, max_lr=1), ValueError, r"needs 0 <= min_lr <= max_lr, got 2 and 1"),
    (lambda: flatwise.random_lr(min_lr=-1), ValueError, r"needs 0 <= min_lr <= max_lr, got -1 and None"),
    (lambda: flatwise.random_lr(max_lr=-1), ValueError, r"needs 0 <= min_lr <= max_lr, got None and -1"),
    (lambda: flatwise.random_lr(max_lr=math.nan), ValueError, r"needs 0 <= min_lr <= max_lr, got None and nan"),
    (lambda: flatwise.leap(-0.1), ValueError, r"standard deviation must not be negative, got -0.1"),
    (lambda: flatwise.leap(math.nan), ValueError, r"must be a finite number, got nan"),
    (lambda: flatwise.lr_dropout(0), ValueError, r"keep is the probability of being updated"),
    (lambda: flatwise.lr_dropout(2), ValueError, r"keep is a probability .* got 2"),
    (lambda: flatwise.random_lr(alpha=0), ValueError, r"random_lr: alpha must be positive, got 0"),
    (lambda: flatwise.random_lr(alpha=math.nan), ValueError, r"random_lr: alpha must be positive, got nan"),
    (lambda: flatwise.random_lr(beta=0), ValueError, r"random_lr: beta is the share .* in \(0, 1\]; got 0"),
    (lambda: flatwise.random_lr(beta=1.2), ValueError, r"random_lr: beta is the share .* got 1.2"),
    (lambda: flatwise.random_lr_normal(mean=0), ValueError, r"random_lr_normal: mean must be positive, got 0"),
    (lambda: flatwise.random_lr_normal(beta=-1), ValueError, r"random_lr_normal: beta is the share .* got -1"),
    (lambda: flatwise.random_lr_normal(std=-1), ValueError, r"standard deviation must not be negative, got -1"),
    (lambda: flatwise.ralr(p=1.1), ValueError, r"p is a probability .* got 1.1"),
    (lambda: flatwise.ralr(low=3, high=1), ValueError, r"needs 0 <= low <= high, got low=3, high=1"),
    (lambda: flatwise.alrao(low=0), ValueError, r"needs 0 < low <= high, got low=0"),
]


@pytest.mark.parametrize(("make", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments_are_named_and_shown(make, kind, message):
    with pytest.raises(kind, match=message):
        make()

"""Distributions: moments and distribution functions against scipy and against their own samples; bad arguments."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from flatwise import Bernoulli, Constant, Distribution, LogUniform, Mixture, Normal, Uniform
from flatwise._noise import reference

WORDS = reference.words(torch.arange(200_000, dtype=torch.int32), (0xDEADBEEF, 0x12345678))
N = len(WORDS)

DISTRIBUTIONS = {
    "constant": Constant(1.5),
    "zero": Constant(0),
    "bernoulli": Bernoulli(0.3),
    "always kept": Bernoulli(1),
    "uniform": Uniform(0, 8),
    "a point": Uniform(2, 2),
    "normal": Normal(1, 0.1),
    "no noise": Normal(1, 0),
    "cut normal": Normal(2, 1, minimum=0),
    "cut above the mean": Normal(1, 2, minimum=1.5),
    "cut point": Normal(1, 0, minimum=2),
    "log-uniform": LogUniform(1e-5, 10),
    "log-point": LogUniform(2, 2),
    "ralr": Mixture(0.5, Uniform(1, 3), Constant(1)),
    "nested": Mixture(0.2, Bernoulli(0.5), Mixture(0.7, Normal(1, 0.2), LogUniform(0.1, 2))),
    "first only": Mixture(1, Uniform(1, 3), Constant(1)),
    "second only": Mixture(0, Uniform(1, 3), Constant(1)),
}
every = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


@every
def test_samples_have_the_claimed_moments(distribution):
    sample = distribution.sample(WORDS).double().numpy()
    assert abs(sample.mean() - distribution.mean) <= 4.5 * distribution.std / math.sqrt(N) + 1e-12
    fourth = np.mean((sample - distribution.mean) ** 4)
    assert abs(sample.var() - distribution.variance) <= 4.5 * math.sqrt(fourth / N) + 1e-12
    assert distribution.std == math.sqrt(distribution.variance)


@every
def test_samples_follow_the_distribution_function(distribution):
    sample = np.sort(distribution.sample(WORDS).double().numpy())
    for x in (-1.0, 0.0, 0.05, 0.5, 0.999, 1.0, 1.0001, 1.5, 2.0, 2.5, 3.0, 7.0, 8.0, 11.0):
        share = np.searchsorted(sample, x, side="right") / N
        p = distribution.cdf(x)
        assert abs(share - p) <= 4.5 * math.sqrt(p * (1 - p) / N), x
    assert distribution.cdf(-1e9) == 0
    assert distribution.cdf(1e9) == 1


@every
def test_samples_are_float32_of_the_words_shape_and_leave_them_alone(distribution):
    words = WORDS[:24].view(2, 3, 4).clone()
    sample = distribution.sample(words)
    assert (sample.shape, sample.dtype) == (words.shape, torch.float32)
    assert torch.equal(words, WORDS[:24].view(2, 3, 4))
    assert torch.equal(sample[1, 2], distribution.sample(words[1, 2]))  # each from its own word alone
    assert distribution.sample(words[:0]).shape == (0, 3, 4)


@every
def test_is_one_exactly_where_every_factor_is_one(distribution):
    assert distribution.is_one == bool((distribution.sample(WORDS) == 1).all())


@every
def test_plain_data_tells_distributions_apart(distribution):
    data = distribution.to_dict()
    json.dumps(data)
    same = [name for name, other in DISTRIBUTIONS.items() if other.to_dict() == data]
    assert [DISTRIBUTIONS[name] for name in same] == [distribution]
    assert hash(distribution) == hash(dataclasses.replace(distribution))
    with pytest.raises(dataclasses.FrozenInstanceError):
        distribution.value = 2


def test_distribution_functions_are_scipys():
    pairs = [
        (Normal(2, 1.5), stats.norm(2, 1.5)),
        (Uniform(1, 4), stats.uniform(1, 3)),
        (LogUniform(0.01, 5), stats.loguniform(0.01, 5)),
    ]
    for ours, theirs in pairs:
        assert (ours.mean, ours.variance) == pytest.approx((theirs.mean(), theirs.var()), rel=1e-10)
        for x in np.linspace(-1, 6, 30):
            assert ours.cdf(x) == pytest.approx(theirs.cdf(x), abs=1e-12)


@pytest.mark.parametrize(("loc", "scale", "minimum"), [(4, 1, 0), (2, 1, 0), (1, 2, 1.5), (0.1, 3, 0)])
def test_moments_of_a_cut_normal_are_those_of_quadrature(loc, scale, minimum):
    normal, cut = stats.norm(loc, scale), Normal(loc, scale, minimum)

    def moment(power):
        tail, _ = integrate.quad(lambda x: x**power * normal.pdf(x), minimum, loc + 12 * scale)
        return tail + minimum**power * normal.cdf(minimum)

    assert cut.mean == pytest.approx(moment(1), rel=1e-8)
    assert cut.variance == pytest.approx(moment(2) - moment(1) ** 2, rel=1e-7)


def test_the_word_decides_by_the_documented_map():
    words = torch.tensor([0, 1, 2**31 - 1, -(2**31), -1], dtype=torch.int32)  # as uint32: 0, 1, 2³¹−1, 2³¹, 2³²−1
    assert Bernoulli(0.5).sample(words).tolist() == [1, 1, 1, 0, 0]
    assert Bernoulli(0.5).threshold == 2**31
    assert Uniform(0, 2).sample(words).tolist() == pytest.approx([0, 0, 1, 1, 2], abs=1e-6)
    assert Mixture(0.5, Constant(7), Constant(3)).sample(words).tolist() == [7, 7, 7, 3, 3]
    # A word's place within its component's share is its word there.
    assert Mixture(0.5, Uniform(0, 1), Uniform(5, 6)).sample(words).tolist() == pytest.approx([0, 0, 1, 5, 6], abs=1e-6)


@pytest.mark.parametrize("keep", [1e-12, 1 - 1e-12])
def test_probabilities_too_near_the_end_for_32_bits_are_rounded(keep):
    assert set(Bernoulli(keep).sample(WORDS).tolist()) == {round(keep)}
    assert set(Mixture(keep, Constant(1), Constant(0)).sample(WORDS).tolist()) == {round(keep)}


def test_a_threshold_beyond_32_bits_is_no_business_of_kernels():
    """As uint32 the threshold 2**32 is 0, or whatever the processor makes of it: nothing would be updated."""
    assert Bernoulli(1 - 1e-12).threshold == 2**32
    assert Bernoulli(1 - 1e-12).kernel_form is None
    assert Bernoulli(1 - 2**-31).kernel_form.numbers == (2**32 - 2,)


BAD = [
    (lambda: Constant(-1), ValueError, r"Constant: value must not be negative.*got -1"),
    (lambda: Constant(math.nan), ValueError, r"Constant: value must be a finite number, got nan"),
    (lambda: Constant("1"), ValueError, r"Constant: value must be a finite number, got '1'"),
    (lambda: Constant(True), ValueError, r"Constant: value must be a finite number, got True"),
    (lambda: Bernoulli(0), ValueError, r"keep is the probability of being updated; 0 would train nothing"),
    (lambda: Bernoulli(1.5), ValueError, r"Bernoulli: keep is a probability.*\[0, 1\], got 1.5"),
    (lambda: Bernoulli(-0.1), ValueError, r"Bernoulli: keep is a probability.*got -0.1"),
    (lambda: Bernoulli(math.inf), ValueError, r"Bernoulli: keep must be a finite number, got inf"),
    (lambda: Uniform(3, 1), ValueError, r"Uniform: needs 0 <= low <= high, got low=3, high=1"),
    (lambda: Uniform(-1, 1), ValueError, r"Uniform: needs 0 <= low <= high, got low=-1, high=1"),
    (lambda: Uniform(0, math.inf), ValueError, r"Uniform: high must be a finite number, got inf"),
    (lambda: Normal(1, -0.1), ValueError, r"Normal: the standard deviation must not be negative, got -0.1"),
    (lambda: Normal(math.inf, 1), ValueError, r"Normal: loc must be a finite number, got inf"),
    (lambda: Normal(1, None), ValueError, r"Normal: scale must be a finite number, got None"),
    (lambda: Normal(1, 1, math.inf), ValueError, r"Normal: minimum must be a number or -inf, got inf"),
    (lambda: Normal(1, 1, math.nan), ValueError, r"Normal: minimum must be a number or -inf, got nan"),
    (lambda: LogUniform(0, 1), ValueError, r"LogUniform: needs 0 < low <= high, got low=0, high=1"),
    (lambda: LogUniform(2, 1), ValueError, r"LogUniform: needs 0 < low <= high, got low=2, high=1"),
    (lambda: LogUniform(1, math.nan), ValueError, r"LogUniform: high must be a finite number, got nan"),
    (lambda: Mixture(2, Constant(1), Constant(1)), ValueError, r"Mixture: p is a probability.*got 2"),
    (lambda: Mixture(0.5, 1.0, Constant(1)), TypeError, r"Mixture: a component must be a Distribution, got 1.0"),
    (lambda: Mixture(0.5, Constant(1), None), TypeError, r"Mixture: a component must be a Distribution, got None"),
]


@pytest.mark.parametrize(("make", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments_are_named_and_shown(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_every_distribution_is_tested():
    assert {type(distribution) for distribution in DISTRIBUTIONS.values()} >= set(Distribution.__subclasses__()) - {
        cls for cls in Distribution.__subclasses__() if cls.__module__ != "flatwise.distributions"
    }

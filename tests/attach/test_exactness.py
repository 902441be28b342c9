"""The factors that real steps apply are the ones the methods claim: moments, distribution, independence, reach.

The factor of an element is recovered from the training itself, as (noisy step) ÷ (plain step) in float64, never from
the library's own account of it; that account is then held against what was recovered.
"""

import math

import numpy as np
import pytest
import torch
from scipy import stats

import flatwise
from contract.training import make_parameters, parameters_of, same_bits, wave

MILLION = 1_000_000
SIGMAS = 4.5  # a bound on every sampling error, in standard errors: about 1 in 150,000


def recovered(optimizer, plain, step):
    """The factor of every element at one step, for two optimizers at the same place with the same gradients."""
    factors = []
    starts = [parameter.detach().clone() for parameter in parameters_of(plain)]
    for own, other, start in zip(parameters_of(optimizer), parameters_of(plain), starts, strict=True):
        gradient = wave(start.shape, step, torch.float64)
        gradient += 0.1 * gradient.sign()  # no update is near 0, where the quotient would be all rounding
        own.data.copy_(start)
        own.grad, other.grad = gradient.clone(), gradient
    optimizer.step()
    plain.step()
    for own, other, start in zip(parameters_of(optimizer), parameters_of(plain), starts, strict=True):
        factors.append((own.detach() - start) / (other.detach() - start))
    return factors


def factors_of_steps(perturbation, steps=1, shapes=((1000, 1000),), make=torch.optim.SGD, **options):
    """Recovered factors, indexed [step][parameter]; the handle's account of them must agree."""
    optimizer, plain = (make(make_parameters(shapes, torch.float64), lr=0.1) for _ in range(2))
    handle = flatwise.perturb(optimizer, perturbation, **options)
    history = []
    for step in range(steps):
        history.append(recovered(optimizer, plain, step))
        for factor, parameter in zip(history[-1], parameters_of(optimizer), strict=True):
            torch.testing.assert_close(
                factor, handle.factor(step, parameter).double().expand_as(factor), rtol=0, atol=1e-6
            )
    return history


def correlation(one, two):
    one, two = (np.asarray(x).ravel() - np.mean(np.asarray(x)) for x in (one, two))
    return float(one @ two / math.sqrt((one @ one) * (two @ two)))


def assert_uncorrelated(one, two):
    assert abs(correlation(one, two)) < SIGMAS / math.sqrt(np.asarray(one).size)


def assert_moments(sample, distribution):
    sample = np.asarray(sample).ravel()
    n, mean, variance = sample.size, distribution.mean, distribution.variance
    fourth = np.mean((sample - mean) ** 4)
    assert abs(sample.mean() - mean) < SIGMAS * math.sqrt(variance / n)
    assert abs(sample.var() - variance) < SIGMAS * math.sqrt(max(fourth - variance**2, variance**2 / n) / n)


# Distribution of one million factors


CONTINUOUS = {
    "leap": flatwise.leap(0.1),
    "leap, wide": flatwise.leap(1.5),
    "uniform": flatwise.Perturbation(flatwise.Uniform(0, 8)),
    "log-uniform": flatwise.Perturbation(flatwise.LogUniform(0.01, 10)),
    "mixture": flatwise.Perturbation(flatwise.Mixture(0.3, flatwise.Normal(1, 0.2), flatwise.Uniform(2, 3))),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_million_factors_are_distributed_as_claimed(name):
    distribution = CONTINUOUS[name].distribution
    sample = factors_of_steps(CONTINUOUS[name])[0][0].numpy().ravel()
    assert_moments(sample, distribution)
    # KS against scipy's own distribution functions, so that ours are not judged by themselves.
    assert stats.kstest(sample, scipy_cdf(distribution)).pvalue > 1e-4


def scipy_cdf(distribution):
    match distribution:
        case flatwise.Normal():
            return stats.norm(distribution.loc, distribution.scale).cdf
        case flatwise.Uniform():
            return stats.uniform(distribution.low, distribution.high - distribution.low).cdf
        case flatwise.LogUniform():
            return stats.loguniform(distribution.low, distribution.high).cdf
    first, second = scipy_cdf(distribution.first), scipy_cdf(distribution.second)
    return lambda x: distribution.p * first(x) + (1 - distribution.p) * second(x)


@pytest.mark.parametrize("keep", [0.5, 0.3, 0.01])
def test_lr_dropout_keeps_the_share_it_says(keep):
    sample = factors_of_steps(flatwise.lr_dropout(keep))[0][0].numpy().ravel()
    assert set(np.unique(sample)) == {0.0, 1.0}
    assert_moments(sample, flatwise.Bernoulli(keep))


def test_the_tails_of_leap_are_there():
    sample = factors_of_steps(flatwise.leap(1.0))[0][0].numpy().ravel() - 1
    for z in (3.0, 3.5, 4.0):
        for tail in (sample > z, sample < -z):
            expected = MILLION * stats.norm.sf(z)
            assert abs(tail.sum() - expected) < SIGMAS * math.sqrt(expected)


# Under momentum and adaptivity the noise is still that of the update


ADAPTIVE = {
    "Adam": torch.optim.Adam,
    "AdamW": lambda ps, lr: torch.optim.AdamW(ps, lr=lr, weight_decay=0.1),
    "momentum": lambda ps, lr: torch.optim.SGD(ps, lr=lr, momentum=0.9),
    "Nesterov": lambda ps, lr: torch.optim.SGD(ps, lr=lr, momentum=0.9, nesterov=True),
    "RMSprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize("make", ADAPTIVE.values(), ids=ADAPTIVE)
def test_sigma_is_the_sigma_of_the_update(make):
    """Noise on the gradient would come out of Adam as 0.019 instead of 0.1, and keep acting through its memory."""
    for of_step in factors_of_steps(flatwise.leap(0.1), steps=3, shapes=((400, 500),), make=make):
        assert_moments(of_step[0], flatwise.Normal(1, 0.1))


@pytest.mark.parametrize("nesterov", [False, True])
def test_masked_elements_keep_their_bits_while_momentum_moves_on(nesterov):
    def make():
        return torch.optim.SGD(make_parameters(((30, 20),)), lr=0.1, momentum=0.9, nesterov=nesterov)

    optimizer, plain = make(), make()
    handle = flatwise.perturb(optimizer, flatwise.lr_dropout(0.5))
    (own,), (other,) = parameters_of(optimizer), parameters_of(plain)
    for step in range(6):
        before = own.detach().clone()
        mask = handle.factor(step, own)
        own.grad, other.grad = wave(own.shape, step), wave(own.shape, step)
        optimizer.step()
        plain.step()
        kept = own.detach() == before
        assert torch.equal(kept, mask == 0)
        assert same_bits(own[kept], before[kept])
        buffers = optimizer.state[own]["momentum_buffer"], plain.state[other]["momentum_buffer"]
        assert same_bits(*buffers)
        assert 0.3 < kept.float().mean() < 0.7


# Independence


def test_elements_are_independent():
    sample = factors_of_steps(flatwise.leap(1.0))[0][0].numpy().ravel()
    for lag in (1, 2, 3, 7, 64, 999, 1000, 1001, 65536, 131072):
        assert_uncorrelated(sample[:-lag], sample[lag:])
        assert_uncorrelated(np.abs(sample[:-lag] - 1), np.abs(sample[lag:] - 1))


def test_steps_and_parameters_are_independent():
    history = factors_of_steps(flatwise.leap(1.0), steps=4, shapes=((200, 400),) * 3)
    streams = np.stack([parameter.numpy().ravel() for step in history for parameter in step])
    others = 1 - np.eye(len(streams))
    for shift in (0, 1, 2):  # a stream is no shifted copy of another either
        correlations = np.corrcoef(streams, np.roll(streams, shift, axis=1))[: len(streams), len(streams) :]
        assert np.abs(correlations * others).max() < SIGMAS / math.sqrt(streams.shape[1])


def test_streams_of_a_composition_are_independent():
    parameter = torch.nn.Parameter(torch.zeros(300, 400))
    handles = [
        flatwise.perturb(torch.optim.SGD([parameter], lr=0.1), perturbations)
        for perturbations in (flatwise.leap(0.5), [flatwise.leap(0.5), flatwise.leap(0.5)])
    ]
    single, product = (handle.factor(0, parameter).numpy() for handle in handles)
    assert_uncorrelated(single, product / single)
    assert (product / single).std() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(("one", "two"), [(0, 1), (42, 43), (0, 1 << 32), (1, 1 << 32), (7, 2**64 - 1)])
def test_another_seed_is_no_shifted_copy(one, two):
    """`seed + t` as the key would make seed 43 the copy of seed 42, one step on; so at every small shift."""
    parameters = [torch.nn.Parameter(torch.zeros(20_000)) for _ in range(3)]

    def streams(seed):
        handle = flatwise.perturb(torch.optim.SGD(parameters, lr=0.1), flatwise.leap(1.0), seed=seed)
        return np.stack([[handle.factor(step, p).numpy() for p in parameters] for step in range(6)]) - 1

    first, second = streams(one), streams(two)
    scale = first.std() * second.std() * math.sqrt(20_000)
    # Every (step, parameter) of one seed against every one of the other, at shifts of up to two elements.
    for shift in (-2, -1, 0, 1, 2):
        moved = np.roll(second, shift, axis=-1)
        products = np.einsum("spe,tqe->sptq", first, moved) / scale
        assert np.abs(products).max() < 5.5  # the largest of 1620 standard normal values
    assert len(np.unique(np.concatenate([first[..., 0].ravel(), second[..., 0].ravel()]))) == 36


# When it acts


def rates(perturbation, steps, *, lr=0.1, **options):
    """The rate that SGD really used, at every step: the gradient is −1."""
    parameter = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    handle = flatwise.perturb(optimizer, perturbation, **options)
    used, told = [], []
    for _ in range(steps):
        told.append(handle.effective_lr()[0])
        before = parameter.item()
        parameter.grad = torch.tensor(-1.0, dtype=torch.float64)
        optimizer.step()
        used.append(parameter.item() - before)
    assert used == pytest.approx(told, rel=1e-9, abs=1e-12)
    return np.array(used)


@pytest.mark.parametrize(
    ("method", "distribution"),
    [
        (flatwise.random_lr(8, 0.6), flatwise.Uniform(0, 8)),
        (flatwise.random_lr_normal(4, 1, 0.6), flatwise.Normal(4, 1)),
        (flatwise.random_lr_normal(2, 1, 0.6), flatwise.Normal(2, 1, minimum=0)),
    ],
)
def test_random_lr_acts_in_its_window_once_an_epoch(method, distribution):
    epochs, steps_per_epoch = 500, 2
    factors = rates(method, epochs * steps_per_epoch, steps_per_epoch=steps_per_epoch, epochs=epochs) / 0.1
    by_epoch = factors.reshape(epochs, steps_per_epoch)
    first = 200  # e ≥ (1 − β) S
    assert np.allclose(by_epoch[:first], 1, rtol=1e-9)
    assert np.allclose(by_epoch, by_epoch[:, :1], rtol=1e-6)  # one draw an epoch …
    drawn = by_epoch[first:, 0]
    assert len(np.unique(drawn.round(9))) > 0.95 * len(drawn)  # … and a new one every epoch
    assert_moments(drawn, distribution)
    assert drawn.min() >= 0
    assert_uncorrelated(drawn[:-1], drawn[1:])


def test_the_window_opens_at_the_papers_epoch():
    """β = 0.6 of 5 epochs: epochs 2, 3 and 4, exactly, though 1 − 0.6 is not 0.4 in floating point."""
    factors = rates(flatwise.random_lr(8, 0.6), 10, steps_per_epoch=2, epochs=5) / 0.1
    assert np.allclose(factors[:4], 1)
    assert not np.isclose(factors[4:], 1).any()


def test_the_windows_stop_is_outside():
    window = flatwise.Window(0.2, 0.6)
    factors = rates(flatwise.Perturbation(flatwise.Constant(3), "all", window=window), 6, steps_per_epoch=1, epochs=5)
    assert factors / 0.1 == pytest.approx([1, 3, 3, 1, 1, 1])


def test_ralr_amplifies_its_share_of_epochs_within_its_range():
    epochs = 1000
    factors = rates(flatwise.ralr(0.5, 1, 3), epochs, steps_per_epoch=1) / 0.1
    amplified = factors[np.abs(factors - 1) > 1e-9]
    assert abs(len(amplified) - epochs / 2) < SIGMAS * math.sqrt(epochs) / 2
    assert stats.kstest(amplified, stats.uniform(1, 2).cdf).pvalue > 1e-4
    assert 1 < amplified.min() < 1.02
    assert 2.98 < amplified.max() < 3
    assert_moments(factors, flatwise.ralr(0.5, 1, 3).distribution)
    assert flatwise.ralr().distribution.mean == 1.5
    assert_uncorrelated(factors[:-1], factors[1:])


def test_alrao_draws_once_for_every_output_channel():
    shapes = ((2000, 3, 2), (2000,))
    history = factors_of_steps(flatwise.alrao(1e-3, 10), steps=3, shapes=shapes)
    weight, bias = history[0]
    for step in history[1:]:
        for first, later in zip(history[0], step, strict=True):
            torch.testing.assert_close(later, first, rtol=1e-6, atol=1e-9)
    channels = weight[:, 0, 0]
    torch.testing.assert_close(weight, channels[:, None, None].expand_as(weight), rtol=1e-6, atol=1e-9)
    for drawn in (channels.numpy(), bias.numpy()):
        assert stats.kstest(drawn, stats.loguniform(1e-3, 10).cdf).pvalue > 1e-4
    assert_uncorrelated(channels.log().numpy(), bias.log().numpy())


@pytest.mark.parametrize(
    ("scope", "distinct"), [("all", 1), ("group", 2), ("tensor", 3), ("channel", 4 + 4 + 2), ("element", 12 + 4 + 8)]
)
def test_who_shares_a_draw(scope, distinct):
    first, second, third = make_parameters(dtype=torch.float64)
    optimizer = torch.optim.SGD([{"params": [first, second]}, {"params": [third]}], lr=0.1)
    handle = flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Uniform(0, 2), scope))
    drawn = [handle.factor(0, p).expand(p.shape).ravel() for p in (first, second, third)]
    assert len(torch.cat(drawn).unique()) == distinct
    before = [p.detach().clone() for p in (first, second, third)]
    for p in (first, second, third):
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, old, factor in zip((first, second, third), before, drawn, strict=True):
        torch.testing.assert_close((old - p.detach()).ravel(), 0.1 * factor.double(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("cadence", "distinct"), [("step", 6), ("epoch", 3), ("once", 1)])
@pytest.mark.parametrize("scope", ["all", "group", "tensor", "channel", "element"])
def test_how_often_it_is_drawn(scope, cadence, distinct):
    perturbation = flatwise.Perturbation(flatwise.Uniform(0, 2), scope, cadence)
    parameter = torch.nn.Parameter(torch.zeros(3, 2))
    handle = flatwise.perturb(torch.optim.SGD([parameter], lr=0.1), perturbation, steps_per_epoch=2)
    drawn = torch.stack([handle.factor(step, parameter).expand(3, 2) for step in range(6)])
    assert len(drawn.unique(dim=0)) == distinct


def test_a_composition_multiplies():
    perturbations = [
        flatwise.leap(0.2),
        flatwise.lr_dropout(0.7),
        flatwise.ralr(),
        flatwise.alrao(0.1, 2),
        flatwise.Perturbation(flatwise.Uniform(0, 2), "group"),
        flatwise.Perturbation(flatwise.Uniform(0, 2), "tensor"),
    ]
    history = factors_of_steps(perturbations, steps=3, shapes=((40, 30), (7,)), steps_per_epoch=2)
    constants = [
        flatwise.Perturbation(flatwise.Constant(v), s) for v, s in ((2, "all"), (3, "tensor"), (0.5, "element"))
    ]
    (product,) = factors_of_steps(constants, shapes=((4, 3),))[0]
    torch.testing.assert_close(product, torch.full((4, 3), 3.0, dtype=torch.float64))
    zeros = (history[0][0] == 0).double().mean()
    assert 0.2 < zeros < 0.4  # the dropout's share


def test_factor_is_a_pure_function_of_the_step():
    """Asked before, during or after, in any order, it is what the step used."""
    parameter = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    handle = flatwise.perturb(optimizer, [flatwise.leap(0.3), flatwise.ralr()], steps_per_epoch=2, seed=3)
    foretold = {step: handle.factor(step, parameter) for step in (5, 0, 4, 2, 1, 3)}
    for step in range(6):
        assert same_bits(handle.factor(parameter=parameter), foretold[step])
        before = parameter.detach().clone()
        parameter.grad = -torch.ones_like(parameter)
        optimizer.step()
        torch.testing.assert_close(parameter.detach() - before, foretold[step].double(), rtol=0, atol=1e-6)
    for step in (3, 0, 5):
        assert same_bits(handle.factor(step, parameter), foretold[step])


def test_factor_without_a_parameter():
    optimizer = torch.optim.SGD(make_parameters(), lr=0.1)
    handle = flatwise.perturb(optimizer, flatwise.random_lr(8, 0.5), steps_per_epoch=1, epochs=4)
    (parameter, *_) = parameters_of(optimizer)
    factors = [handle.factor(step) for step in range(4)]
    assert factors[:2] == [1.0, 1.0]
    assert 1.0 not in factors[2:]
    assert factors == [float(handle.factor(step, parameter)) for step in range(4)]


# The rate


def test_bounds_hold_the_noisy_rate():
    perturbation = flatwise.random_lr(8, 1.0, min_lr=0.05, max_lr=0.3)
    used = rates(perturbation, 400, steps_per_epoch=1, epochs=400)
    free = rates(flatwise.random_lr(8, 1.0), 400, steps_per_epoch=1, epochs=400)
    np.testing.assert_allclose(used, np.clip(free, 0.05, 0.3), rtol=1e-9)
    assert used.min() == pytest.approx(0.05)
    assert used.max() == pytest.approx(0.3)


def test_bounds_hold_a_rate_whose_factor_is_one():
    bounded = flatwise.Perturbation(flatwise.Constant(1), "all", max_lr=0.04)
    assert rates(bounded, 2) == pytest.approx([0.04, 0.04])


def test_a_tensor_rate_is_bounded_too():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=torch.tensor(0.1))
    flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(9), "all", max_lr=0.25))
    parameter.grad = -torch.ones(1)
    optimizer.step()
    assert parameter.item() == pytest.approx(0.25)
    assert optimizer.param_groups[0]["lr"] == torch.tensor(0.1)


def test_effective_lr_is_each_groups_rate_with_the_noise_in_it():
    rates_of_groups = (0.1, 0.2, 0.4)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(make_parameters(), rates_of_groups, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    scoped = flatwise.Perturbation(flatwise.Uniform(0, 2), "group")
    with flatwise.perturb(optimizer, scoped) as handle:
        factors = [float(handle.factor(4, p)) for p in parameters_of(optimizer)]
    handle = flatwise.perturb(optimizer, [scoped, flatwise.lr_dropout(0.25), flatwise.leap(0.1)])
    by_group = [0.25 * lr * factor for lr, factor in zip(rates_of_groups, factors, strict=True)]
    assert handle.effective_lr(4) == pytest.approx(by_group)
    assert len(set(by_group)) == 3
    optimizer.param_groups[0]["lr"] = 1.0  # the present schedule
    assert handle.effective_lr(4)[0] == pytest.approx(10 * by_group[0])
    assert handle.effective_lr() == handle.effective_lr(0) != handle.effective_lr(1)


def test_matched_rate_controls_have_the_mean_and_no_randomness():
    for method, mean in [
        (flatwise.random_lr(8, 0.6), 4),
        (flatwise.ralr(), 1.5),
        (flatwise.lr_dropout(0.3), 0.3),
        (flatwise.leap(0.1), 1),
    ]:
        control = method.matched_rate()
        factors = rates(control, 10, steps_per_epoch=1, epochs=10) / 0.1
        expected = [mean if e >= 4 or control.window.is_always else 1 for e in range(10)]
        assert factors == pytest.approx(expected)


def test_plain_training_is_what_they_are_held_against():
    """The helper `recovered` divides by plain training: an unperturbed optimizer gives exactly 1."""
    optimizer, plain = (torch.optim.SGD(make_parameters(dtype=torch.float64), lr=0.1) for _ in range(2))
    assert all(bool((factor == 1).all()) for factor in recovered(optimizer, plain, 0))

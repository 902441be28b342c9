"""The peak schedules against the paper's formulas, and against torch's rules for schedulers."""

import copy
import io
import math

import pytest
import torch
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR, LinearLR, OneCycleLR, SequentialLR

from flatwise.lr_scheduler import GaussianPeakLR, LaplacianPeakLR

SHAPES = [GaussianPeakLR, LaplacianPeakLR]
both = pytest.mark.parametrize("shape", SHAPES)


def sgd(*rates, lr=0.1):
    """An optimizer with one group per rate, or a single group at `lr`."""
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in rates or (lr,)]
    return torch.optim.SGD(groups, lr=lr)


def train(optimizer, scheduler, steps):
    """Train for `steps` steps with a constant gradient; return each group's rate at every step."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        scheduler.step()
    return rates


def first_group(rates):
    return [rate[0] for rate in rates]


def gaussian(t, high, low):
    variance = -0.25 / math.log(low / high)
    return high * math.exp(-((t - 0.5) ** 2) / variance)


def gaussian_offset(start, high, low):
    variance = -0.25 / math.log(low / high)
    return 0.5 - math.sqrt(-variance * math.log(start / high))


def laplacian(t, high, low):
    scale = -0.5 / math.log(low / high)
    return high * math.exp(-abs(t - 0.5) / scale)


def laplacian_offset(start, high, low):
    scale = -0.5 / math.log(low / high)
    return 0.5 + scale * math.log(start / high)


PAPER = {GaussianPeakLR: (gaussian, gaussian_offset), LaplacianPeakLR: (laplacian, laplacian_offset)}


@both
@pytest.mark.parametrize(("start", "high", "low"), [(0.1, 0.3, 3e-5), (0.01, 0.03, 3e-6), (0.05, 0.7, 0.001)])
def test_every_rate_is_the_papers_formula(shape, start, high, low):
    curve, find_offset = PAPER[shape]
    steps = 101
    optimizer = sgd()
    scheduler = shape(optimizer, steps, max_lr=high, start_lr=start, min_lr=low)
    offset = find_offset(start, high, low)
    assert scheduler.t_offsets == [pytest.approx(offset, rel=1e-12)]

    rates = first_group(train(optimizer, scheduler, steps))
    expected = [curve(offset + (1 - offset) * s / (steps - 1), high, low) for s in range(steps)]
    assert rates == pytest.approx(expected, rel=1e-9)


@both
@pytest.mark.parametrize("total_steps", [2, 3, 7, 1000])
@pytest.mark.parametrize(("start", "high", "low"), [(0.1, 0.3, 3e-5), (0.07, 0.13, 1e-7), (0.2, 0.2, 0.011)])
def test_the_ends_are_exact_and_the_rate_stays_at_the_end(shape, total_steps, start, high, low):
    optimizer = sgd()
    scheduler = shape(optimizer, total_steps, max_lr=high, start_lr=start, min_lr=low)
    rates = first_group(train(optimizer, scheduler, total_steps))
    with pytest.warns(UserWarning, match="is beyond its end"):
        rates += first_group(train(optimizer, scheduler, 5))
    assert rates[0] == start
    assert rates[total_steps - 1 :] == [low] * 6
    assert all(low < rate <= high for rate in rates[: total_steps - 1])


@both
def test_the_peak_is_max_lr_where_a_step_has_t_one_half(shape):
    optimizer = sgd()
    scheduler = shape(optimizer, 11, max_lr=0.3, t_offset=0)
    rates = first_group(train(optimizer, scheduler, 11))
    assert scheduler.peak_step == 5
    assert rates[5] == 0.3
    assert rates[0] == pytest.approx(3e-5, rel=1e-12)
    assert rates == pytest.approx(rates[::-1], rel=1e-9)


@both
def test_the_defaults_are_the_papers(shape):
    scheduler = shape(sgd(lr=0.05), 50)
    assert (scheduler.start_lrs, scheduler.max_lrs) == ([0.05], [pytest.approx(0.15)])
    assert scheduler.min_lrs == [pytest.approx(0.15 / 10_000)]

    from_start = shape(sgd(lr=0.05), 50, start_lr=0.01)
    assert from_start.max_lrs == [pytest.approx(0.03)]

    whole_curve = shape(sgd(lr=0.05), 50, t_offset=0)
    assert whole_curve.max_lrs == [pytest.approx(0.15)]


def test_the_papers_width_and_its_naive_start():
    optimizer = sgd()
    scheduler = GaussianPeakLR(optimizer, max_lr=0.3, variance=2 * 0.08**2, t_offset=0, total_steps=271)
    rates = first_group(train(optimizer, scheduler, 271))
    assert rates == pytest.approx([0.3 * math.exp(-((s / 270 - 0.5) ** 2) / 0.0128) for s in range(271)], rel=1e-9)
    assert rates[135] == 0.3
    assert rates[0] == pytest.approx(0.3 * math.exp(-0.25 / 0.0128))


def test_an_explicit_width_with_a_start():
    gauss = GaussianPeakLR(sgd(), 10, max_lr=0.3, start_lr=0.1, variance=0.0128)
    assert gauss.t_offsets == [pytest.approx(0.5 - math.sqrt(0.0128 * math.log(3)))]
    assert gauss.min_lrs == [pytest.approx(0.3 * math.exp(-0.25 / 0.0128))]

    laplace = LaplacianPeakLR(sgd(), 10, max_lr=0.3, start_lr=0.1, scale=0.07)
    assert laplace.t_offsets == [pytest.approx(0.5 - 0.07 * math.log(3))]
    assert laplace.min_lrs == [pytest.approx(0.3 * math.exp(-0.5 / 0.07))]


@both
def test_a_start_that_is_the_beginning_of_the_curve_gives_offset_zero(shape):
    assert shape(sgd(), 10, max_lr=0.3, start_lr=0.0003, min_lr=0.0003).t_offsets == [0.0]
    # The caller's own γ(0) may be rounded down; the curve still begins at 0 and not before it.
    assert shape(sgd(), 10, max_lr=0.3, start_lr=0.0003 * (1 - 5e-10), min_lr=0.0003).t_offsets == [0.0]


@both
def test_each_group_has_its_own_curve(shape):
    optimizer = sgd(0.1, 0.02)
    scheduler = shape(optimizer, 40, max_lr=[0.3, 0.5], min_lr=[1e-3, 1e-5])
    together = train(optimizer, scheduler, 40)
    for group, (start, high, low) in enumerate([(0.1, 0.3, 1e-3), (0.02, 0.5, 1e-5)]):
        alone = sgd(start)
        scheduler = shape(alone, 40, max_lr=high, min_lr=low)
        assert first_group(train(alone, scheduler, 40)) == [rates[group] for rates in together]


@both
@pytest.mark.parametrize("steps_per_update", [1, 7])
@pytest.mark.parametrize("start", [0.1, 0.25])
def test_peak_step_is_the_first_step_of_the_highest_rate(shape, steps_per_update, start):
    optimizer = sgd()
    scheduler = shape(optimizer, 98, max_lr=0.3, start_lr=start, steps_per_update=steps_per_update)
    rates = first_group(train(optimizer, scheduler, 98))
    assert scheduler.peak_step == rates.index(max(rates))


def test_groups_with_different_peaks_have_no_common_peak_step():
    scheduler = GaussianPeakLR(sgd(0.1, 0.1), 1000, max_lr=[0.3, 0.9])
    first, second = scheduler.peak_steps
    assert first < second
    with pytest.raises(ValueError, match=r"peak at different steps: \[\d+, \d+\]; choose one of `peak_steps`"):
        _ = scheduler.peak_step
    # The defaults keep the groups' ratios, and so their peaks.
    assert len(set(GaussianPeakLR(sgd(0.1, 0.003), 78_200).peak_steps)) == 1


@both
def test_the_discrete_version_holds_each_rate_for_an_epoch(shape):
    optimizer = sgd()
    held = first_group(train(optimizer, shape(optimizer, 60, steps_per_update=6), 60))
    optimizer = sgd()
    per_epoch = first_group(train(optimizer, shape(optimizer, 10), 10))
    assert held == [rate for rate in per_epoch for _ in range(6)]
    assert len(set(held)) == 10


def test_a_last_epoch_that_is_cut_short_still_ends_at_min_lr():
    optimizer = sgd()
    scheduler = GaussianPeakLR(optimizer, 10, min_lr=1e-4, steps_per_update=4)
    rates = first_group(train(optimizer, scheduler, 10))
    assert rates == [0.1] * 4 + [rates[4]] * 4 + [1e-4] * 2
    assert 0.1 < rates[4] < 0.3


@both
@pytest.mark.parametrize("done", [0, 1, 17, 29, 30])
def test_a_resumed_run_equals_an_unbroken_one(shape, done):
    settings = {"max_lr": [0.3, 0.5], "min_lr": 1e-4, "steps_per_update": 3}
    unbroken = sgd(0.1, 0.02)
    expected = train(unbroken, shape(unbroken, 30, **settings), 30)

    optimizer = sgd(0.1, 0.02)
    scheduler = shape(optimizer, 30, **settings)
    train(optimizer, scheduler, done)
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = sgd(0.1, 0.02)
    scheduler = shape(resumed, 30, **settings)
    resumed.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    assert scheduler.state_dict() == saved["scheduler"]
    assert train(resumed, scheduler, 30 - done) == expected[done:]


@both
@pytest.mark.parametrize("done", [1, 17, 29])
def test_last_epoch_resumes_without_the_schedulers_state(shape, done):
    unbroken = sgd()
    expected = train(unbroken, shape(unbroken, 30), 30)
    optimizer = sgd()
    train(optimizer, shape(optimizer, 30), done)

    resumed = sgd()
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    scheduler = shape(resumed, 30, last_epoch=done - 1)
    assert train(resumed, scheduler, 30 - done) == expected[done:]


@both
def test_a_rate_that_was_changed_by_others_is_overwritten_with_a_warning(shape):
    optimizer = sgd()
    scheduler = shape(optimizer, 20)
    train(optimizer, scheduler, 5)
    optimizer.param_groups[0]["lr"] = 123.0
    optimizer.step()
    with pytest.warns(
        UserWarning, match=r"the learning rate is 123, and \w+PeakLR had set it to 0\.\d+: another"
    ) as told:
        scheduler.step()
    assert told[0].filename == __file__
    clean = sgd()
    assert optimizer.param_groups[0]["lr"] == first_group(train(clean, shape(clean, 20), 7))[6]
    optimizer.param_groups[0]["lr"] = 123.0
    scheduler.step()  # it warns once


@both
def test_another_scheduler_stepped_beside_it_is_noticed(shape):
    optimizer = sgd()
    scheduler, other = shape(optimizer, 20), ExponentialLR(optimizer, gamma=0.9)
    optimizer.step()
    other.step()
    with pytest.warns(UserWarning, match="another scheduler or your code changed it"):
        scheduler.step()


@both
@pytest.mark.parametrize("first", [True, False])
def test_it_refuses_to_be_chained(shape, first):
    """Its rates are absolute, as OneCycleLR's: it would lose the others' factors, which go on dividing by them."""
    optimizer = sgd()
    parts = [shape(optimizer, 20), ConstantLR(optimizer, factor=0.1, total_iters=3)]
    with pytest.raises(ValueError, match=rf"{shape.__name__} cannot be part of a ChainedScheduler: .*SequentialLR"):
        ChainedScheduler(parts if first else parts[::-1])


@both
def test_a_chain_of_sequences_is_refused_at_its_first_step(shape):
    optimizer = sgd()
    sequence = SequentialLR(optimizer, [shape(optimizer, 20), ExponentialLR(optimizer, 0.9)], milestones=[20])
    chain = ChainedScheduler([sequence, ConstantLR(optimizer, factor=0.1, total_iters=3)])
    optimizer.step()
    with pytest.raises(ValueError, match=rf"{shape.__name__} cannot be part of a ChainedScheduler"):
        chain.step()


def test_torchs_absolute_schedule_does_lose_factors_when_chained():
    """Why a chain is refused: this is what torch's own does without a word."""
    optimizer = sgd()
    chain = ChainedScheduler([ConstantLR(optimizer, 0.1, 3), OneCycleLR(optimizer, 0.3, total_steps=9)], optimizer)
    alone = sgd()
    rates = first_group(train(optimizer, chain, 6))
    assert rates == first_group(train(alone, OneCycleLR(alone, 0.3, total_steps=9), 6))  # ten times too large


@both
def test_an_overrun_is_said_once(shape):
    optimizer = sgd()
    scheduler = shape(optimizer, 10)
    train(optimizer, scheduler, 10)  # the usual loop, whose last call is one more than there are rates
    optimizer.step()
    with pytest.warns(UserWarning, match=r"made for total_steps=10 and is beyond its end") as told:
        scheduler.step()
    assert told[0].filename == __file__
    train(optimizer, scheduler, 3)
    assert scheduler.get_last_lr() == scheduler.min_lrs


@both
def test_a_state_of_other_settings_says_so_and_replaces_them(shape):
    optimizer, other = sgd(), sgd()
    scheduler, longer = shape(optimizer, 30), shape(other, 50, max_lr=0.2)
    train(optimizer, scheduler, 4)
    saved = scheduler.state_dict()
    with pytest.warns(UserWarning, match=r"total_steps is 50 and was saved as 30; max_lrs is \[0\.2\] and was saved"):
        longer.load_state_dict(saved)
    other.load_state_dict(optimizer.state_dict())
    assert longer.state_dict() == saved
    assert train(other, longer, 26) == train(optimizer, scheduler, 26)


@both
def test_a_foreign_state_is_refused_and_changes_nothing(shape):
    optimizer = sgd()
    scheduler = shape(optimizer, 30)
    train(optimizer, scheduler, 4)
    before = copy.deepcopy(scheduler.state_dict())
    (other_shape,) = {*SHAPES} - {shape}
    foreign = [
        (other_shape(sgd(), 30).state_dict(), r"cannot load the state of a \w+ peak schedule: load it into "),
        (ExponentialLR(sgd(), 0.9).state_dict(), "it lacks total_steps, steps_per_update, max_lrs.*; got .*gamma"),
        (OneCycleLR(sgd(), 0.3, total_steps=30).state_dict(), "it lacks steps_per_update, max_lrs"),
        ({}, "got an empty dict"),
        (shape(sgd(0.1, 0.1), 30).state_dict(), "has 2 parameter groups, but the optimizer .* has 1"),
    ]
    for state, message in foreign:
        with pytest.raises(ValueError, match=message):
            scheduler.load_state_dict(state)
        assert scheduler.state_dict() == before


@both
def test_a_state_saved_before_the_shape_was_is_loaded(shape):
    optimizer = sgd()
    scheduler = shape(optimizer, 30)
    train(optimizer, scheduler, 4)
    saved = scheduler.state_dict()
    del saved["shape"]
    resumed = shape(sgd(), 30)
    resumed.load_state_dict(saved)
    assert resumed.last_epoch == 4


@both
def test_a_tensor_rate_is_filled_in_place(shape):
    rate = torch.tensor(0.1, dtype=torch.float64)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))], lr=rate)
    scheduler = shape(optimizer, 12)
    rates = first_group(train(optimizer, scheduler, 12))
    assert optimizer.param_groups[0]["lr"] is rate
    plain = sgd()
    assert rates == first_group(train(plain, shape(plain, 12), 12))


def test_it_follows_a_warmup_in_sequential_lr():
    optimizer = sgd()
    warmup = LinearLR(optimizer, start_factor=0.1, total_iters=4)
    peak = GaussianPeakLR(optimizer, 10)
    assert peak.start_lrs == [0.1]  # not the warmup's first value
    rates = first_group(train(optimizer, SequentialLR(optimizer, [warmup, peak], milestones=[4]), 14))
    plain = sgd()
    assert rates[0] == pytest.approx(0.01)
    assert rates[4:] == first_group(train(plain, GaussianPeakLR(plain, 10), 10))


@both
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "total_steps must be a positive integer; got 0"),
        ({"total_steps": 10.0}, "total_steps must be a positive integer; got 10.0"),
        ({"total_steps": True}, "total_steps must be a positive integer; got True"),
        ({"total_steps": 1}, "total_steps=1 with steps_per_update=1 leaves one"),
        ({"steps_per_update": 10}, "total_steps=10 with steps_per_update=10 leaves one"),
        ({"steps_per_update": 0}, "steps_per_update must be a positive integer; got 0"),
        ({"max_lr": 0.09}, "start_lr must be at most max_lr; got start_lr=0.1 and max_lr=0.09: raise max_lr"),
        ({"max_lr": math.inf}, "max_lr must be positive and finite; got inf"),
        ({"max_lr": 0.0}, "max_lr must be positive and finite; got 0.0"),
        ({"start_lr": -0.1}, "start_lr must be positive and finite; got -0.1"),
        ({"start_lr": math.nan}, "start_lr must be positive and finite; got nan"),
        ({"min_lr": 0}, "min_lr must be positive and finite; got 0.0"),
        ({"min_lr": 0.5}, "min_lr must be below max_lr; got min_lr=0.5"),
        ({"min_lr": 0.2}, r"start_lr must be at least γ\(0\) = γ\(1\) = 0.2"),
        ({"max_lr": [0.3, 0.3]}, "max_lr has 2 values for 1 parameter groups"),
        ({"start_lr": 0.1, "t_offset": 0.0}, "give one of them"),
        ({"t_offset": 0.6}, r"t_offset must lie in \[0, 0.5\], before the peak; got 0.6"),
        ({"t_offset": -0.1}, "t_offset must be at least 0 and finite; got -0.1"),
    ],
)
def test_wrong_settings_are_refused(shape, settings, message):
    optimizer = sgd()
    with pytest.raises(ValueError, match=message):
        shape(optimizer, **{"total_steps": 10, **settings})
    assert "initial_lr" not in optimizer.param_groups[0]  # refused before anything was touched


@pytest.mark.parametrize(("shape", "width"), [(GaussianPeakLR, "variance"), (LaplacianPeakLR, "scale")])
def test_wrong_widths_are_refused(shape, width):
    with pytest.raises(ValueError, match=f"min_lr and {width} both set the width"):
        shape(sgd(), 10, min_lr=1e-5, **{width: 0.01})
    with pytest.raises(ValueError, match=f"{width} must be positive and finite; got 0.0"):
        shape(sgd(), 10, **{width: 0})
    with pytest.raises(ValueError, match=f"{width}=1e-05 is so small"):
        shape(sgd(), 10, **{width: 1e-5})
    with pytest.raises(ValueError, match=f"raise start_lr, lower {width} or min_lr, or give t_offset=0"):
        shape(sgd(), 10, max_lr=0.3, start_lr=0.1, **{width: 10.0})


@both
def test_an_optimizer_without_a_usable_rate_or_no_optimizer_at_all_is_refused(shape):
    with pytest.raises(ValueError, match=r"the optimizer's learning rate, from which .* must be positive"):
        shape(sgd(lr=0.0), 10)
    assert shape(sgd(lr=0.0), 10, max_lr=0.3, start_lr=0.1).start_lrs == [0.1]
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer; got list"):
        shape([], 10)


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    rates = []
    for integer, real in ((int, float), (np.int64, np.float32)):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.125)
        scheduler = GaussianPeakLR(optimizer, integer(10), max_lr=real(0.5), steps_per_update=integer(2))
        rates.append((scheduler.get_lr(), scheduler.max_lrs, scheduler.total_steps))
    assert rates[0] == rates[1]
    assert type(rates[1][2]) is int

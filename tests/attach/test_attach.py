"""Attaching to whatever people train: groups, dtypes, layouts, closures, scalers, failures, copies, checkpoints."""

import copy
import functools
import io
import itertools
import math
import pickle
import random

import pytest
import schedulefree
import torch

import flatwise
from contract.training import (
    attach,
    bits,
    checkpoint,
    make_optimizer,
    make_parameters,
    memory,
    parameters_of,
    restore,
    same_bits,
    set_gradients,
    train,
    values,
    wave,
)
from flatwise._attach.factors import blend
from flatwise._attach.parameters import Block

LEAP, DROPOUT, RALR = flatwise.leap(0.3), flatwise.lr_dropout(0.5), flatwise.ralr()
GROUP_NOISE = flatwise.Perturbation(flatwise.Uniform(0.2, 2), "group")
RATE_NOISE = flatwise.Perturbation(flatwise.Uniform(0.2, 2), "all")
FINE_AND_COARSE = {
    "leap": LEAP,
    "lr_dropout": DROPOUT,
    "alrao": flatwise.alrao(0.1, 2),
    "tensor": flatwise.Perturbation(flatwise.Uniform(0.2, 2), "tensor"),
    "all": RATE_NOISE,
    "composed": [LEAP, RATE_NOISE],
}


def sgd(parameters, lr=0.1, **options):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, **options)


def adam(parameters, lr=0.1, **options):
    return torch.optim.Adam(parameters, lr=lr, eps=1e-4, **options)  # an eps that float16 can hold


def pair(make, *arguments, **options):
    """A plain optimizer and one to perturb, alike."""
    return make(*arguments, **options), make(*arguments, **options)


def check_step(plain, handle, step):
    """One step moves every parameter by its factor times what the plain optimizer does from the same place.

    The plain optimizer follows: its momentum knows nothing of the rate, so it stays in step with the perturbed one's.
    """
    optimizer = handle.optimizer
    factors = [handle.factor(parameter=p) for p in parameters_of(optimizer)]
    before = values(optimizer)
    with torch.no_grad():
        for other, own in zip(parameters_of(plain), before, strict=True):
            other.copy_(own)
    for each in (plain, optimizer):
        set_gradients(each, step)
        each.step()
    for old, target, new, factor in zip(before, values(plain), values(optimizer), factors, strict=True):
        dtype, wide = old.dtype, torch.complex128 if old.is_complex() else torch.float64
        old, target = old.to(wide), target.to(wide)
        largest = max([1.0, *(t.abs().max().item() for t in (old, target) if t.numel())])
        # A noisy rate and a scaled update round differently: by the last bits of the parameter, not of the update.
        # And `factor` rounds the product of several factors to float32, where the step applies one after the other.
        coarsest = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps if len(handle.perturbations) > 1 else 0.0)
        tolerance = 4 * coarsest * largest
        torch.testing.assert_close(new.to(wide), old + factor * (target - old), rtol=0, atol=tolerance)
    assert same_bits(memory(optimizer)[0], memory(plain)[0])


# Blending


def test_the_ends_of_a_blend_are_exact():
    """A factor of 1 gives the new bits and 0 the old ones, whatever they are: no 0 · inf, no inf − inf."""
    old = torch.tensor([1.0, 1.0, -0.0, math.inf, math.nan, 0.1, 3e38])
    new = torch.tensor([math.inf, math.nan, 0.5, 2.0, 1.0, -0.0, -3e38])
    assert same_bits(blend(old, new, torch.ones(7)), new)
    assert same_bits(blend(old, new, torch.zeros(7)), old)


def test_what_did_not_move_keeps_its_bits_under_any_factor():
    still = torch.tensor([math.inf, -math.inf, -0.0, 0.1, 1e-42, 3e38])
    for factor in (-2.0, 0.0, 0.37, 1.0, 9.0):
        assert same_bits(blend(still, still.clone(), torch.full((6,), factor)), still)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_rounded_once(dtype):
    old, new = wave((1000,), 0, dtype), wave((1000,), 1, dtype)
    factor = wave((1000,), 2).abs() + 0.1
    expected = torch.lerp(old.float(), new.float(), factor).to(dtype)
    assert same_bits(blend(old, new, factor), expected)


# Shapes, layouts, dtypes


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
ODD_SHAPES = ((), (1,), (0, 3), (5,), (2, 3, 4), (3, 1, 2, 2))


@pytest.mark.parametrize("noise", FINE_AND_COARSE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [sgd, adam])
def test_every_dtype_and_shape(make, dtype, noise):
    plain, perturbed = (make(make_parameters(ODD_SHAPES, dtype)) for _ in range(2))
    handle = attach(perturbed, FINE_AND_COARSE[noise])
    for step in range(2):
        check_step(plain, handle, step)


def transposed():
    return wave((4, 6)).t()


def strided():
    return wave((4, 6))[:, ::2]


def channels_last():
    return wave((2, 3, 4, 5)).to(memory_format=torch.channels_last)


def offset():
    return wave((5, 6))[1:]


@pytest.mark.parametrize("noise", FINE_AND_COARSE)
@pytest.mark.parametrize("layout", [transposed, strided, channels_last, offset])
def test_noise_belongs_to_the_logical_element_whatever_the_layout(layout, noise):
    (laid_out,), (contiguous,) = [[torch.nn.Parameter(t)] for t in (layout(), layout().contiguous())]
    assert laid_out.stride() != contiguous.stride() or layout is offset
    strides = laid_out.stride()
    optimizers = [sgd([laid_out]), sgd([contiguous])]
    handles = [attach(optimizer, FINE_AND_COARSE[noise]) for optimizer in optimizers]
    assert same_bits(*[handle.factor(0, p) for handle, p in zip(handles, (laid_out, contiguous), strict=True)])
    assert same_bits(*[train(optimizer, 3) for optimizer in optimizers])
    assert laid_out.stride() == strides
    assert not same_bits(train(sgd([torch.nn.Parameter(layout())]), 3)[-1], values(optimizers[0]))


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"maximize": True}], ids=str
)
@pytest.mark.parametrize("noise", FINE_AND_COARSE)
@pytest.mark.parametrize("make", [sgd, adam])
def test_every_implementation_of_the_optimizer(make, noise, options):
    plain, perturbed = (make(make_parameters(), **options) for _ in range(2))
    handle = attach(perturbed, FINE_AND_COARSE[noise])
    for step in range(3):
        check_step(plain, handle, step)


def test_sparse_gradients_leave_untouched_rows_alone():
    optimizer = make_optimizer("SparseAdam")
    attach(optimizer, LEAP)
    for step in range(4):
        before = values(optimizer)
        train(optimizer, 1, start=step)
        for old, new in zip(before, values(optimizer), strict=True):
            row = step % len(old)
            assert same_bits(new[row], old[row])
            assert not (new == old).all()


# Groups and parameters that come and go


def three_groups(make=sgd):
    return make([{"params": [p], "lr": lr} for p, lr in zip(make_parameters(), (0.1, 0.2, 0.3), strict=True)])


@pytest.mark.parametrize(
    "noise", [LEAP, RALR, GROUP_NOISE, [LEAP, GROUP_NOISE, RALR]], ids=["leap", "ralr", "group", "all"]
)
def test_every_group_keeps_its_own_rate(noise):
    plain, perturbed = three_groups(), three_groups()
    handle = attach(perturbed, noise)
    for step in range(4):
        check_step(plain, handle, step)
        assert [group["lr"] for group in perturbed.param_groups] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("noise", [LEAP, GROUP_NOISE], ids=["leap", "group"])
def test_a_group_added_later_is_perturbed_and_saved(noise):
    plain, perturbed = (sgd(make_parameters()[:1]) for _ in range(2))
    handle = attach(perturbed, noise)
    check_step(plain, handle, 0)
    for optimizer in (plain, perturbed):
        optimizer.add_param_group({"params": make_parameters()[1:], "lr": 0.5})
    for step in range(1, 4):
        check_step(plain, handle, step)
    assert [group["flatwise_step"] for group in perturbed.param_groups] == [4, 4]
    # An optimizer that had both groups from the start draws the same.
    whole = attach(sgd([{"params": make_parameters()[:1]}, {"params": make_parameters()[1:]}]), noise)
    for own, other in zip(parameters_of(perturbed), parameters_of(whole.optimizer), strict=True):
        assert same_bits(handle.factor(7, own), whole.factor(7, other))


def test_a_group_added_right_before_saving_does_not_hide_the_state():
    optimizer = sgd(make_parameters()[:1])
    attach(optimizer, LEAP)
    train(optimizer, 2)
    optimizer.add_param_group({"params": make_parameters()[1:]})
    twin = sgd([{"params": make_parameters()[:1]}, {"params": make_parameters()[1:]}])
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert attach(twin, LEAP).step == 2


def test_parameters_without_gradients_are_not_touched():
    optimizer = sgd(make_parameters())
    attach(optimizer, [LEAP, RALR])
    first, second, third = parameters_of(optimizer)
    set_gradients(optimizer, 0)
    second.grad = None
    before = values(optimizer)
    optimizer.step()
    assert same_bits(second.detach(), before[1])
    assert not torch.equal(first, before[0])
    assert not torch.equal(third, before[2])


def test_freezing_changes_nobody_elses_noise():
    """A frozen parameter keeps its bits; thawed, it draws what its step says, and the others never noticed."""
    optimizers = [torch.optim.SGD(make_parameters(), lr=0.1) for _ in range(2)]
    handles = [attach(optimizer, LEAP) for optimizer in optimizers]
    *others, frozen = parameters_of(optimizers[0])
    start = frozen.detach().clone()
    frozen.requires_grad_(False)
    for step in range(2):
        for optimizer in optimizers:
            set_gradients(optimizer, step)
        frozen.grad = None
        for optimizer in optimizers:
            optimizer.step()
    assert same_bits(frozen.detach(), start)
    assert same_bits([p.detach() for p in others], values(optimizers[1])[:-1])
    frozen.requires_grad_(True)
    frozen.grad = -torch.ones_like(frozen)
    expected = start + 0.1 * handles[0].factor(2, frozen)
    optimizers[0].step()
    torch.testing.assert_close(frozen.detach(), expected)


def other_storage(parameter):
    return parameter.data.clone()


def a_view(parameter):
    return torch.cat([parameter.data, parameter.data])[: len(parameter)]


def another_layout(parameter):
    return parameter.data.t().contiguous().t()


def wider(parameter):
    return parameter.data.double()


@pytest.mark.parametrize("change", [other_storage, a_view, another_layout, wider])
@pytest.mark.parametrize("noise", FINE_AND_COARSE)
def test_a_parameters_data_may_be_exchanged_between_steps(change, noise):
    """No buffer, address or layout of the last step may be trusted in the next."""
    plain, perturbed = (torch.optim.SGD(make_parameters(((6, 5),)), lr=0.1) for _ in range(2))
    handle = attach(perturbed, FINE_AND_COARSE[noise])
    for step in range(4):
        check_step(plain, handle, step)
        if step % 2:
            for (parameter,) in (parameters_of(plain), parameters_of(perturbed)):
                parameter.grad = None
                parameter.data = change(parameter)


# The rate as a tensor


@pytest.mark.parametrize(
    "noise", [RATE_NOISE, GROUP_NOISE, LEAP, [RALR, RATE_NOISE]], ids=["all", "group", "leap", "two"]
)
def test_a_tensor_rate_is_filled_in_place_and_restored(noise):
    rate = torch.tensor(0.1)
    plain, perturbed = sgd(make_parameters(), lr=torch.tensor(0.1)), sgd(make_parameters(), lr=rate)
    handle = attach(perturbed, noise)
    seen = []
    perturbed.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
    for step in range(4):
        check_step(plain, handle, step)
        assert perturbed.param_groups[0]["lr"] is rate
        assert same_bits(rate, torch.tensor(0.1))
    assert all(each is rate for each in seen)


def test_groups_may_share_a_tensor_rate():
    """It is multiplied once, not once for every group that holds it."""
    rate = torch.tensor(0.1, dtype=torch.float64)
    parameters = make_parameters(dtype=torch.float64)
    optimizer = torch.optim.SGD([{"params": [p], "lr": rate} for p in parameters], lr=rate)
    handle = attach(optimizer, [RATE_NOISE, RALR])
    for step in range(4):
        factor, before = handle.factor(), values(optimizer)
        for p in parameters:
            p.grad = -torch.ones_like(p)
        optimizer.step()
        for old, new in zip(before, values(optimizer), strict=True):
            torch.testing.assert_close(new - old, torch.full_like(old, 0.1 * factor), rtol=1e-6, atol=0)
        assert all(group["lr"] is rate for group in optimizer.param_groups)
        assert rate.item() == 0.1, step


def test_a_shared_tensor_rate_cannot_differ_by_group():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([{"params": [p], "lr": rate} for p in make_parameters()], lr=rate)
    with pytest.raises(ValueError, match="groups that share one tensor as 'lr'"):
        attach(optimizer, GROUP_NOISE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch's own, when dynamo is imported
def test_compiling_model_and_step_changes_no_noise():
    """A compiled model's parameters keep their names' noise; a step compiled once reads a tensor rate at every call."""
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(list(torch.compile(model).named_parameters()), lr=torch.tensor(0.1))
    handle = attach(optimizer, RATE_NOISE)
    step = torch.compile(optimizer.step, backend="eager")
    for count in range(4):
        before, factor = values(optimizer), handle.factor()
        for p in model.parameters():
            p.grad = -torch.ones_like(p)
        step()
        for old, new in zip(before, values(optimizer), strict=True):
            torch.testing.assert_close(new - old, torch.full_like(old, 0.1 * factor), rtol=1e-4, atol=1e-6)
        assert handle.step == count + 1
        assert optimizer.param_groups[0]["lr"] == torch.tensor(0.1)
    handle.remove()
    assert same_bits(drawn(optimizer), drawn(sgd(list(model.named_parameters()))))


# Closures


@pytest.mark.parametrize("noise", [LEAP, DROPOUT, [LEAP, RALR]], ids=["leap", "lr_dropout", "composed"])
@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_made_in_a_closure_are_perturbed_alike(noise, by_name):
    outside, inside = sgd(make_parameters()), sgd(make_parameters())
    attach(outside, noise)
    attach(inside, noise)
    expected = train(outside, 4)
    for step in range(4):
        inside.zero_grad()  # no gradients before step: what moves is known only after

        def closure(step=step):
            set_gradients(inside, step)
            return step + 0.5

        loss = inside.step(closure=closure) if by_name else inside.step(closure)
        assert loss == step + 0.5
        assert same_bits(values(inside), expected[step])


# Who is who


def named(prefix="", order=(0, 1, 2), groups=1):
    names = ("layer.weight", "layer.bias", "head.weight")
    pairs = [(prefix + names[i], make_parameters()[i]) for i in order]
    split = [pairs] if groups == 1 else [pairs[:1], pairs[1:]]
    return sgd([{"params": part} for part in split])


def drawn(optimizer, noise=LEAP, step=3):
    """Each parameter's factor, by shape."""
    handle = attach(optimizer, noise)
    return {tuple(p.shape): handle.factor(step, p) for p in parameters_of(optimizer)}


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "_fsdp_wrapped_module."]
)
def test_wrappers_prefixes_change_no_noise(prefix):
    assert same_bits(drawn(named(prefix)), drawn(named()))


def test_named_parameters_may_come_in_any_order_and_grouping():
    expected = drawn(named())
    for order in itertools.permutations(range(3)):
        assert same_bits(drawn(named(order=order)), {shape: expected[shape] for shape in drawn(named(order=order))})
    assert same_bits(drawn(named(groups=2)), expected)


def test_unnamed_parameters_are_their_position_over_all_groups():
    first = drawn(sgd(make_parameters()))
    assert same_bits(drawn(three_groups()), first)
    swapped = drawn(sgd(make_parameters()[::-1]))
    assert not same_bits({shape: swapped[shape] for shape in first}, first)
    assert not same_bits(drawn(named()), first)


def test_names_that_would_meet_without_their_prefixes_keep_them():
    parameters = [torch.nn.Parameter(torch.zeros(5)) for _ in range(2)]
    optimizer = sgd([("module.weight", parameters[0]), ("weight", parameters[1])])
    handle = attach(optimizer, LEAP)
    assert not same_bits(handle.factor(0, parameters[0]), handle.factor(0, parameters[1]))


def test_parameters_of_one_shape_draw_differently():
    parameters = [torch.nn.Parameter(torch.zeros(5)) for _ in range(20)]
    handle = attach(sgd(parameters), LEAP)
    assert len({tuple(handle.factor(0, p).tolist()) for p in parameters}) == 20


def test_two_optimizers_do_not_interact():
    alone = sgd(make_parameters())
    attach(alone, LEAP, seed=1)
    expected = train(alone, 4)
    one, other = sgd(make_parameters()), adam(make_parameters())
    attach(one, LEAP, seed=1)
    attach(other, [DROPOUT, RALR], seed=2)
    found = []
    for step in range(4):
        found += train(one, 1, start=step)
        train(other, 2, start=step)
    assert same_bits(found, expected)


# Gradient scalers: a skipped step


def scaled_step(optimizer, scaler, step, *, bad):
    scaler.scale(torch.tensor(1.0))  # lets it allocate its scale, as scaling a loss does
    set_gradients(optimizer, step)
    for p in parameters_of(optimizer):
        p.grad.mul_(scaler.get_scale())
    if bad:
        parameters_of(optimizer)[1].grad[0] = math.inf
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize(
    "noise", [LEAP, DROPOUT, RATE_NOISE, [LEAP, RALR]], ids=["leap", "lr_dropout", "all", "composed"]
)
@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
@pytest.mark.parametrize("make", [sgd, adam])
def test_a_step_that_the_scaler_skips_changes_no_bit(make, fused, noise):
    optimizer = make(make_parameters(), fused=fused)
    attach(optimizer, noise)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaled_step(optimizer, scaler, 0, bad=False)
    before, rate = values(optimizer), optimizer.param_groups[0]["lr"]
    scaled_step(optimizer, scaler, 1, bad=True)
    assert scaler.get_scale() == 4.0  # it did see the infinity
    assert same_bits(values(optimizer), before)
    assert optimizer.param_groups[0]["lr"] == rate == 0.1
    scaled_step(optimizer, scaler, 2, bad=False)
    assert all(not torch.equal(old, new) for old, new in zip(before, values(optimizer), strict=True))


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_scaled_training_is_the_unscaled_one(fused):
    scaled, unscaled = (sgd(make_parameters(), fused=fused) for _ in range(2))
    attach(scaled, [LEAP, RALR])
    attach(unscaled, [LEAP, RALR])
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # a power of two: exact
    for step in range(4):
        scaled_step(scaled, scaler, step, bad=False)
        train(unscaled, 1, start=step)
        assert same_bits(values(scaled), values(unscaled))


# Steps that fail


class Stop(Exception):
    pass


def raise_in_closure(optimizer, error):
    def closure():
        raise error

    optimizer.step(closure)


def raise_in_optimizer(optimizer, error):
    """The optimizer itself fails, after it has begun."""
    handle = optimizer.register_step_pre_hook(lambda *_: (_ for _ in ()).throw(error))
    try:
        optimizer.step()
    finally:
        handle.remove()


def raise_in_post_hook(optimizer, error):
    handle = optimizer.register_step_post_hook(lambda *_: (_ for _ in ()).throw(error))
    try:
        optimizer.step()
    finally:
        handle.remove()


@pytest.mark.parametrize("error", [Stop("no"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("fail", [raise_in_closure, raise_in_optimizer])
@pytest.mark.parametrize("tensor_rate", [False, True], ids=["float lr", "tensor lr"])
def test_a_failed_step_leaves_a_clean_rate_and_does_not_count(fail, error, tensor_rate):
    def make():
        return sgd(make_parameters(), lr=torch.tensor(0.1) if tensor_rate else 0.1)

    undisturbed, optimizer = make(), make()
    noise = [LEAP, RATE_NOISE, RALR]
    attach(undisturbed, noise)
    handle = attach(optimizer, noise)
    expected = train(undisturbed, 4)
    train(optimizer, 2)
    set_gradients(optimizer, 2)
    with pytest.raises(type(error)):
        fail(optimizer, error)
    assert float(optimizer.param_groups[0]["lr"]) == float(make().param_groups[0]["lr"])
    assert handle.step == optimizer.param_groups[0]["flatwise_step"] == 2
    assert same_bits(values(optimizer), expected[1])
    assert same_bits(train(optimizer, 2, start=2), expected[2:])


def test_an_optimizer_that_fails_by_itself():
    optimizer = adam(make_parameters())
    handle = attach(optimizer, [RATE_NOISE, LEAP])
    set_gradients(optimizer, 0)
    first, *_ = parameters_of(optimizer)
    first.grad = first.grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert handle.step == 0
    train(optimizer, 1)
    assert handle.step == 1


def test_a_users_failing_post_hook_comes_after_the_step_and_so_counts():
    optimizer = sgd(make_parameters())
    handle = attach(optimizer, [LEAP, RATE_NOISE])
    set_gradients(optimizer, 0)
    with pytest.raises(Stop):
        raise_in_post_hook(optimizer, Stop())
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert handle.step == 1


# Hooks and schedulers of the user


@pytest.mark.parametrize("hook_first", [True, False], ids=["hook, noise", "noise, hook"])
def test_a_users_post_hook_sees_the_clean_rate_and_the_final_parameters(hook_first):
    optimizer = sgd(make_parameters())
    seen = []

    def look(optimizer, args, kwargs):
        seen.append((optimizer.param_groups[0]["lr"], values(optimizer)))

    if hook_first:
        optimizer.register_step_post_hook(look)
    attach(optimizer, [LEAP, RATE_NOISE])
    if not hook_first:
        optimizer.register_step_post_hook(look)
    history = train(optimizer, 3)
    assert same_bits(seen, [(0.1, after) for after in history])


@pytest.mark.parametrize("hook_first", [True, False], ids=["hook, noise", "noise, hook"])
def test_a_scheduler_stepped_in_a_post_hook_sees_no_noise(hook_first):
    def schedule(optimizer):
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        optimizer.register_step_post_hook(lambda *_: scheduler.step())

    optimizer = sgd(make_parameters())
    for install in (schedule, functools.partial(attach, perturbation=RATE_NOISE))[:: 1 if hook_first else -1]:
        install(optimizer)
    train(optimizer, 5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.9**5, rel=1e-12)


# Copies


def by_torch_save(optimizer):
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_pickle(optimizer, protocol=pickle.DEFAULT_PROTOCOL):
    return pickle.loads(pickle.dumps(optimizer, protocol))


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": by_pickle,
    "pickle, protocol 2": functools.partial(by_pickle, protocol=2),
    "torch.save": by_torch_save,
    "a copy's copy": lambda optimizer: copy.deepcopy(by_pickle(optimizer)),
}


@pytest.mark.parametrize("noise", [LEAP, DROPOUT, [LEAP, RALR]], ids=["leap", "lr_dropout", "composed"])
@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("make", [sgd, adam])
def test_a_copy_keeps_the_noise_and_goes_on_alike(make, how, noise):
    optimizer = make(make_parameters())
    handle = attach(optimizer, noise, seed=9)
    train(optimizer, 2)
    twin = COPIES[how](optimizer)
    expected = train(optimizer, 3, start=2)
    assert same_bits(train(twin, 3, start=2), expected)
    assert twin.param_groups[0]["flatwise_step"] == handle.step == 5
    assert twin.param_groups[0]["flatwise_seed"] == 9


def test_a_shallow_copy_shares_everything_and_keeps_the_noise():
    optimizer, original = sgd(make_parameters()), sgd(make_parameters())
    attach(original, [LEAP, RATE_NOISE])
    expected = train(original, 4)
    handle = attach(optimizer, [LEAP, RATE_NOISE])
    history = train(optimizer, 2)
    twin = copy.copy(optimizer)
    history += train(twin, 1, start=2)
    history += train(optimizer, 1, start=3)  # the step count is in the groups, which they share
    assert same_bits(history, expected)
    assert handle.step == 4


def test_copied_together_with_its_model():
    model = torch.nn.Linear(3, 2)
    optimizer = sgd(model.parameters())
    attach(optimizer, LEAP)
    train(optimizer, 1)
    other_model, other = copy.deepcopy((model, optimizer))
    assert all(a is b for a, b in zip(other_model.parameters(), parameters_of(other), strict=True))
    assert same_bits(train(other, 3, start=1), train(optimizer, 3, start=1))
    assert not any(a is b for a, b in zip(model.parameters(), other_model.parameters(), strict=True))


def test_a_copy_has_a_life_of_its_own():
    optimizer = sgd(make_parameters())
    handle = attach(optimizer, RATE_NOISE)
    twin = copy.deepcopy(optimizer)
    handle.remove()
    train(twin, 2)
    assert twin.param_groups[0]["flatwise_step"] == 2
    assert handle.step == 0
    assert not any(key.startswith("flatwise") for key in optimizer.param_groups[0])


# Checkpoints


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_plain_checkpoint_loads_into_a_perturbed_optimizer(make):
    plain = make(make_parameters())
    train(plain, 3)
    optimizer = make(make_parameters())
    handle = attach(optimizer, [LEAP, RALR], seed=4, step=3)
    restore(optimizer, checkpoint(plain))
    assert (handle.step, handle.seed) == (3, 4)
    for step in range(3, 6):
        check_step(plain, handle, step)
    assert optimizer.param_groups[0]["flatwise_step"] == 6


@pytest.mark.parametrize("make", [sgd, adam])
def test_a_perturbed_checkpoint_trains_on_plainly_in_a_plain_optimizer(make):
    perturbed = make(make_parameters())
    handle = attach(perturbed, LEAP)
    train(perturbed, 3)
    saved = checkpoint(perturbed)
    assert saved["optimizer"]["param_groups"][0]["lr"] == 0.1
    handle.remove()
    clean = checkpoint(perturbed)
    runs = []
    for each in (saved, clean):
        plain = make(make_parameters())
        restore(plain, each)
        runs.append(train(plain, 3, start=3))
    assert same_bits(*runs)


def test_what_flatwise_saves_is_plain_numbers_only():
    optimizer = adam(make_parameters())
    attach(optimizer, LEAP, seed=2**64 - 1)
    train(optimizer, 1)
    own = {key: value for key, value in optimizer.param_groups[0].items() if key.startswith("flatwise")}
    names = ("step", "seed", "stream", "fingerprint", "support", "named")
    assert own.keys() == {f"flatwise_{name}" for name in names}
    assert all(type(value) is int for value in own.values())
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())
    twin = adam(make_parameters())
    restore(twin, checkpoint(optimizer))
    assert attach(twin, LEAP).seed == 2**64 - 1


def saved_leap(seed=0):
    optimizer = sgd(make_parameters())
    attach(optimizer, LEAP, seed=seed)
    train(optimizer, 2)
    return checkpoint(optimizer)


def test_another_perturbation_than_the_saved_one_warns():
    optimizer = sgd(make_parameters())
    handle = attach(optimizer, DROPOUT)
    with pytest.warns(UserWarning, match="saved under another perturbation"):
        restore(optimizer, saved_leap())
    assert handle.step == 2
    train(optimizer, 1)  # said once, not at every step
    optimizer = sgd(make_parameters())
    restore(optimizer, saved_leap())
    with pytest.warns(UserWarning, match="saved under another perturbation"):
        attach(optimizer, [LEAP, LEAP])
    train(optimizer, 1)


def test_another_seed_than_the_saved_one_warns_and_the_saved_one_goes_on():
    optimizer = sgd(make_parameters())
    restore(optimizer, saved_leap(seed=5))
    with pytest.warns(UserWarning, match=r"noise of seed 5 .*seed=6 is not used"):
        handle = attach(optimizer, LEAP, seed=6)
    assert handle.seed == 5


def test_another_seed_than_the_one_asked_for_warns_when_loaded_later_too():
    optimizer = sgd(make_parameters())
    handle = attach(optimizer, LEAP, seed=6)
    with pytest.warns(UserWarning, match=r"noise of seed 5 .*seed=6 is not used"):
        restore(optimizer, saved_leap(seed=5))
    assert (handle.seed, handle.step) == (5, 2)
    train(optimizer, 1)  # said once


def test_the_same_seed_and_perturbation_say_nothing():
    optimizer = sgd(make_parameters())
    attach(optimizer, LEAP, seed=5)
    restore(optimizer, saved_leap(seed=5))
    optimizer = sgd(make_parameters())
    restore(optimizer, saved_leap(seed=5))
    assert attach(optimizer, LEAP, seed=5).step == 2
    optimizer = sgd(make_parameters())
    handle = attach(optimizer, LEAP)  # no seed asked for: the saved one is taken silently
    restore(optimizer, saved_leap(seed=5))
    assert handle.seed == 5


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0), 0.1], ids=str)
def test_an_empty_step_that_only_allocates_state_does_not_count(lr):
    """Distributed checkpoints prime an optimizer so, with every rate 0; a real step at rate 0, in a warmup, counts."""
    optimizer = sgd(make_parameters(), lr=lr)
    handle = attach(optimizer, [LEAP, RALR])
    set_gradients(optimizer, 0)
    optimizer.step(closure=None)
    assert handle.step == (0 if lr == 0 else 1)
    optimizer.step()
    assert handle.step == (1 if lr == 0 else 2)


def test_where_the_noise_begins_can_be_said():
    late, from_start = sgd(make_parameters()), sgd(make_parameters())
    reference = attach(from_start, LEAP)
    handle = attach(late, LEAP, step=7)
    assert handle.step == 7
    (p, *_), (q, *_) = parameters_of(late), parameters_of(from_start)
    assert same_bits(handle.factor(parameter=p), reference.factor(7, q))
    handle.step = 3
    assert same_bits(handle.factor(parameter=p), reference.factor(3, q))
    train(late, 1)
    assert handle.step == late.param_groups[0]["flatwise_step"] == 4
    restored = sgd(make_parameters())
    restore(restored, saved_leap())
    assert attach(restored, LEAP, step=40).step == 40  # what is said goes before what was saved


def test_effective_lr_at_other_rates():
    optimizer = three_groups()
    handle = attach(optimizer, GROUP_NOISE)
    doubled = handle.effective_lr(2, rates=[0.2, 0.4, 0.6])
    assert doubled == pytest.approx([2 * rate for rate in handle.effective_lr(2)])
    with pytest.raises(ValueError, match="one number per parameter group, 3; got 2"):
        handle.effective_lr(2, rates=[0.1, 0.2])


# What is refused


def test_perturbing_twice_is_refused_and_changes_nothing():
    optimizer = sgd(make_parameters())
    handle = attach(optimizer, LEAP)
    with pytest.raises(ValueError, match=r"perturbed already: give all perturbations in one list, or remove\(\)"):
        attach(optimizer, RALR)
    train(optimizer, 2)
    assert handle.step == 2
    handle.remove()
    attach(optimizer, RALR)


BAD = [
    ({"optimizer": None}, TypeError, r"perturb needs a torch.optim.Optimizer, got NoneType"),
    ({"perturbation": 0.05}, TypeError, r"perturb needs perturbations, such as flatwise.leap\(0.05\); got 0.05"),
    ({"perturbation": flatwise.Normal(1, 0.1)}, TypeError, r"perturb needs perturbations.*got Normal\(loc=1"),
    ({"perturbation": flatwise.leap}, TypeError, r"perturb needs perturbations.*got <function leap"),
    ({"perturbation": None}, TypeError, r"perturb needs perturbations.*got None"),
    ({"perturbation": [LEAP, "ralr"]}, TypeError, r"perturb needs perturbations.*got 'ralr'"),
    ({"perturbation": []}, ValueError, r"composes 1 to 256 perturbations.*got 0"),
    ({"perturbation": [LEAP] * 257}, ValueError, r"composes 1 to 256 perturbations.*got 257"),
    ({"perturbation": RALR}, ValueError, r"depends on the epoch: give steps_per_epoch="),
    ({"perturbation": flatwise.random_lr(), "steps_per_epoch": 2}, ValueError, r"has a window: give epochs="),
    ({"steps_per_epoch": 0}, ValueError, r"steps_per_epoch must be a positive integer, got 0"),
    ({"steps_per_epoch": 2.0}, ValueError, r"steps_per_epoch must be a positive integer, got 2.0"),
    ({"epochs": -1}, ValueError, r"epochs must be a positive integer, got -1"),
    ({"epochs": True}, ValueError, r"epochs must be a positive integer, got True"),
    ({"seed": -1}, ValueError, r"seed must be an integer in \[0, 2\*\*64\), got -1"),
    ({"seed": 2**64}, ValueError, r"seed must be an integer in \[0, 2\*\*64\), got 18446744073709551616"),
    ({"seed": 0.5}, ValueError, r"seed must be an integer .* got 0.5"),
    ({"seed": "1"}, ValueError, r"seed must be an integer .* got '1'"),
    ({"step": -1}, ValueError, r"step must be an integer in \[0, 2\*\*40\), got -1"),
    ({"step": 2**40}, ValueError, r"step must be an integer .* got 1099511627776"),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_arguments_are_named_and_shown(arguments, kind, message):
    optimizer = sgd(make_parameters())
    clean = sorted(vars(optimizer)), sorted(optimizer.param_groups[0])
    with pytest.raises(kind, match=message):
        flatwise.perturb(**({"optimizer": optimizer, "perturbation": LEAP} | arguments))
    assert (sorted(vars(optimizer)), sorted(optimizer.param_groups[0])) == clean


def test_a_wrapper_without_hooks_is_refused():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.inner, self.param_groups = inner, inner.param_groups

    with pytest.raises(TypeError, match=r"Wrapper wraps another optimizer .*: perturb the inner one"):
        flatwise.perturb(Wrapper(sgd(make_parameters())), RATE_NOISE)
    with pytest.raises(TypeError, match=r"needs a torch.optim.Optimizer, got ScheduleFreeWrapper"):
        flatwise.perturb(schedulefree.ScheduleFreeWrapper(sgd(make_parameters()), momentum=0.9), RATE_NOISE)


def test_asking_the_handle_for_nonsense():
    handle = attach(sgd(make_parameters()), LEAP)
    with pytest.raises(ValueError, match=r"give parameter="):
        handle.factor(0)
    with pytest.raises(ValueError, match="not one of the optimizer's parameters"):
        handle.factor(0, torch.zeros(3))
    for step in (-1, 1.5, 2**40):
        for ask in (handle.factor, handle.effective_lr):
            with pytest.raises(ValueError, match=r"step must be an integer in \[0, 2\*\*40\), got"):
                ask(step)
        with pytest.raises(ValueError, match=r"step must be an integer in \[0, 2\*\*40\), got"):
            handle.step = step
    assert handle.step == 0
    assert "leap" not in repr(handle)
    assert "Normal(loc=1.0, scale=0.3" in repr(handle)
    assert "seed=0, step=0" in repr(handle)


# Parts of tensors


def random_rows(draw, size):
    """A contiguous range of positions, or scattered ones, or none."""
    kind = draw.random()
    if kind < 0.1:
        return range(0)
    if kind < 0.25:
        return torch.tensor(sorted(draw.sample(range(size), draw.randint(1, size))))
    first = draw.randrange(size)
    return range(first, draw.randint(first + 1, size))


def test_blocks_are_what_slicing_says():
    draw = random.Random(0)
    runs = 0
    for _ in range(1500):
        shape = tuple(draw.randint(1, 4) for _ in range(draw.randint(0, 4)))
        rows = tuple(random_rows(draw, size) for size in shape)
        block = Block(shape, rows)
        whole = torch.arange(math.prod(shape)).reshape(shape)
        part = whole
        for dimension, row in enumerate(rows):
            part = part.index_select(dimension, torch.as_tensor(list(row), dtype=torch.int64))
        assert block.local_shape == tuple(part.shape)
        assert torch.equal(block.index(), part)
        for dimension, row in enumerate(rows):
            positions = torch.as_tensor(list(row), dtype=torch.int64)
            assert torch.equal(block.channel(dimension).reshape(-1), positions)
            assert block.channel(dimension).dim() == len(shape)
        flat = part.reshape(-1)
        if block.start is None:
            continue
        runs += 1
        assert torch.equal(flat, torch.arange(block.start, block.start + flat.numel())) or flat.numel() == 0
    assert runs > 300


def test_every_run_of_ranges_is_recognised():
    """Whole tensors, cuts along the first dimension, and parts of one row: the fast path must know them."""
    for rows in [(range(4), range(3)), (range(1, 3), range(3)), (range(2, 3), range(1, 3)), (range(3, 4), range(2, 3))]:
        assert Block((4, 3), rows).start == rows[0].start * 3 + rows[1].start
    assert Block((4, 3), (range(1, 3), range(2))).start is None
    assert Block((), ()).start == 0


def test_the_comparison_tells_minus_zero_from_zero():
    """The helper `bits` tells −0 from 0: otherwise 'keeps its bits' would mean less than it says."""
    assert not torch.equal(bits(torch.tensor(-0.0)), bits(torch.tensor(0.0)))


@pytest.mark.parametrize("first", ["perturbed", "loaded"])
def test_a_state_under_the_library_s_former_name_is_loaded_with_a_warning(first):
    def plain():
        return torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1)

    def perturbed(optimizer):
        return flatwise.perturb(optimizer, flatwise.leap(0.05), seed=7)

    optimizer = plain()
    perturbed(optimizer).step = 5
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        for key in [key for key in group if key.startswith("flatwise_")]:
            group[key.replace("flatwise_", "flatter_")] = group.pop(key)
    again = plain()
    if first == "perturbed":
        handle = perturbed(again)
        with pytest.warns(UserWarning, match="saved by flatter"):
            again.load_state_dict(saved)
    else:
        again.load_state_dict(saved)
        with pytest.warns(UserWarning, match="saved by flatter"):
            handle = perturbed(again)
    assert handle.step == 0

"""`remove()` leaves no trace, in whatever order it and the schedulers came."""

import copy
import gc
import pickle
import weakref

import pytest
import torch

from contract.registry import METHODS, OPTIMIZERS
from contract.training import attach, checkpoint, make_optimizer, restore, same_bits, train

STEPS = 3


def with_scheduler(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 100)


def shape_of(optimizer):
    """Everything one could find on an optimizer, but the values of its tensors."""
    return {
        "attributes": sorted(vars(optimizer)),
        "step": describe(optimizer.step),
        "hooks": [len(value) for name, value in sorted(vars(optimizer).items()) if "hooks" in name],
        "groups": [sorted(group) for group in optimizer.param_groups],
        "rates": [group["lr"] for group in optimizer.param_groups],
        "state": sorted(map(sorted, optimizer.state.values())),
    }


def describe(step):
    """The chain of wrappers around a step function, by where each was defined."""
    chain = []
    while step is not None:
        function = getattr(step, "__func__", step)
        chain.append((function.__module__, function.__code__.co_name))
        step = getattr(function, "__wrapped__", None)
    return chain


def nothing(optimizer):
    return None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_is_left(name, method):
    plain, perturbed = make_optimizer(name), make_optimizer(name)
    handle = attach(perturbed, method)
    assert shape_of(perturbed) != shape_of(plain)
    handle.remove()
    assert shape_of(perturbed) == shape_of(plain)
    # It trains on as if it had never been perturbed, and after noisy steps too.
    assert same_bits(train(perturbed, STEPS), train(plain, STEPS))
    handle = attach(perturbed, method)
    train(perturbed, STEPS, start=STEPS)
    handle.remove()
    twin = make_optimizer(name)
    restore(twin, checkpoint(perturbed))
    assert same_bits(train(perturbed, STEPS, start=6), train(twin, STEPS, start=6))
    assert same_bits(perturbed.state_dict(), twin.state_dict())


@pytest.mark.parametrize("before", [nothing, with_scheduler], ids=["", "scheduler before"])
def test_schedulers_that_were_there_stay(before):
    plain, perturbed = make_optimizer("SGD momentum"), make_optimizer("SGD momentum")
    schedulers = before(plain), before(perturbed)
    attach(perturbed, "leap and ralr").remove()
    assert shape_of(perturbed) == shape_of(plain)
    del schedulers


def test_a_scheduler_that_came_later_stays_and_finds_no_noise():
    plain, perturbed = make_optimizer("SGD momentum"), make_optimizer("SGD momentum")
    handle = attach(perturbed, "leap and ralr")
    schedulers = with_scheduler(plain), with_scheduler(perturbed)
    handle.remove()
    expected, found = shape_of(plain), shape_of(perturbed)
    del expected["step"], found["step"]  # the scheduler holds our guard, which does nothing any more
    assert found == expected
    assert same_bits(train(perturbed, STEPS), train(plain, STEPS))
    again = attach(perturbed, "leap")
    train(perturbed, 1)
    assert again.step == 1
    del schedulers


def test_removed_optimizers_are_copied_as_plain_ones():
    plain, perturbed = make_optimizer("AdamW"), make_optimizer("AdamW")
    train(plain, STEPS)
    handle = attach(perturbed, "leap")
    handle.remove()
    train(perturbed, STEPS)
    dumped = pickle.dumps(perturbed)
    assert b"flatwise" not in dumped
    for twin in (copy.deepcopy(perturbed), pickle.loads(dumped)):
        assert shape_of(twin) == shape_of(copy.deepcopy(plain))
        assert same_bits(twin.state_dict(), plain.state_dict())


def test_handle_and_buffers_are_let_go():
    shape = (17, 19)
    parameter = torch.nn.Parameter(torch.zeros(shape))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    handle = attach(optimizer, "leap")
    parameter.grad = torch.ones(shape)
    optimizer.step()
    parameter.grad = None
    assert count_tensors(shape) == 1  # the copy of the parameter
    handle.remove()
    assert count_tensors(shape) == 0
    gone = weakref.ref(handle)
    del handle
    gc.collect()
    assert gone() is None


def count_tensors(shape):
    return sum(type(thing) is torch.Tensor and thing.shape == shape for thing in gc.get_objects())


def test_removing_twice_and_leaving_a_with_block():
    optimizer = make_optimizer("SGD")
    with attach(optimizer, "ralr") as handle:
        train(optimizer, 1)
        handle.remove()
    handle.remove()
    assert shape_of(optimizer) == shape_of(make_optimizer("SGD"))
    attach(optimizer, "leap")  # and it can be perturbed again


def test_a_step_after_removal_is_not_counted():
    optimizer = make_optimizer("SGD")
    handle = attach(optimizer, "leap")
    train(optimizer, 2)
    handle.remove()
    train(optimizer, 2)
    assert handle.step == 2

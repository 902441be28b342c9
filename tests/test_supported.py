"""Which optimizers can be perturbed: the refused, the known, and the measured."""

import copy

import pytest
import schedulefree
import torch

import flatter
from contract.registry import METHODS, OPTIMIZERS, REFUSED
from contract.training import attach, make_optimizer, make_parameters, memory, same_bits, set_gradients, train, values
from flatter.attach.supported import nonlinearity

FINE = ("element", "channel", "tensor")
COARSE = ("all", "group")


def noise(scope):
    return flatter.Perturbation(flatter.Uniform(0.5, 1.5), scope)


def refused(name, base=None):
    return (base or getattr(torch.optim, name))(make_parameters(), lr=0.01)


@pytest.mark.parametrize("scope", [*FINE, *COARSE])
@pytest.mark.parametrize("name", REFUSED)
def test_the_refused_are_refused_with_a_reason(name, scope):
    with pytest.raises(ValueError, match=rf"{name} cannot be perturbed: .* rate.*Use an optimizer whose update is"):
        flatter.perturb(refused(name), noise(scope))


@pytest.mark.parametrize("name", REFUSED)
def test_their_subclasses_too(name):
    mine = type("Mine", (getattr(torch.optim, name),), {})
    with pytest.raises(ValueError, match="Mine cannot be perturbed"):
        flatter.perturb(refused(name, mine), flatter.ralr(), steps_per_epoch=2)


def test_a_refused_optimizer_is_left_as_it_was():
    optimizer = refused("Rprop")
    with pytest.raises(ValueError, match="Rprop"):
        flatter.perturb(optimizer, flatter.leap(0.1))
    assert sorted(vars(optimizer)) == sorted(vars(refused("Rprop")))
    assert not any(key.startswith("flatter") for key in optimizer.param_groups[0])


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("scope", FINE)
def test_differentiable_is_refused(name, scope):
    optimizer = getattr(torch.optim, name)(make_parameters(), lr=0.1, differentiable=True)
    with pytest.raises(ValueError, match="differentiable=True cannot be perturbed per element"):
        flatter.perturb(optimizer, noise(scope))


# The probe against what is known


def test_torchs_own_are_known_and_not_measured(monkeypatch):
    monkeypatch.setattr("flatter.attach.supported.nonlinearity", lambda optimizer: "measured")
    for name in set(OPTIMIZERS) - {"Lion"}:
        attach(make_optimizer(name), "leap")
    with pytest.raises(ValueError, match="measured"):
        attach(make_optimizer("Lion"), "leap")


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "SparseAdam"])  # see test_sparse_rows
def test_the_probe_finds_the_linear_linear(name):
    optimizer = make_optimizer(name)
    assert nonlinearity(optimizer) is None
    train(optimizer, 3)
    assert nonlinearity(optimizer) is None


@pytest.mark.parametrize("name", ["ASGD", "Adafactor", "Rprop"])
def test_the_probe_finds_the_refused_nonlinear(name):
    optimizer = refused(name)
    optimizer.param_groups[0]["lr"] = 1.0  # Adafactor's cap is 1/√step: below it, it is linear
    assert nonlinearity(optimizer) is not None


def test_sparse_rows():
    """SparseAdam takes no dense gradients, so no probe: twice its rate is twice its step, and nothing it remembers."""
    once, twice = make_optimizer("SparseAdam"), make_optimizer("SparseAdam")
    start = train(once, 3)[-1]
    train(twice, 3)
    twice.param_groups[0]["lr"] *= 2
    for optimizer in (once, twice):
        set_gradients(optimizer, 3)
        optimizer.step()
    for old, one, two in zip(start, values(once), values(twice), strict=True):
        torch.testing.assert_close(two - old, 2 * (one - old), rtol=1e-4, atol=1e-6)
    assert same_bits(memory(once)[0], memory(twice)[0])


def test_the_probe_leaves_the_optimizer_alone():
    optimizer = make_optimizer("Lion")
    train(optimizer, 2)
    before = copy.deepcopy(optimizer.state_dict()), values(optimizer), sorted(vars(optimizer))
    assert nonlinearity(optimizer) is None
    assert same_bits(before, (optimizer.state_dict(), values(optimizer), sorted(vars(optimizer))))


# Other people's optimizers (warnings are errors in these tests, so acceptance is silent)


@pytest.mark.parametrize("method", METHODS)
def test_lion_is_accepted_without_a_word(method):
    optimizer = make_optimizer("Lion")
    handle = attach(optimizer, method)
    train(optimizer, 2)
    assert handle.step == 2


@pytest.mark.parametrize("make", [schedulefree.SGDScheduleFree, schedulefree.AdamWScheduleFree])
def test_schedule_free_is_refused_per_element_and_allowed_as_a_whole(make):
    for scope in FINE:
        with pytest.raises(ValueError, match=rf"{make.__name__} cannot be perturbed per element.*measured on a toy"):
            flatter.perturb(make(make_parameters(), lr=0.1), noise(scope))
    plain, perturbed = (make(make_parameters(), lr=0.1) for _ in range(2))
    handle = flatter.perturb(perturbed, noise("all"))
    for optimizer in (plain, perturbed):
        optimizer.train()
    assert not same_bits(train(perturbed, 2), train(plain, 2))
    assert handle.step == 2
    assert perturbed.param_groups[0]["lr"] == 0.1


class Simple(torch.optim.Optimizer):
    """A third party's optimizer: the parameter moves by `update(lr, gradient, memory)`."""

    def __init__(self, parameters, lr=0.1, **options):
        super().__init__(parameters, {"lr": lr, **options})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.update(group["lr"], p.grad, self.state[p]))

    def update(self, lr, gradient, memory):
        return lr * gradient


class Velocity(Simple):
    """The rate inside the momentum buffer, as in Sutskever's momentum: later steps would feel the noise again."""

    def update(self, lr, gradient, memory):
        memory["v"] = 0.9 * memory.get("v", 0) + lr * gradient
        return memory["v"]


class Remembering(Simple):
    """Moves by what the rate says, but keeps count of it."""

    def update(self, lr, gradient, memory):
        memory["sum"] = memory.get("sum", 0.0) + float(lr)
        return lr * gradient


class Capped(Simple):
    def update(self, lr, gradient, memory):
        return (lr * gradient).clamp(-1e-3, 1e-3)


class Squared(Simple):
    def update(self, lr, gradient, memory):
        return lr**2 * gradient


class Constant(Simple):
    """Part of the update that no rate scales, such as a weight decay of its own."""

    def update(self, lr, gradient, memory):
        return lr * gradient + 1e-3


class Sulking(Simple):
    def update(self, lr, gradient, memory):
        if gradient.dtype != torch.float32:
            raise RuntimeError("only float32 here")
        return lr * gradient


class NeedsClosure(Simple):
    def step(self, closure):
        closure()
        super().step()


class MyAdamW(torch.optim.AdamW):
    pass


@pytest.mark.parametrize("make", [Simple, NeedsClosure, MyAdamW])
def test_linear_strangers_are_accepted_silently(make):
    flatter.perturb(make(make_parameters(), lr=0.1), flatter.leap(0.1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Velocity, "twice the learning rate is not twice the update"),
        (Remembering, "its state depends on the learning rate"),
        (Capped, "twice the learning rate is not twice the update"),
        (Squared, "twice the learning rate is not twice the update"),
        (Constant, "twice the learning rate is not twice the update"),
    ],
)
def test_nonlinear_strangers_are_refused_per_element_only(make, reason):
    for scope in FINE:
        with pytest.raises(ValueError, match=f"{make.__name__} cannot be perturbed .*{reason}.*scope 'all' or 'group'"):
            flatter.perturb(make(make_parameters()), noise(scope))
    for scope in COARSE:
        flatter.perturb(make(make_parameters()), noise(scope))


def test_a_stranger_that_cannot_be_probed_is_let_in_with_a_warning():
    optimizer = Sulking(make_parameters())
    with pytest.warns(UserWarning, match=r"could not check that the update of Sulking is linear.*only float32 here"):
        handle = flatter.perturb(optimizer, flatter.leap(0.1))
    train(optimizer, 1)
    assert handle.step == 1


def test_what_has_no_rate_to_perturb():
    class Rateless(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

    with pytest.raises(ValueError, match="a parameter group of Rateless has no 'lr'"):
        flatter.perturb(Rateless(make_parameters()), noise("all"))


class Wrapper(torch.optim.Optimizer):
    """Steps an inner optimizer and looks like one: its own groups are never read."""

    def __init__(self, inner):
        super().__init__([torch.zeros(1, requires_grad=True)], {"lr": 0.1})
        self.base = inner

    def step(self, closure=None):
        return self.base.step(closure)


@pytest.mark.parametrize("method", [flatter.leap(), flatter.Perturbation(flatter.Constant(2.0), "all", "once")])
def test_a_wrapper_of_another_optimizer_is_refused(method):
    wrapper = Wrapper(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    with pytest.raises(ValueError, match="wraps another optimizer as its attribute 'base'"):
        flatter.perturb(wrapper, method)

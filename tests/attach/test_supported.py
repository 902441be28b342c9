"""Which optimizers can be perturbed: the refused, the known, and the measured."""

import copy
import os
import random

import numpy as np
import pytest
import schedulefree
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import flatwise
from contract.registry import METHODS, OPTIMIZERS, REFUSED, REFUSED_PER_ELEMENT
from contract.training import (
    attach,
    make_optimizer,
    make_parameters,
    memory,
    random_states_unmoved,
    same_bits,
    set_gradients,
    train,
    values,
)
from flatwise._attach.probe import Measurement, measure
from flatwise._attach.support import KNOWN, MEASURED, UNMEASURED, check_supported

FINE = ("element", "channel", "tensor")
COARSE = ("all", "group")


def noise(scope):
    return flatwise.Perturbation(flatwise.Uniform(0.5, 1.5), scope)


def refused(name, base=None):
    return (base or getattr(torch.optim, name))(make_parameters(), lr=0.01)


@pytest.mark.parametrize("scope", [*FINE, *COARSE])
@pytest.mark.parametrize("name", REFUSED)
def test_the_refused_are_refused_with_a_reason(name, scope):
    with pytest.raises(ValueError, match=rf"{name} cannot be perturbed: .* rate.*Use an optimizer whose update is"):
        flatwise.perturb(refused(name), noise(scope))


@pytest.mark.parametrize("name", REFUSED)
def test_their_subclasses_too(name):
    mine = type("Mine", (getattr(torch.optim, name),), {})
    with pytest.raises(ValueError, match="Mine cannot be perturbed"):
        flatwise.perturb(refused(name, mine), flatwise.ralr(), steps_per_epoch=2)


def test_a_refused_optimizer_is_left_as_it_was():
    optimizer = refused("Rprop")
    with pytest.raises(ValueError, match="Rprop"):
        flatwise.perturb(optimizer, flatwise.leap(0.1))
    assert sorted(vars(optimizer)) == sorted(vars(refused("Rprop")))
    assert not any(key.startswith("flatwise") for key in optimizer.param_groups[0])


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("scope", FINE)
def test_differentiable_is_refused(name, scope):
    optimizer = getattr(torch.optim, name)(make_parameters(), lr=0.1, differentiable=True)
    with pytest.raises(ValueError, match="differentiable=True cannot be perturbed per element"):
        flatwise.perturb(optimizer, noise(scope))


@pytest.mark.parametrize("name", REFUSED_PER_ELEMENT)
def test_a_capped_rate_is_refused_per_element_and_allowed_as_a_whole(name):
    for scope in FINE:
        with pytest.raises(ValueError, match=rf"{name} cannot be perturbed per element.*caps the rate.*scope 'all'"):
            flatwise.perturb(refused(name), noise(scope))
    for scope in COARSE:
        plain, perturbed = refused(name), refused(name)
        handle = flatwise.perturb(perturbed, noise(scope))
        for step in range(4):
            plain.param_groups[0]["lr"] = 0.01 * float(handle.factor(step, perturbed.param_groups[0]["params"][0]))
            train(plain, 1, start=step)
        train(perturbed, 4)
        assert same_bits(values(perturbed), values(plain))
        assert perturbed.param_groups[0]["lr"] == 0.01


# The probe against what is known


def test_torchs_own_are_known_and_not_measured(monkeypatch):
    monkeypatch.setattr("flatwise._attach.support.measure", lambda optimizer: Measurement(nonlinear="measured"))
    for name in set(OPTIMIZERS) - {"Lion"}:
        attach(make_optimizer(name), "leap")
        assert check_supported(make_optimizer(name), per_element=True) == KNOWN
    with pytest.raises(ValueError, match="measured"):
        attach(make_optimizer("Lion"), "leap")


@pytest.mark.parametrize("trained", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_probe_finds_the_linear_linear(name, trained):
    optimizer = make_optimizer(name)
    train(optimizer, trained)
    assert measure(optimizer) == Measurement()


@pytest.mark.parametrize("name", ["ASGD", "Adafactor", "Rprop"])
def test_the_probe_finds_the_refused_nonlinear(name):
    found = measure(refused(name))
    assert found.nonlinear or found.inert


def test_sparse_rows():
    """Twice SparseAdam's rate is twice its step, and nothing that it remembers."""
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
    versions = [parameter._version for parameter in optimizer.param_groups[0]["params"]]
    before = copy.deepcopy(optimizer.state_dict()), values(optimizer), sorted(vars(optimizer))
    assert measure(optimizer) == Measurement()
    assert same_bits(before, (optimizer.state_dict(), values(optimizer), sorted(vars(optimizer))))
    assert versions == [parameter._version for parameter in optimizer.param_groups[0]["params"]]


def test_the_probe_calls_nobodys_hooks():
    optimizer, calls = make_optimizer("Lion"), []
    optimizer.register_step_post_hook(lambda *_: calls.append("own"))
    everywhere = register_optimizer_step_post_hook(lambda *_: calls.append("global"))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: calls.append("scheduler") or 1.0)
    calls.clear()
    try:
        assert measure(optimizer) == Measurement()
    finally:
        everywhere.remove()
    assert calls == []


@pytest.mark.parametrize("rate", [0.0, 1e-12, 1e-8, 1e-3, 1.0, torch.tensor(0.02), 1])
def test_the_verdict_does_not_depend_on_the_present_rate(rate):
    for make, verdict in ((Simple, True), (Capped, False), (LookAhead, False), (WarmUp, False), (Velocity, False)):
        optimizer = make(make_parameters(), lr=0.1)
        optimizer.param_groups[0]["lr"] = rate
        assert (measure(optimizer) == Measurement()) == verdict, make


def test_it_measures_under_any_default_and_any_mode():
    with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu"):
        for make, verdict in ((Zeros, True), (Capped, False)):
            parameters = [nn.Parameter(torch.zeros(4, 3)), nn.Parameter(torch.zeros(4, dtype=torch.float16))]
            assert (measure(make(parameters)) == Measurement()) == verdict


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
            flatwise.perturb(make(make_parameters(), lr=0.1), noise(scope))
    plain, perturbed = (make(make_parameters(), lr=0.1) for _ in range(2))
    handle = flatwise.perturb(perturbed, noise("all"))
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


class Zeros(Simple):
    """Makes its memory where torch's defaults say."""

    def update(self, lr, gradient, memory):
        memory.setdefault("total", torch.zeros(1)).add_(1)
        return lr * gradient / memory["total"].to(gradient.dtype)


class LookAhead(Simple):
    """Goes back half-way every tenth step: where to is remembered, and would not know of the noise."""

    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for p in group["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone())
                if group["count"] % 10 == 0:
                    slow.lerp_(p.detach(), 0.5)
                    p.data.copy_(slow)


class WarmUp(Simple):
    """Nothing unusual in the first 20 steps."""

    def update(self, lr, gradient, memory):
        memory["count"] = memory.get("count", 0) + 1
        return lr * gradient if memory["count"] < 20 else lr**2 * gradient


class FirstRate(Simple):
    """Sets its memory up with the rate of its first step."""

    def update(self, lr, gradient, memory):
        return lr * gradient * memory.setdefault("scale", 1 / float(lr))


class Sulking(Simple):
    def update(self, lr, gradient, memory):
        raise RuntimeError("not today")


class SinglePrecision(Simple):
    def update(self, lr, gradient, memory):
        if gradient.dtype != torch.float32:
            raise RuntimeError("only float32 here")
        return lr * gradient


class InSinglePrecision(Simple):
    """Whatever the parameters are, they are written from float32: rounding must not look like nonlinearity."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                velocity = self.state[p].setdefault("v", torch.zeros_like(p, dtype=torch.float32))
                velocity.mul_(0.9).add_(p.grad.float())
                p.copy_(p.float() - group["lr"] * velocity)


class NeedsClosure(Simple):
    def step(self, closure):
        closure()
        super().step()


class RefusesNone(Simple):
    def step(self, closure=None):
        if closure is None:
            raise RuntimeError("a closure, please")
        assert float(closure()) > 0
        super().step()


class SecondOrder(Simple):
    """Asks the gradient for its own gradient, as AdaHessian does; random directions like there."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                z = torch.randint_like(p, 2) * 2 - 1
                (curvature,) = torch.autograd.grad(p.grad, p, z, retain_graph=True)
                p.data.sub_(group["lr"] * (p.grad + 0.1 * curvature * z).detach())


class Langevin(Simple):
    """Draws from every global generator."""

    def update(self, lr, gradient, memory):
        return lr * (gradient + 0.1 * torch.randn_like(gradient) + random.random() + np.random.rand())


class OwnGenerator(Simple):
    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, lr)
        self.generator = torch.Generator().manual_seed(3)

    def update(self, lr, gradient, memory):
        return lr * (gradient + 0.1 * torch.rand(gradient.shape, generator=self.generator))


class Erratic(Simple):
    def update(self, lr, gradient, memory):
        return lr * gradient * (1 + os.urandom(1)[0])


class Options:
    def __init__(self, parameters):
        self.parameters = parameters
        self.beta = 0.9


class Furnished(Simple):
    """Attributes of every kind, all needed; through some of them the real parameters can be reached."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, lr)
        parameters = self.param_groups[0]["params"]
        self.nothing = None
        self.betas = (0.9, [0.99, {"eps": 1e-8}])
        self.options = Options(list(parameters))
        self.scales = {parameter: torch.tensor(0.5) for parameter in parameters}
        self.everything = list(parameters)
        self.method = self.scaled
        self.twice = lambda value: 2 * value
        self.large = torch.zeros(100_000)  # never used: not copied

    def scaled(self, p):
        assert any(p is own for own in self.options.parameters)
        return self.scales[p] * self.betas[1][0] * self.options.beta

    def step(self, closure=None):
        assert self.nothing is None
        for p in self.everything:
            p.data.mul_(1 - 0.1 * self.param_groups[0]["lr"])  # twice for one parameter would not be linear
            p.data.sub_(self.param_groups[0]["lr"] * self.twice(self.method(p)) * p.grad)


class Hooked(Simple):
    """Has its memory filled by hooks on the parameters: only a constructor makes such a copy."""

    def __init__(self, parameters, lr=0.1, strength=1.0):
        super().__init__(parameters, lr)
        self.strength = strength
        seen = {id(p): strength for group in self.param_groups for p in group["params"]}
        tensors = [p for group in self.param_groups for p in group["params"]]
        self.look_up = lambda p: seen[id(p)] + 0 * len(tensors)

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.sub_(group["lr"] * self.look_up(p) * p.grad)


class Counting(Simple):
    """Keeps a count in the group that does not fit a fresh state."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            for p in group["params"]:
                if group["count"] == 1:
                    self.state[p]["m"] = torch.zeros_like(p)
                self.state[p]["m"].lerp_(p.grad, 0.1)
                p.data.sub_(group["lr"] * self.state[p]["m"])


class MyAdamW(torch.optim.AdamW):
    pass


class MySparse(torch.optim.SparseAdam):
    pass


LINEAR = [
    Simple, NeedsClosure, RefusesNone, SecondOrder, Langevin, OwnGenerator, SinglePrecision, InSinglePrecision,
    Furnished, Hooked, Counting, MyAdamW,
]  # fmt: skip


@pytest.mark.parametrize("make", LINEAR)
def test_linear_strangers_are_accepted_silently(make):
    optimizer = make(make_parameters(((64, 48), (64,), (64, 48))), lr=0.1)
    with random_states_unmoved():
        flatwise.perturb(optimizer, flatwise.leap(0.1))


def test_parameters_of_every_kind():
    kinds = [torch.ones(3, dtype=torch.complex64), torch.ones(()), torch.ones(0, 4), torch.ones(2, 1, 3, 3, 3)]
    groups = [{"params": [nn.Parameter(kind)]} for kind in kinds] + [{"params": []}]
    flatwise.perturb(Simple(groups), noise("tensor"))
    flatwise.perturb(Simple([nn.Parameter(torch.ones(3, 2, device="meta"))]), noise("tensor"))
    flatwise.perturb(Simple(nn.Linear(3, 2).named_parameters()), noise("tensor"))
    flatwise.perturb(MySparse(make_parameters(((4, 3),))), noise("tensor"))


def test_a_trained_stranger_is_measured_as_a_new_one():
    optimizer = Counting(make_parameters())
    train(optimizer, 3)
    assert measure(optimizer) == Measurement()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Velocity, "scaling its update is not training at another learning rate"),
        (Remembering, "its state depends on the learning rate"),
        (Capped, "scaling its update is not training at another learning rate"),
        (Squared, "scaling its update is not training at another learning rate"),
        (Constant, "scaling its update is not training at another learning rate"),
        (LookAhead, "scaling its update is not training at another learning rate"),
        (WarmUp, "scaling its update is not training at another learning rate"),
        (FirstRate, "scaling its update is not training at another learning rate"),
    ],
)
def test_nonlinear_strangers_are_refused_per_element_only(make, reason):
    for scope in FINE:
        with pytest.raises(ValueError, match=f"{make.__name__} cannot be perturbed .*{reason}.*scope 'all' or 'group'"):
            flatwise.perturb(make(make_parameters()), noise(scope))
    for scope in COARSE:
        flatwise.perturb(make(make_parameters()), noise(scope))


@pytest.mark.parametrize(("make", "reason"), [(Sulking, "not today"), (Erratic, "it is not deterministic")])
def test_what_cannot_be_measured_is_refused_per_element_and_warned_of_as_a_whole(make, reason):
    for scope in FINE:
        with pytest.raises(ValueError, match=f"could not measure whether its update is linear.*{reason}.*scope 'all'"):
            flatwise.perturb(make(make_parameters()), noise(scope))
    with pytest.warns(UserWarning, match=f"could not check that the learning rate of {make.__name__} acts.*{reason}"):
        flatwise.perturb(make(make_parameters()), noise("all"))


def test_a_verdict_is_not_asked_for_again(monkeypatch):
    linear, nonlinear = Simple(make_parameters()), Capped(make_parameters())
    assert check_supported(linear, per_element=True) == check_supported(linear, per_element=False) == MEASURED
    assert check_supported(nonlinear, per_element=False) == UNMEASURED
    with monkeypatch.context() as patch:
        patch.delattr("flatwise._attach.support.measure")
        assert check_supported(linear, per_element=True, known=MEASURED) == MEASURED
        assert check_supported(nonlinear, per_element=False, known=UNMEASURED) == UNMEASURED
        assert check_supported(make_optimizer("Adam"), per_element=True, known=MEASURED) == KNOWN
        for unmeasured in (None, KNOWN):  # another optimizer's verdict: this one is a stranger
            with pytest.raises(NameError):
                check_supported(linear, per_element=True, known=unmeasured)
    with pytest.raises(ValueError, match="Capped cannot be perturbed"):  # the verdict was on a coarse perturbation
        check_supported(nonlinear, per_element=True, known=UNMEASURED)


def test_a_checkpoint_carries_the_verdict(monkeypatch):
    first, second = (Simple(make_parameters()) for _ in range(2))
    flatwise.perturb(first, noise("element"))
    monkeypatch.setattr("flatwise._attach.support.measure", lambda optimizer: Measurement(failed="not again"))
    flatwise.handle_of(copy.deepcopy(first)).remove()
    second.load_state_dict(first.state_dict())
    flatwise.perturb(second, noise("element"))
    with pytest.raises(ValueError, match="not again"):
        flatwise.perturb(Simple(make_parameters()), noise("element"))


# A rate that does not act


class OwnRate(Simple):
    """Has a rate of its own, as Adafactor's relative steps."""

    def update(self, lr, gradient, memory):
        memory["count"] = memory.get("count", 0) + 1
        return 0.01 * memory["count"] ** -0.5 * gradient


class FromDefaults(Simple):
    def update(self, lr, gradient, memory):
        return self.defaults["lr"] * gradient


class AtFirst(Simple):
    """The rate is only where it starts."""

    def update(self, lr, gradient, memory):
        return memory.setdefault("lr", lr) * gradient


class InBackward(Simple):
    """Updates in hooks while the backward pass runs; its step does nothing."""

    def step(self, closure=None):
        return None


class HalfDeaf(Simple):
    """Reads the rate in its first group only."""

    def step(self, closure=None):
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                p.data.sub_((0.1 if index else group["lr"]) * p.grad)


class Freezing(Simple):
    """Leaves its second group alone: there is no update that the rate could act on."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.data.sub_(self.param_groups[0]["lr"] * p.grad)


@pytest.mark.parametrize("scope", [*FINE, *COARSE])
@pytest.mark.parametrize("make", [OwnRate, FromDefaults, AtFirst, InBackward, HalfDeaf])
def test_a_rate_that_does_not_act_is_refused(make, scope):
    groups = [{"params": [parameter]} for parameter in make_parameters()]
    with pytest.raises(ValueError, match=f"{make.__name__} cannot be perturbed: .* noise in the rate would do nothing"):
        flatwise.perturb(make(groups), noise(scope))


@pytest.mark.parametrize("scope", ["all", "element"])
def test_steps_of_single_parameters_are_refused(scope):
    """As optimi's: ``backward`` calls ``step(param=p)`` for each of them."""
    with pytest.raises(
        ValueError, match="gradient_release=True cannot be perturbed: it steps every parameter by itsel"
    ):
        flatwise.perturb(Simple(make_parameters(), gradient_release=True), noise(scope))
    flatwise.perturb(Simple(make_parameters(), gradient_release=False), noise(scope))


def test_frozen_groups_are_no_matter():
    for scope in ("all", "tensor"):
        flatwise.perturb(Freezing([{"params": [parameter]} for parameter in make_parameters()]), noise(scope))


class Rateless(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})


def test_what_has_no_rate_to_perturb():
    for scope in ("all", "element"):
        with pytest.raises(ValueError, match=r"a parameter group.* has no 'lr'"):
            flatwise.perturb(Rateless(make_parameters()), noise(scope))


class Wrapper(torch.optim.Optimizer):
    """Steps inner optimizers and looks like one: its own groups are never read."""

    def __init__(self, inner):
        super().__init__([torch.zeros(1, requires_grad=True)], {"lr": 0.1})
        self.base = inner


def inner():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)


@pytest.mark.parametrize("method", [flatwise.leap(), flatwise.Perturbation(flatwise.Constant(2.0), "all", "once")])
@pytest.mark.parametrize(
    ("held", "place"),
    [
        (lambda: inner(), r"self\.base"),
        (lambda: [inner(), inner()], r"self\.base\[0\]"),
        (lambda: (None, inner()), r"self\.base\[1\]"),
        (lambda: {"head": {"adam": inner()}}, r"self\.base\['head'\]\['adam'\]"),
    ],
)
def test_a_wrapper_of_other_optimizers_is_refused(method, held, place):
    with pytest.raises(ValueError, match=rf"Wrapper wraps other optimizers \({place}\).*perturb those"):
        flatwise.perturb(Wrapper(held()), method)


# 16-bit parameters


class Compensated(Simple):
    """Kahan's summation: what rounding loses is kept for the next step."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                lost = self.state[p].setdefault("lost", torch.zeros_like(p))
                lost.sub_(group["lr"] * p.grad)
                old = p.clone()
                p.add_(lost)
                lost.add_(old - p)


class Stochastic(Simple):
    """Stochastic rounding to bfloat16."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                new = p.float() - group["lr"] * p.grad.float()
                if p.dtype == torch.bfloat16:
                    bits = new.view(torch.int32)
                    bits.add_(torch.randint_like(bits, 1 << 16)).bitwise_and_(-65536)
                p.copy_(new)


class Master(Simple):
    """Parameters in float32 on the side."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.dtype in (torch.float16, torch.bfloat16):
                    master = self.state[p].setdefault("master", p.float())
                    p.copy_(master.sub_(group["lr"] * p.grad.float()))
                else:
                    p.sub_(group["lr"] * p.grad)


@pytest.mark.parametrize("make", [Compensated, Stochastic, Master])
def test_what_makes_up_for_rounding_is_refused_per_element_with_16_bit_parameters(make):
    flatwise.perturb(make(make_parameters()), noise("element"))
    parameters = make_parameters(dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"makes up for what rounding to torch.bfloat16 loses.*would undo the noise"):
        flatwise.perturb(make(parameters), noise("element"))
    with random_states_unmoved():
        flatwise.perturb(make(parameters), noise("all"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Lion", "MyAdamW", "MySGD"])
def test_plain_rounding_is_no_reason(name, dtype):
    parameters = make_parameters(dtype=dtype)
    if name == "Lion":
        optimizer = type(make_optimizer("Lion"))(parameters, lr=0.01, weight_decay=0.1)
    elif name == "MyAdamW":
        optimizer = MyAdamW(parameters, lr=0.1, weight_decay=0.1)
    else:
        optimizer = type("MySGD", (torch.optim.SGD,), {})(parameters, lr=0.1, momentum=0.9, nesterov=True)
    flatwise.perturb(optimizer, noise("element"))


# Names


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "c", "d"], []])
def test_names_that_do_not_fit_the_parameters_are_refused_per_element(names):
    optimizer = torch.optim.SGD(zip("abc", make_parameters(), strict=True), lr=0.1)
    optimizer.param_groups[0]["param_names"] = names
    with pytest.raises(ValueError, match=f"group 0 has {len(names)} names for 3 parameters.*scope 'all'"):
        flatwise.perturb(optimizer, noise("element"))
    flatwise.perturb(optimizer, noise("all"))


@pytest.mark.parametrize("shape", [(0,), (0, 3)])
def test_an_optimizer_that_holds_only_empty_parameters_is_measured(shape):
    flatwise.perturb(Simple([torch.zeros(shape, requires_grad=True)]), flatwise.leap(0.1))


class Decays(Simple):
    """Its next rate is a share of the present one: noise would stay in it and compound."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["lr"] = group["lr"] * 0.99


class Follows(Simple):
    """Its next rate follows from the count of its steps."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
            group["lr"] = 0.1 / group["count"]


@pytest.mark.parametrize("scope", [*FINE, *COARSE])
def test_an_optimizer_whose_next_rate_depends_on_the_present_one_is_refused(scope):
    with pytest.raises(ValueError, match="Decays cannot be perturbed: it computes its next learning rate from the"):
        flatwise.perturb(Decays(make_parameters()), noise(scope))
    if scope in COARSE:
        flatwise.perturb(Follows(make_parameters()), noise(scope))


class LateLookahead(Simple):
    """Pulls the parameters half of the way back every ``k`` steps, to where they were then."""

    def __init__(self, parameters, k=40):
        super().__init__(parameters, k=k)

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                memory = self.state[p]
                memory["count"] = memory.get("count", 0) + 1
                slow = memory.setdefault("slow", [p.sum().item(), p.clone()])
                if memory["count"] % group["k"] == 0:
                    p.copy_(slow[1].lerp_(p, 0.5))


@pytest.mark.parametrize("k", [5, 31, 40, 100])
def test_look_ahead_is_seen_though_it_looks_back_late(k):
    with pytest.raises(ValueError, match="LateLookahead cannot be perturbed per element"):
        flatwise.perturb(LateLookahead(make_parameters(), k), flatwise.leap())


@pytest.mark.parametrize("option", [1e-3, 0.3, 0.3 * 0.125, 1e-3 * 0.125])
def test_an_option_that_is_a_rate_of_the_toys_by_chance_is_no_reason(option):
    optimizer = MyAdamW(make_parameters(), lr=0.1)
    optimizer.param_groups[0]["initial_lr"] = option  # as schedulers leave it
    flatwise.perturb(optimizer, flatwise.leap(0.1))

"""A perturbed optimizer against a plain twin, through random lives: what `h = η · f` says must hold at every step.

The twin is the same optimizer without a perturbation. Before each step it is given the perturbed one's parameters, so
after it the perturbed one must have moved f times as far, with f computed here from docs/noise.md; must remember the
same; must show the same rates to everyone at any time; and must have moved no random state.
"""

from __future__ import annotations

import copy
import gc
import io
import itertools
import math
import pickle
import warnings
import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import hypothesis
import numpy as np
import pytest
import torch
from fuzzing import examples, fuzz_settings
from hypothesis import given
from hypothesis import strategies as st
from lion_pytorch import Lion
from noise_oracle import factor, hash_of, words
from torch import nn, optim

import flatwise
from contract.training import global_random_states, parameters_of, same_bits
from flatwise import optim as fused

STEPS_PER_EPOCH, EPOCHS = 2, 4


class CallsSuper(optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


class Decays(optim.AdamW):
    """Does something of its own around the parent's step."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.sub_(group["lr"] * 0.1)
        return loss


class FusedCallsSuper(Decays, fused.AdamW):
    """The same over a fused parent."""


class WritesRate(optim.SGD):
    """Follows a schedule of its own, in the middle of its step."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["own_steps"] = group.get("own_steps", 0) + 1
            group["lr"] = 0.1 / math.sqrt(group["own_steps"])
        return loss


class Breaks(optim.SGD):
    """Fails at the end of a step when asked to, with everything moved."""

    failure = None

    def step(self, closure=None):
        super().step(closure)
        if self.failure is not None:
            raise self.failure


class MovesAll(optim.SGD):
    """Moves parameters that have no gradient as well."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        p.sub_(group["lr"] * 0.3)
        return loss


@dataclass(frozen=True)
class Kind:
    """An optimizer, its plain twin, and what it can train."""

    make: type[optim.Optimizer]
    options: dict
    twin: type[optim.Optimizer] | None = None
    matrices: bool = False
    memoryless: bool = False
    tensor_rate: bool = False


KINDS = {
    "SGD": Kind(optim.SGD, {"lr": 0.1}, memoryless=True),
    "SGD momentum": Kind(optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "SGD foreach": Kind(optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    "SGD tensor rate": Kind(optim.SGD, {"lr": 0.1, "foreach": False}, memoryless=True, tensor_rate=True),
    "Adam": Kind(optim.Adam, {"lr": 0.05, "amsgrad": True}),
    "AdamW": Kind(optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    "AdamW tensor rate": Kind(optim.AdamW, {"lr": 0.05, "weight_decay": 0.01, "foreach": False}, tensor_rate=True),
    "RMSprop": Kind(optim.RMSprop, {"lr": 0.01, "momentum": 0.9, "centered": True}),
    "Adagrad": Kind(optim.Adagrad, {"lr": 0.1}),
    "RAdam": Kind(optim.RAdam, {"lr": 0.05}),
    "NAdam": Kind(optim.NAdam, {"lr": 0.05}),
    "Adamax": Kind(optim.Adamax, {"lr": 0.05}),
    "Adadelta": Kind(optim.Adadelta, {"lr": 1.0}),
    "Muon": Kind(optim.Muon, {"lr": 0.02}, matrices=True),
    "Lion": Kind(Lion, {"lr": 0.01, "weight_decay": 0.1}),
    "fused SGD": Kind(fused.SGD, {"lr": 0.1, "momentum": 0.9}, optim.SGD),
    "fused Adam": Kind(fused.Adam, {"lr": 0.05}, optim.Adam),
    "fused AdamW": Kind(fused.AdamW, {"lr": 0.05, "amsgrad": True}, optim.AdamW),
    "fused RMSprop": Kind(fused.RMSprop, {"lr": 0.01, "momentum": 0.9}, optim.RMSprop),
    "subclass": Kind(CallsSuper, {"lr": 0.1, "momentum": 0.9}, optim.SGD),
    "fused subclass": Kind(FusedCallsSuper, {"lr": 0.05}, Decays),
    "writes its rate": Kind(WritesRate, {"lr": 0.1}, memoryless=True),
    "breaks": Kind(Breaks, {"lr": 0.1}, memoryless=True),
    "moves all": Kind(MovesAll, {"lr": 0.1}, memoryless=True),
}

numbers = st.floats(0.0, 3.0, width=16)
DISTRIBUTIONS = st.one_of(
    st.tuples(st.just("constant"), st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]))),
    st.tuples(st.just("bernoulli"), st.tuples(st.sampled_from([0.25, 0.5, 0.9, 1.0]))),
    st.tuples(st.just("uniform"), st.tuples(numbers, numbers).map(lambda pair: tuple(sorted(pair)))),
    st.tuples(st.just("loguniform"), st.just((0.1, 3.0))),
    st.tuples(st.just("normal"), st.sampled_from([(1.0, 0.1, -math.inf), (1.0, 0.5, 0.0), (2.0, 0.0, -math.inf)])),
    st.tuples(st.just("ralr"), st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.just(1.0), st.just(3.0))),
)


@dataclass(frozen=True)
class Method:
    """A perturbation as plain numbers, for flatwise and for the oracle."""

    name: str
    numbers: tuple[float, ...]
    scope: str
    cadence: str
    window: tuple[float, float]
    bounds: tuple[float | None, float | None]

    def perturbation(self) -> flatwise.Perturbation:
        distribution = {
            "constant": flatwise.Constant,
            "bernoulli": flatwise.Bernoulli,
            "uniform": flatwise.Uniform,
            "loguniform": flatwise.LogUniform,
            "normal": flatwise.Normal,
            "ralr": lambda p, low, high: flatwise.Mixture(p, flatwise.Uniform(low, high), flatwise.Constant(1.0)),
        }[self.name](*self.numbers)
        return flatwise.Perturbation(
            distribution, self.scope, self.cadence, flatwise.Window(*self.window), *self.bounds
        )

    @property
    def is_fine(self) -> bool:
        return self.scope not in ("all", "group")

    def acts(self, step: int) -> bool:
        """Whether a step lies in the window."""
        epoch = step // STEPS_PER_EPOCH
        start, stop = (round(edge * EPOCHS, 9) for edge in self.window)
        return epoch >= start and (self.window[1] == 1 or epoch < stop)

    def of(self, seed: int, step: int, position: int, group: int, unit: str, shape: tuple[int, ...]) -> np.ndarray:
        """The factor over a parameter at a step, float64, to broadcast over it."""
        if not self.acts(step):
            return np.ones(())
        unit = {"all": "all", "group": f"group:{group}"}.get(self.scope, unit)
        if self.scope == "element":
            elements = np.arange(math.prod(shape)).reshape(shape)
        elif self.scope == "channel":
            elements = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)) if shape else np.zeros((), int)
        else:
            elements = np.zeros((), int)
        tick = {"step": step, "epoch": step // STEPS_PER_EPOCH, "once": 0}[self.cadence]
        return factor(self.name, self.numbers, words(seed, tick, position, unit, elements))


@st.composite
def methods(draw):
    name, numbers = draw(DISTRIBUTIONS)
    scope = draw(st.sampled_from(["all", "group", "tensor", "channel", "element", "element"]))
    bounds = (None, None) if scope not in ("all", "group") else draw(st.sampled_from([(None, None), (0.01, 0.08)]))
    window = draw(st.sampled_from([(0.0, 1.0), (0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.25, 0.75)]))
    return Method(name, numbers, scope, draw(st.sampled_from(["step", "step", "epoch", "once"])), window, bounds)


SHAPES = ((), (3,), (2, 4), (4, 2, 3), (0,))
MATRICES = ((4, 3), (2, 5))


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def write_rate(group, rate):
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


@contextmanager
def default_device(device):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


EVENTS = {}


def event(**arguments):
    """Registers a method as something that may happen between two steps, with its arguments drawn from these."""

    def register(method):
        EVENTS[method.__name__] = arguments
        return method

    return register


def possible(condition):
    """When an event can happen; stands above ``event``."""

    def mark(method):
        method.condition = condition
        return method

    return mark


class Life:
    """The life of a perturbed optimizer and of its twin."""

    lives = itertools.count()

    def __init__(self, kind, data):
        self.kind = kind
        self.data = data
        optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)  # the hooks of a plain parent are there
        # An optimizer that writes its own rate cannot be measured at the tiny rates that show compensated rounding.
        dtypes = [torch.float32, torch.float64] + [torch.bfloat16] * (self.kind.make is not WritesRate)
        self.dtype = data.draw(st.sampled_from(dtypes), label="dtype")
        self.methods = data.draw(st.lists(methods(), min_size=1, max_size=2), label="methods")
        self.seed = data.draw(st.integers(0, 2**64 - 1), label="seed")
        self.stream = data.draw(st.sampled_from([0, 0, 1, 77]), label="stream")
        self.names = data.draw(st.sampled_from(["none", "distinct", "colliding"]), label="names")
        self.counter = 0
        self.made = 0
        groups = [self.new_group(data) for _ in range(data.draw(st.integers(1, 3), label="groups"))]
        self.optimizer = self.make(self.kind.make, groups)
        self.twin = self.make(self.kind.twin or self.kind.make, [self.copied(group) for group in groups])
        self.scheduler = None
        self.scheduled = False  # torch's schedulers wrap the optimizer's step, and the wrapper outlives them
        self.steps = 0
        self.seen = []
        self.hooked = False
        self.attach()

    def end(self):
        if next(Life.lives) % 16 == 0:
            dead = weakref.ref(self.optimizer)
            del self.optimizer, self.handle, self.scheduler, self.twin
            gc.collect()
            assert dead() is None, "a perturbed optimizer that nobody holds lives on"

    # How things are made

    def new_group(self, data):
        shapes = st.lists(st.sampled_from(MATRICES if self.kind.matrices else SHAPES), min_size=1, max_size=2)
        group = []
        for shape in data.draw(shapes, label="shapes"):
            self.made += 1
            value = np.random.RandomState(self.made).uniform(-1, 1, shape)
            parameter = nn.Parameter(torch.as_tensor(value).to(self.dtype))
            name = {"none": None, "distinct": f"layer{self.made}", "colliding": f"layer{len(group)}"}[self.names]
            group.append((name, parameter))
        return group

    def copied(self, group):
        return [(name, nn.Parameter(parameter.detach().clone())) for name, parameter in group]

    def entry(self, group):
        return {"params": [p if name is None else (name, p) for name, p in group]}

    def make(self, kind, groups):
        optimizer = kind([self.entry(group) for group in groups], **self.kind.options)
        if self.kind.tensor_rate:
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(float(group["lr"]))
        return optimizer

    def attach(self, **options):
        given = [method.perturbation() for method in self.methods]
        self.handle = flatwise.perturb(
            self.optimizer,
            given if len(given) > 1 else given[0],
            seed=self.seed,
            stream=self.stream,
            steps_per_epoch=STEPS_PER_EPOCH,
            epochs=EPOCHS,
            **options,
        )

    # The oracle

    def units(self):
        """The identity of every parameter, from its name or position."""
        texts, seen = [], Counter()
        for position, (group, index) in enumerate(
            (group, index) for group in self.optimizer.param_groups for index in range(len(group["params"]))
        ):
            if "param_names" not in group:
                texts.append(f"position:{position}")
                continue
            name = group["param_names"][index]
            texts.append(f"repeat:{seen[name]}:name:{name}" if seen[name] else f"name:{name}")
            seen[name] += 1
        return texts

    def factors(self, step, rates):
        """Of every parameter: the factor, and that of the rate after its bounds."""
        seed = self.seed if self.stream == 0 else hash_of(f"stream:{self.seed}:{self.stream}")
        units, found = iter(self.units()), []
        for index, group in enumerate(self.optimizer.param_groups):
            for parameter in group["params"]:
                unit, shape = next(units), tuple(parameter.shape)
                raw, fine, noisy = np.ones(()), np.ones(()), rates[index]
                for position, method in enumerate(self.methods):
                    f = method.of(seed, step, position, index, unit, shape)
                    raw = raw * f
                    if method.is_fine:
                        fine = fine * f
                    elif method.acts(step):
                        low, high = (o if b is None else b for b, o in zip(method.bounds, (-math.inf, math.inf)))
                        noisy = min(max(noisy * float(f), low), high)
                found.append((raw, fine * (noisy / rates[index])))
        return found

    # A step

    def set_gradients(self, missing):
        self.counter += 1
        pairs = zip(parameters_of(self.optimizer), parameters_of(self.twin), strict=True)
        for position, (mine, theirs) in enumerate(pairs):
            if position in missing:
                mine.grad = theirs.grad = None
                continue
            value = np.random.RandomState(1000 * self.counter + position).uniform(-1, 1, tuple(mine.shape))
            mine.grad = torch.as_tensor(value).to(self.dtype)
            theirs.grad = mine.grad.clone()

    def is_ready(self):
        """Whether plain torch can step in inference mode and the like: it would make its states there."""
        return self.kind.memoryless or all(len(self.optimizer.state.get(p, ())) for p in parameters_of(self.optimizer))

    def closures(self, kind):
        def closure_of(optimizer, seen):
            def closure():
                seen.append(rates_of(optimizer))
                if kind == "writes":
                    for group in optimizer.param_groups:
                        write_rate(group, 0.75 * float(group["lr"]))
                if kind == "moves":  # as a projection or an average does
                    with torch.no_grad():
                        for p in parameters_of(optimizer):
                            p.add_(0.125)
                    if optimizer is self.optimizer:
                        self.old = [p.detach().clone() for p in parameters_of(optimizer)]
                return 1.5

            return closure

        seen = [], []
        if kind == "none":
            return None, None, seen
        return closure_of(self.optimizer, seen[0]), closure_of(self.twin, seen[1]), seen

    @event(
        missing=st.sets(st.integers(0, 3), max_size=2),
        closure=st.sampled_from(["none", "none", "none", "reads", "writes", "moves"]),
        context=st.sampled_from(["plain", "plain", "plain", "inference", "meta", "float64", "grad"]),
        by_class=st.booleans(),
    )
    def step(self, missing, closure, context, by_class):
        if context in ("inference", "meta", "float64") and not self.is_ready():
            context = "plain"
        contexts = {
            "plain": nullcontext,
            "inference": torch.inference_mode,
            "meta": lambda: default_device("meta"),
            "float64": lambda: default_dtype(torch.float64),
            "grad": torch.enable_grad,
        }
        with torch.no_grad():
            for mine, theirs in zip(parameters_of(self.optimizer), parameters_of(self.twin), strict=True):
                theirs.copy_(mine)
        self.set_gradients(missing)
        self.old = [p.detach().clone() for p in parameters_of(self.optimizer)]
        mine, theirs, seen = self.closures(closure)
        random_states = global_random_states()
        self.seen.clear()
        before = rates_of(self.optimizer)
        with contexts[context]():
            asked = [self.handle.factor(parameter=p) for p in parameters_of(self.optimizer)]
            # Called by its class, a step cannot move our hooks next to itself.
            if (
                by_class
                and not self.hooked
                and self.kind.make not in (fused.SGD, fused.Adam, fused.AdamW, fused.RMSprop)
            ):
                self.kind.make.step(self.optimizer, mine) if mine else self.kind.make.step(self.optimizer)
            else:
                self.optimizer.step(mine) if mine else self.optimizer.step()
            during = [0.75 * rate for rate in before] if closure == "writes" else before
            self.twin.step(theirs) if theirs else self.twin.step()
        assert same_bits(random_states, global_random_states()), "a global random generator was moved"
        assert seen[0] == seen[1], "a closure saw a noisy rate"
        assert all(rates == before for rates in self.seen[:1]), "a hook before the step saw a noisy rate"
        # Torch calls hooks again around the parent's step of a subclass: that is in the middle of the step.
        assert all(rates == rates_of(self.twin) for rates in self.seen[-1:]), "a hook after the step saw a noisy rate"
        self.check_moved(self.old, asked, during)
        self.check_memory()
        self.steps += 1
        assert self.handle.step == self.steps

    def check_moved(self, old, asked, rates):
        new, plain = parameters_of(self.optimizer), parameters_of(self.twin)
        expected = self.factors(self.steps, rates)
        eps = torch.finfo(self.dtype).eps
        for was, now, twin, told, (raw, f) in zip(old, new, plain, asked, expected, strict=True):
            assert told.dtype == torch.float32
            said, drawn = (np.broadcast_to(of, tuple(was.shape)) for of in (told.double().numpy(), raw))
            np.testing.assert_allclose(said, drawn, rtol=2e-4, atol=1e-5)
            was64, now64, twin64 = (t.detach().double().numpy() for t in (was, now, twin))
            aim = was64 + f * (twin64 - was64)
            size = np.abs(was64) + np.abs(twin64) + np.abs(aim) + np.abs(f) * np.abs(twin64 - was64)
            error = np.abs(now64 - aim)
            bound = 12 * eps * size + 3e-4 * np.abs(twin64 - was64) + 1e-30
            decays = "weight_decay" in self.kind.options
            if self.kind.tensor_rate and decays and not all(method.is_fine for method in self.methods):
                # Both optimizers multiply the parameter by `1 - rate * weight_decay`, each with its own rate, and torch
                # rounds this to the rate's float32 even if the parameter is float64: an error of up to eps / 2 of the
                # parameter. It can be large beside the movement, since the update can cancel the decay. The other
                # eps / 2 is for the roundings before, a few times eps / 2 of `rate * weight_decay`, below 0.2 here.
                bound = bound + torch.finfo(torch.float32).eps * (1 + np.abs(f)) * np.abs(was64)
            assert (error <= bound).all(), (f, was, now, twin)
            ones = np.broadcast_to(f == 1, was64.shape)
            if self.kind.make in (self.kind.twin or self.kind.make, CallsSuper, FusedCallsSuper):
                assert (now64 == twin64)[ones].all(), "f = 1 is not the plain step"
            if all(method.is_fine for method in self.methods):
                assert (now64 == was64)[np.broadcast_to(f == 0, was64.shape)].all(), "f = 0 moved an element"

    def check_memory(self):
        assert rates_of(self.optimizer) == rates_of(self.twin), "a rate is not the scheduled one"
        for mine, theirs in zip(parameters_of(self.optimizer), parameters_of(self.twin), strict=True):
            own, other = self.optimizer.state.get(mine, {}), self.twin.state.get(theirs, {})
            if self.kind.twin is None or self.kind.make is CallsSuper:
                assert same_bits(dict(own), dict(other)), "the optimizer remembers something else"
                continue
            for key in own.keys() | other.keys():
                one, two = own.get(key), other.get(key)
                if isinstance(one, torch.Tensor):
                    # A kernel rounds in another order; in a sum of momenta that cancel, a few ulp of them stay.
                    bound = 64 * torch.finfo(self.dtype).eps
                    largest = max([1.0, *two.double().abs().reshape(-1).tolist()])
                    torch.testing.assert_close(one.double(), two.double(), rtol=bound, atol=bound * largest)

    # What happens between steps

    @event(
        error=st.sampled_from([ValueError, KeyboardInterrupt, SystemExit]), where=st.sampled_from(["closure", "hook"])
    )
    def a_step_fails_before_it_moves_anything(self, error, where):
        def fail(*_):
            assert rates_of(self.optimizer) == rates_of(self.twin)
            raise error("on purpose")

        self.set_gradients(set())
        before = copy.deepcopy((parameters_of(self.optimizer), list(self.optimizer.state.values())))
        hook = self.optimizer.register_step_pre_hook(fail) if where == "hook" else None
        with pytest.raises(error):
            self.optimizer.step(fail)
        if hook is not None:
            hook.remove()
        assert same_bits(before, (parameters_of(self.optimizer), list(self.optimizer.state.values())))
        assert rates_of(self.optimizer) == rates_of(self.twin)
        assert self.handle.step == self.steps

    @possible(lambda self: self.kind.make is Breaks)
    @event(error=st.sampled_from([ValueError, KeyboardInterrupt]))
    def a_step_fails_at_its_end(self, error):
        self.set_gradients(set())
        self.optimizer.failure = error("on purpose")
        with pytest.raises(error):
            self.optimizer.step()
        self.optimizer.failure = None
        assert rates_of(self.optimizer) == rates_of(self.twin)
        assert self.handle.step == self.steps

    @event(rate=st.sampled_from([0.02, 0.1, 0.5]))
    def somebody_writes_the_rate(self, rate):
        for optimizer in (self.optimizer, self.twin):
            for index, group in enumerate(optimizer.param_groups):
                write_rate(group, rate * (index + 1))

    @event()
    def a_scheduler_goes_on(self):
        if self.scheduler is None:
            pair = self.optimizer, self.twin
            self.scheduler = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in pair]
            self.scheduled = True
        for scheduler in self.scheduler:
            scheduler.step()

    @possible(lambda self: not self.hooked)
    @event()
    def somebody_registers_hooks(self):
        self.hooked = True

        def hook(optimizer, args, kwargs):
            self.seen.append(rates_of(optimizer))

        self.optimizer.register_step_pre_hook(hook)
        self.optimizer.register_step_post_hook(hook)

    @possible(lambda self: len(self.optimizer.param_groups) < 4)
    @event()
    def a_group_is_added(self):
        group = self.new_group(self.data)
        for optimizer, own in ((self.optimizer, group), (self.twin, self.copied(group))):
            entry = self.entry(own)
            if self.kind.tensor_rate:
                entry["lr"] = torch.tensor(0.1)
            optimizer.add_param_group(entry)

    @possible(lambda self: len(self.optimizer.param_groups) > 1)
    @event(index=st.integers(0, 3))
    def a_group_is_removed(self, index):
        for optimizer in (self.optimizer, self.twin):
            group = optimizer.param_groups.pop(index % len(optimizer.param_groups))
            for parameter in group["params"]:
                optimizer.state.pop(parameter, None)

    @event(which=st.integers(0, 7))
    def a_parameter_is_replaced(self, which):
        for optimizer in (self.optimizer, self.twin):
            places = [(g, i) for g in optimizer.param_groups for i in range(len(g["params"]))]
            group, index = places[which % len(places)]
            old = group["params"][index]
            optimizer.state.pop(old, None)
            group["params"][index] = nn.Parameter(old.detach().clone())

    # A copy of Lion lacks the attributes that its constructor sets, perturbed or not.
    @possible(lambda self: self.kind.make is not Lion)
    @event(by=st.sampled_from(["deepcopy", "pickle", "deepcopy of the handle", "pickle of the handle"]))
    def it_is_copied(self, by):
        original = self.optimizer
        if by == "deepcopy":
            self.optimizer = copy.deepcopy(self.optimizer)
        elif by == "pickle":
            self.optimizer = pickle.loads(pickle.dumps(self.optimizer))
        else:
            handle = self.handle
            self.handle = copy.deepcopy(handle) if "deepcopy" in by else pickle.loads(pickle.dumps(handle))
            self.optimizer = self.handle.optimizer
            assert flatwise.handle_of(original) is handle
        self.handle = flatwise.handle_of(self.optimizer)
        assert self.handle is not None
        self.scheduler, self.scheduled, self.hooked = None, False, False

    @event(first=st.sampled_from(["load", "attach"]))
    def it_is_resumed_in_a_new_process(self, first):
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        groups = []
        for group in self.optimizer.param_groups:
            names = group.get("param_names", [None] * len(group["params"]))
            groups.append(self.copied(list(zip(names, group["params"], strict=True))))
        self.optimizer = self.make(self.kind.make, groups)
        if first == "load":
            self.optimizer.load_state_dict(saved)
        self.attach()
        if first == "attach":
            self.optimizer.load_state_dict(saved)
        assert self.handle.step == self.steps
        self.the_twin_loads_too()
        self.scheduler, self.scheduled, self.hooked = None, False, False

    def the_twin_loads_too(self):
        """Torch may change the dtype of what it loads, as of NAdam's products."""
        self.twin.load_state_dict(copy.deepcopy(self.twin.state_dict()))

    @event()
    def it_loads_its_own_state(self):
        self.the_twin_loads_too()
        self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        assert self.handle.step == self.steps
        if self.kind.tensor_rate:
            self.scheduler = None

    @possible(lambda self: self.kind.twin is None)
    @event()
    def it_loads_a_plain_checkpoint(self):
        self.optimizer.load_state_dict(copy.deepcopy(self.twin.state_dict()))
        self.the_twin_loads_too()
        assert self.handle.step == self.steps
        assert (self.handle.seed, self.handle.stream) == (self.seed, self.stream)

    @event(step=st.one_of(st.integers(0, 12), st.integers(2**32 - 2, 2**32 + 2)))
    def the_step_is_set(self, step):
        self.handle.step = np.int64(step)
        self.steps = step

    @event()
    def it_is_removed_and_attached_again(self):
        self.handle.remove()
        assert not [key for group in self.optimizer.param_groups for key in group if "flatwise" in key]
        if not self.scheduled:
            assert "step" not in vars(self.optimizer)
        assert not [key for key in vars(self.optimizer) if "flatwise" in key or key == "__reduce_ex__"]
        assert len(self.optimizer._optimizer_step_pre_hooks) == self.hooked
        assert len(self.optimizer._optimizer_step_post_hooks) == self.hooked
        self.attach(step=self.steps)

    # A life

    def happens(self, name):
        method = getattr(self, name)
        arguments = {key: self.data.draw(strategy, label=key) for key, strategy in EVENTS[name].items()}
        method(**arguments)

    def live(self):
        for _ in range(self.data.draw(st.integers(2, 8), label="events")):
            if self.data.draw(st.integers(0, 3), label="eventful"):
                possible = [
                    n for n in EVENTS if n != "step" and getattr(getattr(self, n), "condition", lambda life: True)(self)
                ]
                self.happens(self.data.draw(st.sampled_from(possible), label="event"))
            self.happens("step")


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.settings(fuzz_settings(1), max_examples=-(-examples(288) // len(KINDS)))
@given(data=st.data())
def test_a_perturbed_optimizer_lives_as_its_twin(kind, data):
    # Warnings are not what this is about: fused optimizers say when they are not, copies share their noise.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        life = Life(KINDS[kind], data)
        life.live()
        life.end()

"""Toy copies of an optimizer: the same class and options over a few tiny parameters, trained without a model."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import pickle
import random
import sys
import types
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatwise._attach.parameters import parameters_of
from flatwise._attach.step import UNBOUNDED, RateLoan, unhooked

MOST_STEPS = 128
STEPS = 30  # look-ahead, warm-up and preconditioners that are refreshed now and then show within these
LARGEST = 4096  # most elements of a tensor that a toy copies: real parameters and their state are larger
MOST_OBJECTS = 20_000  # most objects that make up an attribute which a toy copies

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
SHARED = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, weakref.ref)  # not copied
NOT_COPIED = {"state", "param_groups", "defaults", "step", "__reduce_ex__"}  # ``step``: schedulers and we wrap it


@dataclass(frozen=True)
class Path:
    """A toy's training.

    Attributes:
        positions: all parameters, end to end, at the start and after every step; float64, (steps + 1, elements).
        sizes: number of elements of each parameter, by group.
        toy: the optimizer after its last step.
        dtype: the parameters' dtype.
        rates: η and the learning rate of the last step.
    """

    positions: Tensor
    sizes: list[list[int]]
    toy: Optimizer
    dtype: torch.dtype
    rates: tuple[float, float]

    def is_finite(self) -> bool:
        """Whether no parameter overflowed."""
        return bool(torch.isfinite(self.positions).all())

    def moves(self) -> bool:
        """Whether any parameter changed."""
        return not torch.equal(self.positions[0], self.positions[-1])

    def travel(self) -> Tensor:
        """The largest distance of an element of each parameter from its start so far; (steps + 1, parameters)."""
        return self._by_parameter(self.positions - self.positions[0]).cummax(0).values

    def gap(self, other: Path) -> Tensor:
        """The largest difference of an element of each parameter; (steps + 1, parameters)."""
        return self._by_parameter(self.positions - other.positions)

    def _by_parameter(self, differences: Tensor) -> Tensor:
        parts = torch.split(differences.abs(), list(itertools.chain(*self.sizes)), dim=1)
        return torch.stack([part.amax(1) if part.numel() else part.sum(1) for part in parts], dim=1)


class Feed(NamedTuple):
    """How gradients reach the optimizer."""

    closure: bool = False
    graph: bool = False  # gradients with a graph, for second-order optimizers
    sparse: bool = False


FEEDS = (Feed(), Feed(closure=True), Feed(graph=True), Feed(closure=True, graph=True), Feed(sparse=True))


@dataclass(frozen=True)
class Form:
    """A way of making toys of an optimizer."""

    optimizer: Optimizer
    device: torch.device
    dtype: torch.dtype
    build: Callable[[Form, list[dict[str, Any]]], Optimizer]
    feed: Feed
    steps: int = STEPS

    def train(
        self,
        rate: float,
        factors: Sequence[float] = (1.0,),
        *,
        steps: int | None = None,
        afterwards: bool = False,
        shaken: bool = False,
    ) -> Path:
        """Train a new toy.

        Args:
            rate: η, the learning rate of every group.
            factors: f of the steps, repeated; default: 1.
            steps: number of steps; default: the form's.
            afterwards: scale the updates by f after the step, instead of the learning rates before it.
            shaken: disturb every parameter after every step, by about as much as rounding does.
        """
        _seed_generators()
        toy = self._toy(rate)
        parameters = parameters_of(toy)
        rates = RateLoan()
        waves = [(_wave(p, 1), [_wave(p, phase) for phase in range(7)]) for p in parameters]
        positions = [_flat(parameters)]
        for step, factor in zip(range(steps or self.steps), itertools.cycle(factors)):
            old = [p.detach().clone() for p in parameters]
            if not afterwards:
                for group in toy.param_groups:
                    rates.lend(group, [(factor, UNBOUNDED)])
            self._step(toy, parameters, waves, step)
            rates.restore()
            with torch.no_grad():
                for p, before, (_, changing) in zip(parameters, old, waves, strict=True):
                    if afterwards:
                        p.copy_(torch.lerp(before, p, factor))
                    if shaken:
                        p.mul_(1 + 2 * torch.finfo(p.dtype).eps * changing[step % 7].sgn())
            positions.append(_flat(parameters))
        sizes = [[p.numel() * (2 if p.is_complex() else 1) for p in group["params"]] for group in toy.param_groups]
        last = rate if afterwards else rate * factor
        return Path(torch.stack(positions), sizes, toy, self.dtype, (rate, last))

    def _toy(self, rate: float) -> Optimizer:
        groups: list[dict[str, Any]] = []
        shapes = _toy_shapes(self.optimizer)
        for group in self.optimizer.param_groups:
            firsts = {shapes[p]: p for p in reversed(group["params"])}
            twins = {shape: self._filled(shape, p) for shape, p in reversed(firsts.items())}
            own = torch.tensor(rate) if isinstance(group["lr"], Tensor) else rate
            groups.append({"params": list(twins.values()), "lr": own})
        toy = self.build(self, groups)
        for group in toy.param_groups:
            # A tensor is filled in place, as some optimizers insist.
            group["lr"] = group["lr"].fill_(rate) if isinstance(group["lr"], Tensor) else rate
        if callable(switch := getattr(toy, "train", None)):  # schedule-free optimizers refuse to step outside training
            switch()
        return toy

    def _filled(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A toy parameter: between 1 and 2, where the spacing of floating-point numbers is the same everywhere."""
        dtype = torch.promote_types(self.dtype, torch.complex64) if like.is_complex() else self.dtype
        values = torch.zeros(shape, dtype=dtype, device=self.device)
        return nn.Parameter(1.5 + 0.4 * _wave(values, 0))

    def _step(
        self, toy: Optimizer, parameters: list[Tensor], waves: list[tuple[Tensor, list[Tensor]]], step: int
    ) -> None:
        def closure() -> Tensor:
            for p, (lasting, changing) in zip(parameters, waves, strict=True):
                point = p if self.feed.graph else p.detach()
                # Mostly a slope that stays, so that steps add up, and a little curvature, so that it matters where
                # the gradient is taken; too little for small differences to grow.
                gradient = lasting + 0.1 * changing[step % 7] + 0.1 * torch.sin(point + step)
                p.grad = gradient.to_sparse(1) if self.feed.sparse else gradient
            return torch.tensor(1.0 / (1 + step), dtype=torch.float64, device=self.device)

        closure()
        without_hooks = unhooked(type(toy).step)  # torch's wrapper calls the hooks of all optimizers
        without_hooks(toy, *((closure,) if self.feed.closure else ()))


def _flat(parameters: list[Tensor]) -> Tensor:
    real = [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in parameters]
    return torch.cat([p.reshape(-1).double().cpu() for p in real])


def _toy_shapes(optimizer: Optimizer) -> dict[Tensor, tuple[int, ...]]:
    """A small shape for each parameter: same number of dimensions, and sizes in the same order."""
    sizes = sorted({size for p in parameters_of(optimizer) for size in p.shape if size > 3})
    small = {size: min(4 + rank, 8) for rank, size in enumerate(sizes)}
    # Empty parameters cannot show anything; those of the toy have an element.
    return {p: tuple(small.get(size, max(size, 1)) for size in p.shape) for p in parameters_of(optimizer)}


def _wave(like: Tensor, phase: float) -> Tensor:
    """Values in [−1, 1] without zeros or symmetry, and without a random generator."""
    count = torch.arange(max(1, like.numel()), dtype=torch.float64, device=like.device)
    return torch.sin(1.7 * count + phase + 0.4)[: like.numel()].reshape(like.shape).to(like.dtype)


def steps_to_see(optimizer: Optimizer) -> int:
    """How many steps show what the optimizer does: more where it has a period of more steps among its options."""
    options = [value for group in optimizer.param_groups for key, value in group.items() if "flatwise" not in key]
    periods = [v for v in (*options, *vars(optimizer).values()) if type(v) is int and STEPS <= v < MOST_STEPS]
    return max([STEPS, *(period + 2 for period in periods)])


# Copying an optimizer's options, but nothing large or shared


def _copied(form: Form, groups: list[dict[str, Any]]) -> Optimizer:
    """A toy made without the constructor: the real optimizer's attributes and a fresh state."""
    real = form.optimizer
    toy = type(real).__new__(type(real))
    twins = {id(real): toy, **_twins(form, groups)}
    for own, group in zip(real.param_groups, groups, strict=True):
        group.update({key: False for key in ("capturable", "fused", "foreach") if key in own})  # speed, not meaning
        if "param_names" in own:
            group["param_names"] = [f"toy.{position}" for position in range(len(group["params"]))]
        options = {key: value for key, value in own.items() if key not in group and not key.startswith("flatwise_")}
        group.update(_copies(options, twins, form.device))
    attributes = {
        key: value
        for key, value in vars(real).items()
        if key not in NOT_COPIED and not key.startswith(("_optimizer_", "_flatwise"))
    }
    vars(toy).update(_copies(attributes, twins, form.device))
    defaults = _copies(real.defaults, twins, form.device)
    toy.__setstate__({"defaults": defaults, "state": defaultdict(dict), "param_groups": groups})
    return toy


def _constructed(form: Form, groups: list[dict[str, Any]]) -> Optimizer:
    """A toy made by the constructor, with as many of its arguments as can be found."""
    real = form.optimizer
    options: dict[str, Any] = {}
    for parameter in list(inspect.signature(type(real).__init__).parameters.values())[2:]:
        for source in (real.param_groups[0], real.defaults, vars(real)):
            if parameter.name in source and parameter.kind is not parameter.VAR_KEYWORD:
                options[parameter.name] = source[parameter.name]
                break
    rate = {"lr": groups[0]["lr"]} if options.pop("lr", None) is not None else {}
    return type(real)(groups, **_copies(options, _twins(form, groups), form.device), **rate)


BUILDS = (_copied, _constructed)


def _twins(form: Form, groups: list[dict[str, Any]]) -> dict[int, object]:
    """The toy's parameter in place of each real one, by the real one's id."""
    shapes = _toy_shapes(form.optimizer)
    twins: dict[int, object] = {}
    for own, group in zip(form.optimizer.param_groups, groups, strict=True):
        by_shape = {tuple(twin.shape): twin for twin in group["params"]}
        twins.update({id(p): by_shape[shapes[p]] for p in own["params"]})
    return twins


def _copies(values: dict[str, Any], twins: dict[int, object], device: torch.device) -> dict[str, Any]:
    """Copies of values, without those that cannot be copied safely: a toy that needs them fails."""
    copies: dict[str, Any] = {}
    for key, value in values.items():
        with contextlib.suppress(Exception):  # whatever foreign objects raise
            copies[key] = _without_repeats(_Copier(twins, device).copy(value))
    return copies


class _Copier(pickle.Pickler):
    """Deep copies in which the toy and its parameters take the place of the real ones.

    Args:
        twins: what takes the place of an object, by the object's id; copies of tensors and generators are added.
        device: where tensors are copied to.
    """

    def __init__(self, twins: dict[int, object], device: torch.device) -> None:
        self._file = io.BytesIO()
        super().__init__(self._file)
        self._twins = twins
        self._device = device
        self._objects = 0
        self._kept: list[object] = []  # what copies refer to

    def copy(self, value: Any) -> Any:
        """A deep copy of a value.

        Raises:
            ValueError: it holds too many objects, a large tensor, another optimizer, or a closure over such things.
        """
        self.dump(value)
        unpickler = pickle.Unpickler(io.BytesIO(self._file.getvalue()))
        unpickler.persistent_load = self._kept.__getitem__  # type: ignore[method-assign]
        return unpickler.load()

    def persistent_id(self, thing: Any) -> int | None:
        """A position in what copies refer to, for what is not copied by pickle."""
        self._objects += not isinstance(thing, PLAIN)
        if self._objects > MOST_OBJECTS:
            raise ValueError("too much to copy")
        if isinstance(thing, (Tensor, torch.Generator, Optimizer)):
            if id(thing) not in self._twins:
                self._twins[id(thing)] = self._twin(thing)
            self._kept.append(self._twins[id(thing)])
        elif isinstance(thing, SHARED):
            for cell in getattr(thing, "__closure__", None) or ():
                self._check_shared(cell.cell_contents)
            self._kept.append(thing)
        else:
            return None
        return len(self._kept) - 1

    def _check_shared(self, value: object) -> None:
        inside = _Copier({}, self._device)
        inside.dump(value)
        if not all(isinstance(thing, SHARED) for thing in inside._kept):
            raise ValueError("a closure over tensors")

    def _twin(self, thing: Tensor | torch.Generator | Optimizer) -> object:
        if isinstance(thing, torch.Generator):
            generator = torch.Generator(thing.device)
            generator.set_state(thing.get_state())
            return generator
        if isinstance(thing, Optimizer) or thing.numel() > LARGEST or thing.device.type == "meta":
            raise ValueError("an optimizer or a large tensor is not copied")
        return thing.detach().to(self._device, copy=True)


def _without_repeats(value: Any) -> Any:
    """A value whose lists hold each toy parameter once: it stands for several real ones, and is updated once."""
    if type(value) in (list, tuple):
        kept = {
            id(item) if isinstance(item, nn.Parameter) else (position,): item for position, item in enumerate(value)
        }
        return type(value)(_without_repeats(item) for item in kept.values())
    if type(value) is dict:
        return {key: _without_repeats(item) for key, item in value.items()}
    return value


# Leaving the process as it was


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Run foreign code under torch's default settings; restore all generators, and silence warnings and output."""
    numpys, pythons = np.random.get_state(), random.getstate()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
    try:
        with contextlib.ExitStack() as settings:
            settings.enter_context(torch.random.fork_rng(gpus, device_type="cuda"))
            settings.enter_context(torch.inference_mode(False))
            settings.enter_context(torch.enable_grad())
            settings.enter_context(torch.autocast("cpu", enabled=False))
            if torch.get_default_device().type != "cpu":  # only if needed, because it slows every operation down
                settings.enter_context(torch.device("cpu"))
            if "torch._dynamo" in sys.modules:
                settings.enter_context(torch.compiler.set_stance("force_eager"))
            settings.enter_context(warnings.catch_warnings())
            settings.enter_context(contextlib.redirect_stdout(io.StringIO()))
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)


def _seed_generators() -> None:
    """Give every toy the same random numbers."""
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)

"""Toy copies of an optimizer: the same class and options over a few tiny parameters, trained without a model."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import io
import itertools
import math
import random
import sys
import types
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatwise._attach.parameters import parameters_of

MOST_STEPS = 128
STEPS = 30  # look-ahead, warm-up and preconditioners that are refreshed now and then show within these
LARGEST = 4096  # most elements of a tensor that a toy copies: real parameters and their state are larger
MOST_OBJECTS = 20_000  # most objects that make up an attribute which a toy copies

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
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

    def longest_step(self) -> float:
        """The largest change of an element in one step."""
        return float(self.positions.diff(dim=0).abs().max())

    def travel(self) -> Tensor:
        """The largest distance of an element of each parameter from its start so far; (steps + 1, parameters)."""
        return self._by_parameter(self.positions - self.positions[0]).cummax(0).values

    def gap(self, other: Path) -> Tensor:
        """The largest difference of an element of each parameter; (steps + 1, parameters)."""
        return self._by_parameter(self.positions - other.positions)

    def is_single_precision(self) -> bool:
        """Whether every changed value fits float32: then the optimizer computes in float32."""
        end = self.positions[-1][self.positions[-1] != self.positions[0]]
        return torch.equal(end, end.float().double())

    def differs_from(self, other: Path) -> bool:
        """Whether it differs from its repetition."""
        return bool((self.gap(other) > 1e-9 * self.travel()).any())

    def responds(self, other: Path, control: Path) -> bool:
        """Whether another learning rate has an effect, in every group that moves at all."""
        gaps, rounding, travel = self.gap(other).amax(0), other.gap(control).amax(0), self.travel()[-1]
        acts = (gaps > 1e-3 * travel) & (gaps > 10 * rounding)
        by_group = [len(sizes) for sizes in self.sizes]
        groups = zip(torch.split(acts, by_group), torch.split(travel, by_group), strict=True)
        return all(bool(a.any()) for a, moved in groups if (moved > 0).any())

    def steps_above_rounding(self, control: Path) -> int:
        """Number of steps for which a disturbance of the size of rounding stays small."""
        lost = (self.gap(control) > 0.01 * self.travel() + 1e-9).any(1).tolist()
        return lost.index(True) - 1 if True in lost else len(lost) - 1

    def parts_from(self, other: Path, control: Path, steps: int) -> float | None:
        """Largest distance from another path, as a share of that path's travel; ``None`` if rounding explains it.

        The effect of rounding is measured by the other path's disturbed copy, ``control``.
        """
        gap, travel = self.gap(other)[: steps + 1], other.travel()[: steps + 1]
        allowed = precision_of(self.dtype) * travel + 10 * other.gap(control)[: steps + 1] + 1e-15
        if bool((gap <= allowed).all()):
            return None
        return float((gap / travel.clamp(min=1e-30)).nan_to_num(math.inf)[1:].amax())

    def _by_parameter(self, differences: Tensor) -> Tensor:
        parts = torch.split(differences.abs(), [size for sizes in self.sizes for size in sizes], dim=1)
        return torch.stack([part.amax(1) if part.numel() else part.sum(1) for part in parts], dim=1)


def precision_of(dtype: torch.dtype) -> float:
    """Relative tolerance of two trainings that differ only by rounding errors."""
    return 1e-6 if dtype in (torch.float64, torch.complex128) else 1e-3


def _flat(parameters: list[Tensor]) -> Tensor:
    real = [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in parameters]
    return torch.cat([p.reshape(-1).double().cpu() for p in real])


_Build = Callable[["Form", list[dict[str, Any]]], Optimizer]


@dataclass(frozen=True)
class Feed:
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
    build: _Build
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
        waves = [(_wave(p, 1), [_wave(p, phase) for phase in range(7)]) for p in parameters]
        positions = [_flat(parameters)]
        for step, factor in zip(range(steps or self.steps), itertools.cycle(factors)):
            if afterwards:
                old = [p.detach().clone() for p in parameters]
                self._step(toy, parameters, waves, step)
                with torch.no_grad():
                    for p, before in zip(parameters, old, strict=True):
                        p.copy_(torch.lerp(before, p, factor))
            else:
                with _lent(toy, factor):
                    self._step(toy, parameters, waves, step)
            if shaken:
                with torch.no_grad():
                    for p, (_, changing) in zip(parameters, waves, strict=True):
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
            like = torch.tensor(0.0) if isinstance(group["lr"], Tensor) else 0.0
            groups.append({"params": list(twins.values())})
            _set_rate(groups[-1], like, rate)
        toy = self.build(self, groups)
        for group in toy.param_groups:
            _set_rate(group, group["lr"], rate)
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
        function: Callable[..., object] = type(toy).step
        if getattr(function, "hooked", False):  # without torch's wrapper, which calls the hooks of all optimizers
            function = inspect.getattr_static(function, "__wrapped__", function)
        if self.feed.closure:
            function(toy, closure)
        else:
            function(toy)


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


@contextlib.contextmanager
def _lent(toy: Optimizer, factor: float) -> Iterator[None]:
    """Multiply the learning rates by a factor; a rate that the step itself writes is kept."""
    clean = [(group, group["lr"], float(group["lr"])) for group in toy.param_groups]
    for group, rate, value in clean:
        _set_rate(group, rate, value * factor)
    noisy = [float(group["lr"]) for group in toy.param_groups]
    yield
    for (group, rate, value), lent in zip(clean, noisy, strict=True):
        if float(group["lr"]) == lent:
            _set_rate(group, rate, value)


def _set_rate(group: dict[str, Any], like: float | Tensor, value: float) -> None:
    """Sets a group's rate: a tensor is filled in place, as some optimizers insist."""
    if isinstance(like, Tensor):
        group["lr"] = like.fill_(value)
    else:
        group["lr"] = value


def steps_to_see(optimizer: Optimizer) -> int:
    """How many steps show what the optimizer does: more where it has a period of more steps among its options."""
    options = [value for group in optimizer.param_groups for key, value in group.items() if "flatwise" not in key]
    periods = [v for v in (*options, *vars(optimizer).values()) if type(v) is int and STEPS <= v < MOST_STEPS]
    return max([STEPS, *(period + 2 for period in periods)])


# Copying an optimizer's options, but nothing large or shared


def _copied(form: Form, groups: list[dict[str, Any]], *, defaults_only: bool = False) -> Optimizer:
    """A toy made without the constructor: the real optimizer's attributes and a fresh state."""
    real = form.optimizer
    toy = type(real).__new__(type(real))
    copier = _Copier(form, toy, groups)
    for own, group in zip(real.param_groups, groups, strict=True):
        for key, value in own.items():
            if key in ("params", "lr") or key.startswith("flatwise_"):
                continue
            if key in ("capturable", "fused", "foreach"):  # speed, not meaning; some need the real device
                group[key] = False
            elif key == "param_names":
                group[key] = [f"toy.{position}" for position in range(len(group["params"]))]
            elif not defaults_only or key in real.defaults:
                copier.copy_into(group, key, real.defaults[key] if defaults_only else value)
    attributes: dict[str, Any] = {}
    for key, value in vars(real).items():
        if key not in NOT_COPIED and not key.startswith(("_optimizer_", "_flatwise")):
            copier.copy_into(attributes, key, value)
    vars(toy).update(attributes)
    defaults: dict[str, Any] = {}
    for key, value in real.defaults.items():
        copier.copy_into(defaults, key, value)
    toy.__setstate__({"defaults": defaults, "state": defaultdict(dict), "param_groups": groups})
    return toy


def _with_defaults(form: Form, groups: list[dict[str, Any]]) -> Optimizer:
    """As :func:`_copied`, with the groups' counters reset: those of a trained optimizer do not fit a fresh state."""
    return _copied(form, groups, defaults_only=True)


def _constructed(form: Form, groups: list[dict[str, Any]]) -> Optimizer:
    """A toy made by the constructor, with as many of its arguments as can be found."""
    real = form.optimizer
    parameters = list(inspect.signature(type(real).__init__).parameters.values())[2:]
    copier = _Copier(form, None, groups)
    options: dict[str, Any] = {}
    for parameter in parameters:
        for source in (real.param_groups[0], real.defaults, vars(real)):
            if parameter.name in source and parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "lr":
                copier.copy_into(options, parameter.name, source[parameter.name])
                break
    if any(parameter.name == "lr" for parameter in parameters):
        options["lr"] = groups[0]["lr"]
    return type(real)(groups, **options)


BUILDS: tuple[_Build, ...] = (_copied, _with_defaults, _constructed)


class _Copier:
    """Deep copies in which the toy and its parameters take the place of the real ones."""

    def __init__(self, form: Form, toy: Optimizer | None, groups: list[dict[str, Any]]) -> None:
        self._form = form
        self._memo: dict[int, Any] = {} if toy is None else {id(form.optimizer): toy}
        shapes = _toy_shapes(form.optimizer)
        for own, group in zip(form.optimizer.param_groups, groups, strict=True):
            twins = {tuple(twin.shape): twin for twin in group["params"]}
            self._memo.update({id(p): twins[shapes[p]] for p in own["params"]})

    def copy_into(self, place: dict[str, Any], key: str, value: object) -> None:
        """Copy a value; skip one that cannot be copied safely. A toy that needs it then fails, and another is tried."""
        if isinstance(value, PLAIN):
            place[key] = value
            return
        with contextlib.suppress(Exception):
            for found in _reachable(value):
                if id(found) not in self._memo:
                    self._memo[id(found)] = self._twin(found)
            place[key] = _without_repeats(copy.deepcopy(value, self._memo))

    def _twin(self, found: Tensor | torch.Generator | Optimizer) -> object:
        if isinstance(found, torch.Generator):
            generator = torch.Generator(found.device)
            generator.set_state(found.get_state())
            return generator
        if isinstance(found, Optimizer) or found.numel() > LARGEST or found.device.type == "meta":
            raise ValueError("an optimizer or a large tensor is not copied")
        return found.detach().to(self._form.device, copy=True)


def _reachable(value: object) -> list[Tensor | torch.Generator | Optimizer]:
    """The tensors, generators and optimizers that a deep copy of a value would reach.

    Raises:
        ValueError: the value holds too many objects, or a closure over such things, which a copy would share.
    """
    found: list[Tensor | torch.Generator | Optimizer] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (*PLAIN, type, types.ModuleType, types.BuiltinFunctionType)):
            continue
        seen.add(id(thing))
        if len(seen) > MOST_OBJECTS:
            raise ValueError("too much to copy")
        if isinstance(thing, (Tensor, torch.Generator, Optimizer)):
            found.append(thing)
        elif isinstance(thing, types.FunctionType):
            if any(_reachable(cell.cell_contents) for cell in thing.__closure__ or ()):
                raise ValueError("a closure over tensors")
        else:
            waiting.extend(gc.get_referents(thing))
    return found


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
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    with_gpus = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    on_gpus = torch.cuda.get_rng_state_all() if with_gpus else []
    # Only if needed, because it slows every operation down.
    on_cpu = torch.device("cpu") if torch.get_default_device().type != "cpu" else contextlib.nullcontext()
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            on_cpu,
            eager,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


def _seed_generators() -> None:
    """Give every toy the same random numbers."""
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)

"""Measures on a toy copy whether a foreign optimizer can be perturbed.

The oracle: training whose updates are scaled by f afterwards must be training at the rates η · f, in every parameter
and in everything that the optimizer remembers, over 30 steps with a factor that changes from step to step.
"""

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

STEPS = 30  # look-ahead, warm-up and preconditioners that are refreshed now and then show within these
RATES = (1e-3, 0.3)  # whatever the present rate is: a warm-up's 0 or 1e-8 would hide everything
FACTORS = (0.5, 1.0, 2.0, 0.75, 1.5, 0.25)  # the first is not 1: some set up their memory with the first rate
LATER_FACTORS = (1.0, *FACTORS[1:])  # and some never look at the rate again, which then does not act
STEPS_OF_16_BITS = 60
FACTOR_OF_16_BITS = 0.6
LARGEST = 4096  # elements of a tensor that a toy may copy: real parameters and their state are larger
MOST_OBJECTS = 20_000  # that an attribute may consist of

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_NOT_COPIED = {"state", "param_groups", "defaults", "step", "__reduce_ex__"}  # schedulers wrap ``step``, and so do we


@dataclass(frozen=True)
class Measurement:
    """What the toy copies showed.

    Attributes:
        inert: why noise in the rate would do nothing, or ``None`` if the rate acts.
        nonlinear: why scaling the update afterwards is not training at another rate, or ``None`` if it is.
        failed: why nothing could be measured, or ``None``.
    """

    inert: str | None = None
    nonlinear: str | None = None
    failed: str | None = None


class _Failure(Exception):
    """Nothing could be measured, and why."""


def measure(optimizer: Optimizer) -> Measurement:
    """Trains toy copies of an optimizer and compares them.

    The optimizer, its parameters and all random number generators are left as they are. The verdict does not depend
    on the state of the generators; on the present learning rate only where that is beyond ``RATES``.

    Args:
        optimizer: any ``torch.optim.Optimizer`` whose groups have a rate.
    """
    try:
        with _undisturbed():
            return _measure(optimizer)
    except _Failure as failure:
        return Measurement(failed=str(failure))
    except Exception as error:  # whatever foreign code raises
        return Measurement(failed=_in_words(error))


def _measure(optimizer: Optimizer) -> Measurement:
    form, plain = _working_form(optimizer)
    if not plain.moves():
        return Measurement(inert="its step does not change the parameters")
    again = form.train(RATES[0])
    if not again.is_finite() or again.differs_from(plain):
        raise _Failure("two copies of it that do the same differ: it is not deterministic")
    if not _acts(form, plain):
        return Measurement(inert="another learning rate in its param_groups makes the same update")
    nonlinear: str | None = None
    compared = 0
    for rate in _rates(optimizer):
        try:
            at_rates = form.train(rate, FACTORS)
            afterwards = form.train(rate, FACTORS, afterwards=True)
            control = form.train(rate, FACTORS, shaken=True)
        except Exception:
            if rate == RATES[0]:
                raise
            continue  # it does not bear this rate
        if not (at_rates.is_finite() and control.is_finite()):
            continue
        steps = at_rates.steps_above_rounding(control)
        compared = max(compared, steps)
        if nonlinear is None and afterwards.parts_from(at_rates, control, steps):
            nonlinear = "scaling its update is not training at another learning rate"
        elif nonlinear is None and steps == STEPS and not _same_memory(at_rates, afterwards, control):
            nonlinear = "its state depends on the learning rate"
    if compared < STEPS // 2 and nonlinear is None:
        raise _Failure("rounding errors alone change its steps as much as the learning rate does")
    if nonlinear is None:
        nonlinear = _lost_in_rounding(optimizer, form, plain)
    return Measurement(nonlinear=nonlinear)


def _acts(form: _Form, plain: _Path) -> bool:
    """Whether the rate in the groups makes a difference after the first step: a small rate, or else a large one."""
    for rate in RATES:
        unscaled = plain if rate == RATES[0] else form.train(rate)
        if unscaled.responds(form.train(rate, LATER_FACTORS), form.train(rate, LATER_FACTORS, shaken=True)):
            return True
    return False


def _rates(optimizer: Optimizer) -> list[float]:
    present = max(float(group["lr"]) for group in optimizer.param_groups)
    beyond = not min(RATES) <= present <= max(RATES) and 1e-6 <= present <= 10.0
    return [*RATES, present] if beyond else list(RATES)


def _lost_in_rounding(optimizer: Optimizer, form: _Form, plain: _Path) -> str | None:
    """Whether an optimizer with 16-bit parameters makes up for rounding, and so undoes a factor that comes after it.

    Steps of a quarter of the parameters' spacing are lost when they are added. An optimizer that gets somewhere with
    them keeps what was lost (or the whole parameter) elsewhere, and must then get where the plain one would.
    """
    dtypes = {p.dtype for p in _parameters(optimizer)} & {torch.float16, torch.bfloat16}
    for dtype in sorted(dtypes, key=str):
        spacing = torch.finfo(dtype).eps
        low = _Form(optimizer, form.device, dtype, form.build, form.feed)
        rate = RATES[0] * spacing / 4 / plain.longest_step()
        try:
            at_rate = low.train(rate, (FACTOR_OF_16_BITS,), steps=STEPS_OF_16_BITS)
            afterwards = low.train(rate, (FACTOR_OF_16_BITS,), steps=STEPS_OF_16_BITS, afterwards=True)
        except Exception as error:
            raise _Failure(f"with parameters of {dtype}, {_in_words(error)}") from error
        if not (at_rate.gap(afterwards)[-1] <= 1.5 * spacing).all():
            return (
                f"it makes up for what rounding to {dtype} loses (compensated summation, stochastic rounding or a "
                "float32 copy of the parameters), and would undo the noise as it undoes rounding"
            )
    return None


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":").split("\n")[0]


# A toy: how it is made, how it is fed


_Build = Callable[["_Form", list[dict[str, Any]]], Optimizer]


@dataclass(frozen=True)
class _Feed:
    """How gradients reach the optimizer."""

    closure: bool = False
    graph: bool = False  # gradients that can be differentiated again, for second-order optimizers
    sparse: bool = False


_FEEDS = (_Feed(), _Feed(closure=True), _Feed(graph=True), _Feed(closure=True, graph=True), _Feed(sparse=True))


def _working_form(optimizer: Optimizer) -> tuple[_Form, _Path]:
    """The first way of making and feeding a toy in which it can be trained, and its training."""
    devices = dict.fromkeys(
        [torch.device("cpu"), *(p.device for p in _parameters(optimizer) if p.device.type != "meta")]
    )
    first_error: Exception | None = None
    idle: tuple[_Form, _Path] | None = None
    for device, dtype, build in itertools.product(devices, (torch.float64, torch.float32), _BUILDS):
        for feed in _FEEDS:
            form = _Form(optimizer, device, dtype, build, feed)
            try:
                path = form.train(RATES[0])
            except Exception as error:
                first_error = first_error or error
                continue
            if path.is_finite() and path.moves():
                return form, path
            idle = idle or (form, path)
    if idle is not None and idle[1].is_finite():
        return idle
    raise _Failure("its steps are not finite" if first_error is None else _in_words(first_error)) from first_error


@dataclass(frozen=True)
class _Form:
    """A way of making toys of an optimizer."""

    optimizer: Optimizer
    device: torch.device
    dtype: torch.dtype
    build: _Build
    feed: _Feed

    def train(
        self,
        rate: float,
        factors: Sequence[float] = (1.0,),
        *,
        steps: int = STEPS,
        afterwards: bool = False,
        shaken: bool = False,
    ) -> _Path:
        """Trains a new toy.

        Args:
            rate: η of every group.
            factors: f of the steps, over and over.
            steps: how many.
            afterwards: whether the updates are scaled by f after the step, or the rates before it.
            shaken: whether every parameter is disturbed after every step, by about what rounding does.
        """
        _seed_generators()
        toy = self._toy(rate)
        parameters = _parameters(toy)
        waves = [(_wave(p, 1), [_wave(p, phase) for phase in range(7)]) for p in parameters]
        positions = [_flat(parameters)]
        for step, factor in zip(range(steps), itertools.cycle(factors)):
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
                        p.mul_(1 + 2 * torch.finfo(p.dtype).eps * changing[step % 7].sign())
            positions.append(_flat(parameters))
        sizes = [[p.numel() * (2 if p.is_complex() else 1) for p in group["params"]] for group in toy.param_groups]
        return _Path(torch.stack(positions), sizes, _memory(toy), self.dtype)

    def _toy(self, rate: float) -> Optimizer:
        groups: list[dict[str, Any]] = []
        shapes = _toy_shapes(self.optimizer)
        for group in self.optimizer.param_groups:
            firsts = {shapes[p]: p for p in reversed(group["params"])}
            twins = {shape: self._filled(shape, p) for shape, p in reversed(firsts.items())}
            groups.append({"params": list(twins.values()), "lr": rate})
        toy = self.build(self, groups)
        for group in toy.param_groups:
            group["lr"] = rate
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
        function = type(toy).step
        if getattr(function, "hooked", False):  # without torch's wrapper, which calls the hooks of all optimizers
            function = inspect.getattr_static(function, "__wrapped__", function)
        if self.feed.closure:
            function(toy, closure)
        else:
            function(toy)  # type: ignore[call-arg]


def _toy_shapes(optimizer: Optimizer) -> dict[Tensor, tuple[int, ...]]:
    """For each parameter a small shape with as many dimensions; equal sizes stay equal, and the order of sizes stays."""
    sizes = sorted({size for p in _parameters(optimizer) for size in p.shape if size > 3})
    small = {size: min(4 + rank, 8) for rank, size in enumerate(sizes)}
    return {p: tuple(small.get(size, size) for size in p.shape) for p in _parameters(optimizer)}


def _wave(like: Tensor, phase: float) -> Tensor:
    """Values in [−1, 1] without zeros or symmetry, drawn from no generator."""
    count = torch.arange(max(1, like.numel()), dtype=torch.float64, device=like.device)
    return torch.sin(1.7 * count + phase + 0.4)[: like.numel()].reshape(like.shape).to(like.dtype)


@contextlib.contextmanager
def _lent(toy: Optimizer, factor: float) -> Iterator[None]:
    """Multiplies the rates by a factor; a rate that the step itself writes stays as it writes it."""
    clean = [(group, group["lr"], group["lr"] * factor) for group in toy.param_groups]
    for group, _, noisy in clean:
        group["lr"] = noisy
    yield
    for group, rate, noisy in clean:
        if group["lr"] == noisy:
            group["lr"] = rate


# Copying an optimizer's options, and nothing large or shared


def _copied(form: _Form, groups: list[dict[str, Any]], *, defaults_only: bool = False) -> Optimizer:
    """A toy without a constructor: the attributes of the real one, and a fresh state."""
    real = form.optimizer
    toy = type(real).__new__(type(real))
    copier = _Copier(form, toy, groups)
    for own, group in zip(real.param_groups, groups, strict=True):
        for key, value in own.items():
            if key in ("params", "lr") or key.startswith("flatter_"):
                continue
            if key in ("capturable", "fused", "foreach"):  # speed, not meaning; some need the real device
                group[key] = False
            elif key == "param_names":
                group[key] = [f"toy.{position}" for position in range(len(group["params"]))]
            elif not defaults_only or key in real.defaults:
                copier.copy_into(group, key, real.defaults[key] if defaults_only else value)
    attributes: dict[str, Any] = {}
    for key, value in vars(real).items():
        if key not in _NOT_COPIED and not key.startswith(("_optimizer_", "_flatter")):
            copier.copy_into(attributes, key, value)
    vars(toy).update(attributes)
    defaults: dict[str, Any] = {}
    for key, value in real.defaults.items():
        copier.copy_into(defaults, key, value)
    toy.__setstate__({"defaults": defaults, "state": defaultdict(dict), "param_groups": groups})
    return toy


def _with_defaults(form: _Form, groups: list[dict[str, Any]]) -> Optimizer:
    """The same, and the groups' counters as at the start: those of a trained optimizer do not fit a fresh state."""
    return _copied(form, groups, defaults_only=True)


def _constructed(form: _Form, groups: list[dict[str, Any]]) -> Optimizer:
    """A toy from the constructor, which is given what can be found of its arguments."""
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


_BUILDS: tuple[_Build, ...] = (_copied, _with_defaults, _constructed)


class _Copier:
    """Copies values deeply: the real parameters become the toy's, and the optimizer the toy."""

    def __init__(self, form: _Form, toy: Optimizer | None, groups: list[dict[str, Any]]) -> None:
        self._form = form
        self._memo: dict[int, Any] = {} if toy is None else {id(form.optimizer): toy}
        shapes = _toy_shapes(form.optimizer)
        for own, group in zip(form.optimizer.param_groups, groups, strict=True):
            twins = {tuple(twin.shape): twin for twin in group["params"]}
            self._memo.update({id(p): twins[shapes[p]] for p in own["params"]})

    def copy_into(self, place: dict[str, Any], key: str, value: object) -> None:
        """Copies a value; one that cannot be copied safely is left out, and missed by a toy that needs it."""
        if isinstance(value, _PLAIN):
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
            raise ValueError("not an option")
        return found.detach().to(self._form.device, copy=True)


def _reachable(value: object) -> list[Tensor | torch.Generator | Optimizer]:
    """The tensors, generators and optimizers that a deep copy of a value would come to.

    Raises:
        ValueError: it holds too much, or a function with a memory of such things, which a copy would share.
    """
    found: list[Tensor | torch.Generator | Optimizer] = []
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (*_PLAIN, type, types.ModuleType, types.BuiltinFunctionType)):
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
    """Lists in which several parameters became one toy parameter have it once: it must not be updated twice."""
    if type(value) in (list, tuple):
        kept = {
            id(item) if isinstance(item, nn.Parameter) else (position,): item for position, item in enumerate(value)
        }
        return type(value)(_without_repeats(item) for item in kept.values())
    if type(value) is dict:
        return {key: _without_repeats(item) for key, item in value.items()}
    return value


# What is compared


@dataclass(frozen=True)
class _Path:
    """A toy's training.

    Attributes:
        positions: all its parameters, end to end, at the start and after every step; float64.
        sizes: elements of each parameter, by group.
        memory: what it remembers at the end.
        dtype: of the parameters.
    """

    positions: Tensor
    sizes: list[list[int]]
    memory: list[Any]
    dtype: torch.dtype

    def is_finite(self) -> bool:
        return bool(torch.isfinite(self.positions).all())

    def moves(self) -> bool:
        return not torch.equal(self.positions[0], self.positions[-1])

    def longest_step(self) -> float:
        """The largest change of an element in one step."""
        return float(self.positions.diff(dim=0).abs().max())

    def travel(self) -> Tensor:
        """The farthest that an element of each parameter has been from its start; (steps + 1, parameters)."""
        return self._by_parameter(self.positions - self.positions[0]).cummax(0).values

    def gap(self, other: _Path) -> Tensor:
        """The largest difference of an element of each parameter; (steps + 1, parameters)."""
        return self._by_parameter(self.positions - other.positions)

    def differs_from(self, other: _Path) -> bool:
        return bool((self.gap(other) > 1e-9 * self.travel()).any())

    def responds(self, other: _Path, control: _Path) -> bool:
        """Whether another rate leads elsewhere, in every group that moves at all."""
        gaps, rounding, travel = self.gap(other).amax(0), other.gap(control).amax(0), self.travel()[-1]
        acts = (gaps > 1e-3 * travel) & (gaps > 10 * rounding)
        by_group = [len(sizes) for sizes in self.sizes]
        groups = zip(acts.split(by_group), travel.split(by_group), strict=True)
        return all(bool(a.any()) for a, moved in groups if (moved > 0).any())

    def steps_above_rounding(self, control: _Path) -> int:
        """For how many steps a small disturbance stays small."""
        lost = (self.gap(control) > 0.01 * self.travel() + 1e-9).any(1).tolist()
        return lost.index(True) - 1 if True in lost else len(lost) - 1

    def parts_from(self, other: _Path, control: _Path, steps: int) -> bool:
        """Whether it leaves another path by more than rounding lets the disturbed copy of that leave it."""
        precision = 1e-6 if self.dtype == torch.float64 else 1e-3
        allowed = precision * other.travel() + 10 * other.gap(control) + 1e-15
        return not bool((self.gap(other) <= allowed)[: steps + 1].all())  # NaN is no agreement

    def _by_parameter(self, differences: Tensor) -> Tensor:
        parts = differences.abs().split([size for sizes in self.sizes for size in sizes], dim=1)
        return torch.stack([part.amax(1) if part.numel() else part.sum(1) for part in parts], dim=1)


def _flat(parameters: list[Tensor]) -> Tensor:
    real = [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in parameters]
    return torch.cat([p.reshape(-1).double().cpu() for p in real])


def _memory(optimizer: Optimizer) -> list[Any]:
    """All that an optimizer remembers but the parameters themselves."""
    parameters = _parameters(optimizer)
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    rest = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
    attributes = {
        key: value
        for key, value in vars(optimizer).items()
        if key not in _NOT_COPIED and not key.startswith("_optimizer_")
    }
    return [*(optimizer.state.get(p) for p in parameters), groups, rest, attributes]


def _same_memory(one: _Path, two: _Path, control: _Path) -> bool:
    return _same(one.memory, two.memory, control.memory, set())


def _same(one: Any, two: Any, control: Any, seen: set[int]) -> bool:
    """Whether two memories agree as far as rounding lets the control agree with the first."""
    if isinstance(one, Tensor):
        if not isinstance(two, Tensor) or one.shape != two.shape:
            return False
        if one.numel() == 0:
            return True
        first, second = one.detach().to(torch.complex128), two.detach().to(torch.complex128)
        rounding = 0.0
        if isinstance(control, Tensor) and control.shape == one.shape:
            rounding = float((control.detach().to(torch.complex128) - first).abs().max())
        precision = 1e-6 if one.dtype in (torch.float64, torch.complex128) else 1e-3
        allowed = precision * float(first.abs().max()) + 10 * rounding
        return bool((first - second).abs().max() <= allowed)
    if isinstance(one, float) and isinstance(two, float):
        rounding = abs(one - control) if isinstance(control, float) else 0.0
        return math.isclose(one, two, rel_tol=1e-6, abs_tol=10 * rounding) or (math.isnan(one) and math.isnan(two))
    if isinstance(one, _PLAIN):
        return bool(one == two)
    if id(one) in seen:
        return True
    seen.add(id(one))
    if isinstance(one, dict):
        # Keys may be parameters: a toy's are its own, and the order is the same.
        controls = (
            list(control.values()) if isinstance(control, dict) and len(control) == len(one) else [None] * len(one)
        )
        return (
            isinstance(two, dict)
            and len(one) == len(two)
            and all(_same(a, b, c, seen) for a, b, c in zip(one.values(), two.values(), controls, strict=True))
        )
    if isinstance(one, (list, tuple)):
        controls = (
            list(control) if isinstance(control, (list, tuple)) and len(control) == len(one) else [None] * len(one)
        )
        return len(one) == len(two) and all(map(_same, one, two, controls, itertools.repeat(seen)))
    if isinstance(one, np.ndarray):
        return _same(torch.from_numpy(one), torch.from_numpy(two), None, seen)
    if hasattr(one, "__dict__") and not isinstance(one, (types.FunctionType, type, Optimizer, nn.Module)):
        return type(one) is type(two) and _same(vars(one), vars(two), getattr(control, "__dict__", None), seen)
    return True  # functions, generators and the like: nothing that could be compared


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


# Leaving the process as it was


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Foreign code runs under torch's usual settings; it moves no generator, warns of nothing and prints nothing."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    # Only where it is needed: it slows every operation down.
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
    """The same random numbers for every toy."""
    torch.default_generator.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)

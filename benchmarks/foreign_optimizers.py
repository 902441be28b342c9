"""Whether flatwise's verdict on foreign optimizers is right: every optimizer class of some packages against an oracle.

The verdict is what ``flatwise.perturb`` says about a tensor scope. The oracle is real training: a small network, 40
steps, with ``Constant(c)`` at tensor scope and, beside it, plain training at c · η, for c = 1/2 and 2 and η = 0.01, 0.3
and the class's own default. The parameters and everything in ``state_dict`` must agree. Nothing of the measurement
behind the verdict is used.

    python benchmarks/foreign_optimizers.py pytorch_optimizer torch_optimizer heavyball

prints one line per class and the counts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import io
import itertools
import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import flatwise

STEPS = 40
FACTORS = (0.5, 2.0)
CANNOT = "cannot be trained here"
WAYS = ("plain", "closure", "graph", "graph closure")


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Two layers, filled without a generator."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).to(dtype)
    with torch.no_grad():
        for position, p in enumerate(model.parameters()):
            p.copy_(
                torch.sin(torch.arange(p.numel(), dtype=torch.float64) * 1.3 + position).reshape(p.shape) * 0.5 + 0.1
            )
    return model


def loss(model: nn.Module, step: int) -> Tensor:
    """A loss that changes from step to step."""
    inputs = torch.sin(torch.arange(32, dtype=torch.float64) * 0.9 + 0.3 * step).reshape(8, 4)
    inputs = inputs.to(next(model.parameters()).dtype)
    return (model(inputs) - torch.cos(2 * inputs)).square().mean()


def train(
    make,
    rate: float,
    way: str,
    dtype: torch.dtype,
    *,
    factor: float = 1.0,
    perturbed: bool = False,
    shaken: bool = False,
    late: bool = False,
):
    """Parameters and state after training at factor · rate (``late``: from the second step), or under ``Constant``."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = network(dtype)
    optimizer = make(model)
    if shaken:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(
                    1
                    + 2
                    * torch.finfo(dtype).eps
                    * torch.sin(torch.arange(p.numel(), dtype=dtype)).sign().reshape(p.shape)
                )
    start = [p.detach().clone() for p in model.parameters()]
    set_rate(optimizer, rate if perturbed or late else rate * factor)
    if perturbed:
        with mock.patch("flatwise._attach.perturbing.check_supported", return_value=1):
            handle = flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(factor), "tensor"))
    if callable(switch := getattr(optimizer, "train", None)):
        switch()
    for step in range(STEPS):
        if late and step == 1:
            set_rate(optimizer, rate * factor)

        def closure():
            model.zero_grad()
            value = loss(model, step)  # noqa: B023
            value.backward(create_graph="graph" in way)
            return value

        if "closure" in way:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    if perturbed:
        handle.remove()
    saved = optimizer.state_dict()
    used = (rate, rate * factor)  # a group may keep the rate under other names too
    groups = [
        {k: v for k, v in group.items() if k != "params" and not any(is_number(v, r) for r in used)}
        for group in saved["param_groups"]
    ]
    return [p.detach() for p in model.parameters()], start, [saved["state"], groups]


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Sets the rate of all groups, as a scheduler does."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].fill_(rate) if isinstance(group.get("lr"), Tensor) else rate


def is_number(value, number: float) -> bool:
    """Whether a value is this number."""
    one = isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
    return one and math.isclose(value, number, rel_tol=1e-6)


def numbers(thing) -> list[Tensor]:
    """All numbers in a nested structure, as float64 tensors."""
    if isinstance(thing, Tensor):
        return [thing.detach().double().reshape(-1)]
    if isinstance(thing, (bool, int, float)):
        return [torch.tensor([float(thing)], dtype=torch.float64)]
    if isinstance(thing, dict):
        return [number for value in thing.values() for number in numbers(value)]
    if isinstance(thing, (list, tuple)):
        return [number for value in thing for number in numbers(value)]
    return numbers(vars(thing)) if hasattr(thing, "__dict__") and not callable(thing) else []


def agree(expected, found, control) -> bool:
    """Whether two trainings agree, as far as rounding lets the control agree with the first."""
    precision = 1e-6 if expected[0][0].dtype == torch.float64 else 1e-3
    (p, start, memory), (q, _, other), (r, _, third) = expected, found, control
    for one, old, two, c in zip(p, start, q, r, strict=True):
        if not (one - two).abs().max() <= precision * (one - old).abs().max() + 10 * (one - c).abs().max() + 1e-14:
            return False
    one, two, three = numbers(memory), numbers(other), numbers(third)
    if [t.shape for t in one] != [t.shape for t in two]:
        return False
    for a, b, c in zip(one, two, three, strict=True):
        if a.numel() and not torch.equal(a, b):
            rounding = (a - c).abs().max() if a.shape == c.shape else 0.0
            if not (a - b).abs().max() <= 10 * precision * a.abs().max() + 10 * rounding:
                return False
    return True


def makers(cls: type[Optimizer]):
    """Ways of calling the constructor."""
    for options in ({"lr": 0.01}, {}):
        yield lambda model, options=options: cls(list(model.parameters()), **options)
        yield lambda model, options=options: cls(list(model.named_parameters()), **options)
        yield lambda model, options=options: cls(model, **options)
    yield lambda model: cls([{"params": list(model.parameters()), "use_muon": False}])
    yield lambda model: cls(torch.optim.SGD(model.parameters(), lr=0.01))
    yield lambda model: cls(list(model.parameters()), torch.optim.SGD, lr=0.01)


def wraps(optimizer: Optimizer) -> bool:
    """Whether it holds another optimizer."""
    return any(isinstance(value, Optimizer) for value in vars(optimizer).values())


@dataclass(frozen=True)
class Truth:
    """What the oracle says about a class.

    Attributes:
        make: makes such an optimizer of a model; ``None`` if it cannot be trained here.
        reason: why it cannot.
        is_wrapper: whether it holds other optimizers.
        is_linear: whether a factor after the step is a factor of the rate.
        acts: whether its rate makes a difference after the first step.
    """

    make: Callable[[nn.Module], Optimizer] | None
    reason: str = ""
    is_wrapper: bool = False
    is_linear: bool = False
    acts: bool = False


def oracle(cls: type[Optimizer]) -> Truth:
    """Trains a class in the way that it can be trained."""
    errors = []
    for make in makers(cls):
        try:
            optimizer = make(network())
            if wraps(optimizer):
                return Truth(make, is_wrapper=True)
            default = float(optimizer.param_groups[0].get("lr") or 0.01)
        except Exception as error:
            errors.append(error)
            continue
        for dtype, way in itertools.product((torch.float64, torch.float32), WAYS):
            try:
                plain, start, _ = train(make, 0.01, way, dtype)
            except Exception as error:
                errors.append(error)
                continue
            if not all(torch.isfinite(p).all() for p in plain) or all(map(torch.equal, plain, start)):
                continue
            if dtype == torch.float64 and all(torch.equal(p, p.float().double()) for p in plain):
                continue  # it computes in float32, and is to be judged by float32's rounding
            rates = dict.fromkeys((0.01, min(max(default, 1e-4), 1.0), 0.3))
            return Truth(make, is_linear=is_linear(make, way, dtype, list(rates)), acts=acts(make, way, dtype))
    return Truth(None, f"{type(errors[0]).__name__}: {errors[0]}" if errors else "it does not move")


def is_linear(make, way: str, dtype: torch.dtype, rates: list[float]) -> bool:
    """Whether ``Constant(c)`` is training at c · η, at every rate that training survives."""
    for rate, factor in itertools.product(rates, FACTORS):
        try:
            expected = train(make, rate, way, dtype, factor=factor)
            control = train(make, rate, way, dtype, factor=factor, shaken=True)
        except Exception:
            continue
        if all(torch.isfinite(p).all() for p in expected[0]):
            try:
                found = train(make, rate, way, dtype, factor=factor, perturbed=True)
            except Exception:
                return False
            if not agree(expected, found, control):
                return False
    return True


def acts(make, way: str, dtype: torch.dtype) -> bool:
    """Whether twice the rate from the second step on leads elsewhere."""
    plain, start, _ = train(make, 0.01, way, dtype)
    other, _, _ = train(make, 0.01, way, dtype, factor=2.0, late=True)
    return any(
        bool((a - b).abs().max() > 1e-3 * (a - old).abs().max()) for a, b, old in zip(plain, other, start, strict=True)
    )


def verdict(make, scope: str) -> str:
    """What flatwise says."""
    optimizer = make(network())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            flatwise.perturb(optimizer, flatwise.Perturbation(flatwise.Constant(0.5), scope))
        except Exception as error:
            unseen = "could not" in str(error) or "cannot be seen" in str(error)
            return ("unmeasured: " if unseen else "refused: ") + str(error)
    return "unmeasured: warned" if any("flatwise could not" in str(w.message) for w in caught) else "accepted"


def judged(said: str, truth: bool) -> str:
    """Whether a verdict is right."""
    word = said.split(":")[0]
    return word if word == "unmeasured" else word + (" rightly" if (word == "accepted") == truth else " WRONGLY")


def judge(cls: type[Optimizer]) -> tuple[str, str, str]:
    """A class's verdicts at scope tensor and at scope all, each against the oracle; and what flatwise said."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = oracle(cls)
        if truth.make is None:
            return CANNOT, CANNOT, truth.reason
        fine, coarse = verdict(truth.make, "tensor"), verdict(truth.make, "all")
    if truth.is_wrapper:
        kind = "wrapper, refused" if fine.startswith("refused") and coarse.startswith("refused") else "wrapper LET IN"
        return kind, kind, fine
    return judged(fine, truth.is_linear), judged(coarse, truth.acts), fine


def classes(name: str) -> list[type[Optimizer]]:
    """The optimizer classes of a module."""
    module = importlib.import_module(name)
    found = {value for value in vars(module).values() if inspect.isclass(value) and issubclass(value, Optimizer)}
    mine = [
        c
        for c in found
        if c is not Optimizer and not c.__module__.startswith("torch.optim") and not inspect.isabstract(c)
    ]
    return sorted(mine, key=lambda c: c.__name__)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="+")
    parser.add_argument("--only", nargs="*", default=None, help="names of classes")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.compiler.set_stance("force_eager")  # some compile their steps, which takes minutes
    for name in options.modules:
        counts = Counter(), Counter()
        for cls in classes(name):
            if options.only and cls.__name__ not in options.only:
                continue
            started = time.perf_counter()
            fine, coarse, said = judge(cls)
            seconds = time.perf_counter() - started
            for count, kind in zip(counts, (fine, coarse), strict=True):
                count[kind] += 1
            print(f"{name:18} {cls.__name__:24} {fine:22} {coarse:22} {seconds:6.1f} s  {said[:200]}", flush=True)
        for scope, count in zip(("tensor", "all"), counts, strict=True):
            print(f"{name}, scope {scope}: {sum(count.values())} classes: {dict(sorted(count.items()))}", flush=True)


if __name__ == "__main__":
    main()

"""Measure on toy copies whether a foreign optimizer can be perturbed.

Two trainings of 30 steps or more, with a factor f that changes from step to step, must agree in every parameter and in
all of the optimizer's state: one scales every update by f afterwards, the other runs at the rates η · f.
"""

from __future__ import annotations

import itertools
import math
import types
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatwise._attach.parameters import parameters_of
from flatwise._attach.toy import BUILDS, FEEDS, NOT_COPIED, PLAIN, Form, Path, steps_to_see, undisturbed

RATES = (1e-3, 0.3)  # not the present rate alone: at a warm-up's 0 or 1e-8 every optimizer looks linear
FACTORS = (0.5, 1.0, 2.0, 0.75, 1.5, 0.125)  # the first is not 1, because some set up their state with the first rate
LATER_FACTORS = (1.0, *FACTORS[1:])  # some read only the first rate: then these change nothing
STEPS_OF_16_BITS = 60
FACTOR_OF_16_BITS = 0.6


@dataclass(frozen=True)
class Measurement:
    """What the toy copies showed: reasons against perturbing, each ``None`` (the default) if it does not apply.

    Attributes:
        inert: why noise in the learning rate would do nothing.
        compounding: why noise in the learning rate would stay in it.
        nonlinear: why scaling the update afterwards is not training at another learning rate.
        failed: why nothing could be measured.
    """

    inert: str | None = None
    compounding: str | None = None
    nonlinear: str | None = None
    failed: str | None = None


class _Failure(Exception):
    """Nothing could be measured; the message says why."""


def measure(optimizer: Optimizer) -> Measurement:
    """Train toy copies of an optimizer and compare them.

    The optimizer, its parameters and all random number generators are left as they are. The result does not depend on
    the generators' state, and depends on the present learning rate only if that lies outside ``RATES``.

    Args:
        optimizer: any ``torch.optim.Optimizer`` whose groups all have an ``"lr"``.
    """
    try:
        with undisturbed():
            return _measure(optimizer)
    except _Failure as failure:
        return Measurement(failed=str(failure))
    except Exception as error:  # whatever foreign code raises
        return Measurement(failed=_in_words(error))


def _measure(optimizer: Optimizer) -> Measurement:
    form, plain = _working_form(optimizer)
    if not plain.moves():
        return Measurement(inert="its step does not change the parameters")
    changed = plain.positions[-1][plain.positions[-1] != plain.positions[0]]
    if form.dtype == torch.float64 and torch.equal(changed, changed.float().double()):
        form = replace(form, dtype=torch.float32)  # it computes in float32: its rounding would look like nonlinearity
        plain = form.train(RATES[0])
    again = form.train(RATES[0])
    if not again.is_finite() or bool((again.gap(plain) > 1e-9 * again.travel()).any()):
        raise _Failure("it is not deterministic: two equal copies differ")
    if not _acts(form, plain):
        return Measurement(inert="another learning rate in its param_groups makes the same update")
    compounding: str | None = None
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
            continue  # it fails at this rate, but not at the first one
        if rate == RATES[0] and not _same_rates(plain, at_rates):
            compounding = "it computes its next learning rate from the present one"
        if not (at_rates.is_finite() and control.is_finite()):
            continue
        steps = _steps_above_rounding(at_rates, control)
        compared = max(compared, steps)
        share = _difference(at_rates, afterwards, control, steps)
        if share is not None:
            nonlinear = nonlinear or (
                f"scaling its update is not training at another learning rate (at rates near {rate:g}, within "
                f"{form.steps} steps, the two differ by {min(share, 9.99):.2g} times the distance travelled)"
            )
        elif nonlinear is None and steps == form.steps and not _same_memory(at_rates, afterwards, control):
            nonlinear = "its state depends on the learning rate"
    if compared < form.steps // 2 and nonlinear is None:
        nonlinear = "rounding errors alone change its steps so much that its linearity cannot be seen"
    if nonlinear is None:
        nonlinear = _lost_in_rounding(optimizer, form, plain)
    return Measurement(nonlinear=nonlinear, compounding=compounding)


def _working_form(optimizer: Optimizer) -> tuple[Form, Path]:
    """The first form of toy that can be trained and moves, and its training.

    Raises:
        _Failure: no form can be trained, or its steps are not finite.
    """
    devices = dict.fromkeys(
        [torch.device("cpu"), *(p.device for p in parameters_of(optimizer) if p.device.type != "meta")]
    )
    steps = steps_to_see(optimizer)
    first_error: Exception | None = None
    idle: tuple[Form, Path] | None = None
    for device, dtype, build, feed in itertools.product(devices, (torch.float64, torch.float32), BUILDS, FEEDS):
        form = Form(optimizer, device, dtype, build, feed, steps)
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


def _acts(form: Form, plain: Path) -> bool:
    """Whether the learning rate still has an effect after the first step, in every group that moves at all.

    At a small or else at a large rate.
    """
    for rate in RATES:
        unscaled = plain if rate == RATES[0] else form.train(rate)
        scaled, control = form.train(rate, LATER_FACTORS), form.train(rate, LATER_FACTORS, shaken=True)
        gaps, rounding, travel = unscaled.gap(scaled).amax(0), scaled.gap(control).amax(0), unscaled.travel()[-1]
        acts = (gaps > 1e-3 * travel) & (gaps > 10 * rounding)
        by_group = [len(sizes) for sizes in unscaled.sizes]
        groups = zip(torch.split(acts, by_group), torch.split(travel, by_group), strict=True)
        if all(bool(own.any()) for own, moved in groups if (moved > 0).any()):
            return True
    return False


def _same_rates(one: Path, two: Path) -> bool:
    """Whether two trainings leave the same rates in the groups, as with and without noise they must."""
    rates = ([float(group["lr"]) for group in path.toy.param_groups] for path in (one, two))
    return all(math.isclose(first, second, rel_tol=1e-6) for first, second in zip(*rates, strict=True))


def _rates(optimizer: Optimizer) -> list[float]:
    present = max(float(group["lr"]) for group in optimizer.param_groups)
    beyond = not min(RATES) <= present <= max(RATES) and 1e-6 <= present <= 10.0
    return [*RATES, present] if beyond else list(RATES)


def _steps_above_rounding(path: Path, control: Path) -> int:
    """Number of steps for which a disturbance of the size of rounding stays small."""
    lost = (path.gap(control) > 0.01 * path.travel() + 1e-9).any(1).tolist()
    return lost.index(True) - 1 if True in lost else len(lost) - 1


def _difference(path: Path, other: Path, control: Path, steps: int) -> float | None:
    """Largest distance of another path, as a share of the path's travel; ``None`` if rounding explains it.

    The effect of rounding is measured by the path's disturbed copy, ``control``.
    """
    gap, travel, rounding = (distance[: steps + 1] for distance in (other.gap(path), path.travel(), path.gap(control)))
    if bool((gap <= _precision(other.dtype) * travel + 10 * rounding + 1e-15).all()):
        return None
    return float((gap / travel.clamp(min=1e-30)).nan_to_num(math.inf)[1:].amax())


def _precision(dtype: torch.dtype) -> float:
    """Relative tolerance of two trainings that differ only by rounding errors."""
    return 1e-6 if dtype in (torch.float64, torch.complex128) else 1e-3


def _lost_in_rounding(optimizer: Optimizer, form: Form, plain: Path) -> str | None:
    """Why an optimizer with 16-bit parameters would undo a factor together with the rounding; ``None`` if it does not.

    Steps of a quarter of the parameters' spacing vanish when they are added. An optimizer that still moves keeps the
    lost part (or the whole parameter) elsewhere, and recovers what scaling the update takes away.
    """
    dtypes = {p.dtype for p in parameters_of(optimizer)} & {torch.float16, torch.bfloat16}
    for dtype in sorted(dtypes, key=str):
        spacing = torch.finfo(dtype).eps
        low = replace(form, dtype=dtype)
        rate = RATES[0] * spacing / 4 / float(plain.positions.diff(dim=0).abs().max())
        try:
            at_rate = low.train(rate, (FACTOR_OF_16_BITS,), steps=STEPS_OF_16_BITS)
            afterwards = low.train(rate, (FACTOR_OF_16_BITS,), steps=STEPS_OF_16_BITS, afterwards=True)
        except Exception as error:
            return f"it could not be tried with parameters of {dtype} ({_in_words(error)})"
        if not (at_rate.gap(afterwards)[-1] <= 1.5 * spacing).all():
            return (
                f"it makes up for what rounding to {dtype} loses (compensated summation, stochastic rounding or a "
                "float32 copy of the parameters), and would undo the noise as it undoes rounding"
            )
    return None


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().rstrip(":").split("\n")[0]


# Comparing state


def _same_memory(one: Path, two: Path, control: Path) -> bool:
    # One set for all: an option may be, by chance, a rate of one training and not of the other.
    rates = {*one.rates, *two.rates, *control.rates}
    return _same(_memory(one, rates), _memory(two, rates), _memory(control, rates), set())


def _memory(path: Path, rates: set[float]) -> list[Any]:
    """An optimizer's whole state: all but the parameters, with a placeholder for numbers that are one of the rates."""
    optimizer = path.toy
    groups = [
        {key: _unless_rate(value, rates) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    rest = {key: value for key, value in optimizer.state.items() if not isinstance(key, Tensor)}
    attributes = {
        key: value
        for key, value in vars(optimizer).items()
        if key not in NOT_COPIED and not key.startswith("_optimizer_")
    }
    return [*(optimizer.state.get(p) for p in parameters_of(optimizer)), groups, rest, attributes]


def _unless_rate(value: Any, rates: set[float]) -> Any:
    is_number = isinstance(value, float) or (isinstance(value, Tensor) and value.numel() == 1)
    return "the rate" if is_number and any(math.isclose(value, rate, rel_tol=1e-6) for rate in rates) else value


def _same(one: Any, two: Any, control: Any, seen: set[int]) -> bool:
    """Whether two states agree up to rounding, which is measured by the control's distance from the first."""
    if isinstance(one, np.ndarray):
        one, two, control = torch.from_numpy(one), torch.from_numpy(two), None
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.shape == two.shape and _are_close(one, two, control)
    if isinstance(one, float) and isinstance(two, float):
        rounding = abs(one - control) if isinstance(control, float) else 0.0
        return math.isclose(one, two, rel_tol=1e-6, abs_tol=10 * rounding) or (math.isnan(one) and math.isnan(two))
    if isinstance(one, PLAIN):
        return bool(one == two)
    if id(one) in seen:
        return True
    seen.add(id(one))
    parts, others, controls = map(_parts, (one, two, control))
    if parts is None:
        return True  # functions, generators and the like cannot be compared
    if others is None or len(parts) != len(others) or type(one) is not type(two):
        return False
    if controls is None or len(controls) != len(parts):
        controls = [None] * len(parts)
    return all(map(_same, parts, others, controls, itertools.repeat(seen)))


def _parts(thing: Any) -> list[Any] | None:
    """What a container or an object holds, in order; ``None`` if it is neither."""
    if isinstance(thing, dict):
        return list(thing.values())  # keys may be parameters: a toy's are its own, and the order is the same
    if isinstance(thing, (list, tuple)):
        return list(thing)
    if hasattr(thing, "__dict__") and not isinstance(thing, (types.FunctionType, type, Optimizer, nn.Module)):
        return list(vars(thing).values())
    return None


def _are_close(one: Tensor, two: Tensor, control: Any) -> bool:
    if one.numel() == 0:
        return True
    first, second = one.detach().to(torch.complex128), two.detach().to(torch.complex128)
    rounding = 0.0
    if isinstance(control, Tensor) and control.shape == one.shape:
        rounding = float((control.detach().to(torch.complex128) - first).abs().max())
    # Compensated summation remembers rounding errors of parameters, which are near 1: those need not agree.
    smallest = 16 * torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
    allowed = _precision(one.dtype) * float(first.abs().max()) + 10 * rounding + smallest
    return bool((first - second).abs().max() <= allowed)

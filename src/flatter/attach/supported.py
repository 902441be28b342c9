"""Which optimizers can be perturbed: those whose update is linear in the learning rate.

Scaling the update by f afterwards is training with the rate η · f only where the update is η · u and the optimizer's
memory (momentum, second moments) does not depend on η. For torch's own optimizers that is known and tested; for any
other it is measured on a toy copy when a perturbation is attached.
"""

from __future__ import annotations

import copy
import types
import warnings
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_REFUSED = {
    "ASGD": "it keeps a rate of its own that the next steps use, so a factor would act late and again",
    "Rprop": "the rate is only the first step size; after that it adapts its own",
    "LBFGS": "it searches along a line, so the rate is not the length of its step",
    "Adafactor": "it caps the rate by its own schedule, so the update is not proportional to the rate",
}
_LINEAR = (
    "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "RAdam", "RMSprop", "SGD", "SparseAdam",
)  # fmt: skip


KNOWN, MEASURED, UNMEASURED = range(3)


def check_supported(optimizer: Optimizer, *, per_element: bool, known: int | None = None) -> int:
    """Refuses an optimizer that a perturbation would not do justice to.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        per_element: whether some perturbation is finer than a parameter group, so that updates are scaled afterwards.

    Raises:
        ValueError: its update is not linear in the rate (known, or measured on a toy copy), or is made where flatter
            cannot see whose element is whose.
    """
    name = type(optimizer).__name__
    for base in filter(_is_torchs, type(optimizer).__mro__):
        if base.__name__ in _REFUSED:
            raise ValueError(
                f"{name} cannot be perturbed: {_REFUSED[base.__name__]}. "
                "Use an optimizer whose update is linear in the learning rate, such as SGD or AdamW"
            )
    if getattr(optimizer, "_overlap_with_ddp", False):  # ZeroRedundancyOptimizer
        raise ValueError(
            f"{name} with overlap_with_ddp=True cannot be perturbed: it updates inside the backward pass, and its step "
            "does nothing. Use overlap_with_ddp=False"
        )
    for attribute, value in vars(optimizer).items():
        # torch's own wrapper, ZeroRedundancyOptimizer, passes the rate on to the inner one.
        if isinstance(value, Optimizer) and not type(optimizer).__module__.startswith("torch."):
            raise ValueError(
                f"{name} wraps another optimizer as its attribute {attribute!r}, which does the steps: perturb that one"
            )
    is_known = (_is_torchs(type(optimizer)) or _is_ours(type(optimizer))) and name in _LINEAR
    if not per_element:
        return KNOWN if is_known else UNMEASURED
    reason = _lost_elements(optimizer)
    if reason is not None:
        raise ValueError(
            f"{name} cannot be perturbed per element, channel or tensor: {reason}. "
            "Use torch.distributed.fsdp.fully_shard (FSDP2), or a perturbation with scope 'all' or 'group'"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(
            "differentiable=True cannot be perturbed per element: the update is scaled in place afterwards"
        )
    if is_known:
        return KNOWN
    if known:
        return known
    reason = nonlinearity(optimizer)
    if reason is not None:
        raise ValueError(
            f"{name} cannot be perturbed per element, channel or tensor: {reason}, "
            "measured on a toy copy. Use a perturbation with scope 'all' or 'group', or another optimizer"
        )
    return MEASURED


def _lost_elements(optimizer: Optimizer) -> str | None:
    """Why the place of an element in its whole tensor cannot be known from this process, or ``None`` if it can."""
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        return "it steps an inner optimizer that holds other parameters, at other positions, on every rank"
    # FSDP1 marks its flat parameters, and with use_orig_params=True the parameters that are views of them.
    marks = ("_is_flat_param", "_fsdp_flattened")
    if any(getattr(parameter, mark, False) for parameter in _parameters(optimizer) for mark in marks):
        return "FullyShardedDataParallel (FSDP1) flattens parameters, and a rank's part does not know where it lies"
    return None


def _is_torchs(cls: type) -> bool:
    return f"{cls.__module__}.".startswith("torch.optim.")  # Muon's and Adafactor's module is torch.optim itself


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("flatter.optim.")


def nonlinearity(optimizer: Optimizer) -> str | None:
    """Measures whether an optimizer's update is linear in the rate and its memory independent of it.

    A toy optimizer of the same class and options takes a few steps in float64; then two copies of it take one more,
    with rates η and 2η. The second must move twice as far, and both must remember the same.

    Returns:
        What is wrong, in words, or ``None`` if nothing is. If the toy cannot be run, it warns and returns ``None``.
    """
    try:
        toy = _toy(optimizer)
        for count in range(1, 4):
            _toy_step(toy, count)
        single, double = (_like(toy, *copy.deepcopy((toy.param_groups, toy.state))) for _ in range(2))
        before = [p.detach().clone() for p in _parameters(toy)]
        for group in double.param_groups:
            group["lr"] = group["lr"] * 2
        _toy_step(single, 4)
        _toy_step(double, 4)
    except Exception as error:
        warnings.warn(
            f"flatter could not check that the update of {type(optimizer).__name__} is linear in the learning rate "
            f"({type(error).__name__}: {error}); if it is not, the noise is not what the method says",
            stacklevel=4,
        )
        return None
    for old, one, two in zip(before, _parameters(single), _parameters(double), strict=True):
        if not torch.allclose(two - old, 2 * (one - old), rtol=1e-4, atol=1e-12):
            return "twice the learning rate is not twice the update"
    if not _same(_memory(single), _memory(double)):
        return "its state depends on the learning rate"
    return None


def _toy(optimizer: Optimizer) -> Optimizer:
    """An optimizer of the same class and options over tiny parameters of the same dimensions."""
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        options = {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        options["lr"] = float(options.get("lr") or 1e-3)
        for flag in ("capturable", "fused", "foreach"):  # speed, not meaning; some need the real device
            if flag in options:
                options[flag] = False
        shapes = {tuple(min(size, 3) for size in p.shape) for p in group["params"]}
        options["params"] = [_filled(shape, 1.0).requires_grad_() for shape in sorted(shapes)]
        options.pop("param_names", None)
        groups.append(options)
    toy = _like(optimizer, groups, defaultdict(dict))
    if callable(switch := getattr(toy, "train", None)):  # schedule-free optimizers refuse to step outside training
        switch()
    return toy


def _like(optimizer: Optimizer, groups: list[dict[str, Any]], state: defaultdict[Tensor, Any]) -> Optimizer:
    """An optimizer of the same class and options over other parameters; its constructor is not needed."""
    other = type(optimizer).__new__(type(optimizer))
    vars(other).update({key: value for key, value in vars(optimizer).items() if _is_option(value)})
    other.__setstate__({"defaults": copy.deepcopy(optimizer.defaults), "state": state, "param_groups": groups})
    return other


def _is_option(value: object) -> bool:
    """Whether a class may have put this outside its groups as an option, and no real tensor is reached through it."""
    if isinstance(value, types.FunctionType):
        return value.__closure__ is None
    return isinstance(value, (int, float, str))


def _filled(shape: tuple[int, ...], phase: float) -> Tensor:
    """A deterministic tensor without zeros or symmetry; no random state is touched."""
    count = max(1, torch.Size(shape).numel())
    return (torch.sin(torch.arange(count, dtype=torch.float64) + phase) + 0.1).reshape(shape)


def _toy_step(toy: Optimizer, count: int) -> None:
    def closure() -> float:
        for p in _parameters(toy):
            p.grad = _filled(tuple(p.shape), float(count))
        return 1.0 / count

    closure()
    try:
        toy.step()
    except TypeError:
        toy.step(closure)


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _memory(optimizer: Optimizer) -> list[Any]:
    """All that the optimizer remembers but the rate and the parameters themselves."""
    groups = [
        {key: value for key, value in group.items() if key not in ("params", "lr")} for group in optimizer.param_groups
    ]
    return [*(optimizer.state[p] for p in _parameters(optimizer)), *groups]


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(two, Tensor) and one.shape == two.shape and torch.allclose(one, two, rtol=1e-9, atol=0)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(_same(value, two[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(_same, one, two))
    return bool(one == two)

"""Which optimizers can be perturbed: those whose update is linear in the learning rate.

Scaling the update by f afterwards equals training at the rate η · f only if the update is η · u and the optimizer's
state (momentum, second moments) does not depend on η. For torch's own optimizers this is known and tested; any other
optimizer is measured on toy copies when a perturbation is attached (``probe.py``).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

from flatwise._attach.parameters import flattened, is_deepspeeds, parameters_of
from flatwise._attach.probe import measure

# How it is known that an optimizer can be perturbed; kept in checkpoints, so the numbers must not change.
KNOWN, MEASURED, UNMEASURED = range(3)

_REFUSED = {
    "ASGD": "it keeps its own rate for the next steps, so a factor would act late and more than once",
    "Rprop": "the learning rate is only the first step size; after that it adapts its own",
    "LBFGS": "it searches along a line, so the learning rate is not the length of its step",
}
_REFUSED_PER_ELEMENT = {
    "Adafactor": "it caps the rate by its own schedule, so the update is not proportional to the rate",
}
_LINEAR = (
    "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Muon", "NAdam", "RAdam", "RMSprop", "SGD", "SparseAdam",
)  # fmt: skip
_PER_ELEMENT = " cannot be perturbed per element, channel or tensor"
_ANOTHER = "Use a perturbation with scope 'all' or 'group', or another optimizer, such as SGD or AdamW"


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer that Accelerate's ``prepare`` wrapped, or the optimizer itself."""
    while _is_accelerates(optimizer):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


def keep_step(optimizer: Optimizer) -> None:
    """Make Accelerate's wrapper use the present ``step``: with a GradScaler it restores the one it saved."""
    while _is_accelerates(optimizer):
        optimizer.__setstate__({})  # nothing else makes it look up ``step`` again
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]


def _is_accelerates(optimizer: Optimizer) -> bool:
    return any(
        (base.__module__, base.__name__) == ("accelerate.optimizer", "AcceleratedOptimizer")
        for base in type(optimizer).__mro__
    )


def check_supported(optimizer: Optimizer, *, per_element: bool, known: int | None = None) -> int:
    """Raise if noise in the optimizer's learning rate would not have the effect that the perturbation promises.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        per_element: whether some perturbation is finer than a parameter group, so that updates are scaled afterwards.
        known: what this function returned earlier for the same optimizer, its copy or its checkpoint, to save the
            measurement. ``UNMEASURED`` does not save it with ``per_element``. Default: ``None``, not known.

    Returns:
        ``KNOWN`` (by name), ``MEASURED`` (to be linear in the learning rate) or ``UNMEASURED`` (only for coarse
        perturbations).

    Raises:
        ValueError: the learning rate has no effect, or the optimizer wraps others or steps its parameters one by one;
            with ``per_element``, the update is not linear in the learning rate, could not be measured, or this process
            cannot tell which elements it holds.

    Warns:
        UserWarning: it could not be measured whether the learning rate has an effect (without ``per_element``).
    """
    name = type(optimizer).__name__
    for refusal in itertools.chain(_refusals(optimizer), _refusals_per_element(optimizer) if per_element else ()):
        raise ValueError(f"{name}{refusal}")
    if _is_known(optimizer, name):
        return KNOWN
    if known == MEASURED or (known == UNMEASURED and not per_element):
        return known
    return _measured(optimizer, name, per_element)


def _measured(optimizer: Optimizer, name: str, per_element: bool) -> int:
    if any(group.get("lr") is None for group in optimizer.param_groups):
        raise ValueError(
            f"{name} cannot be perturbed: a parameter group has no 'lr', so its update cannot be shown to be linear in "
            "the learning rate. Give the group an 'lr', or use another optimizer, such as SGD or AdamW"
        )
    found = measure(optimizer)
    for reason, consequence in (
        (
            found.inert,
            "noise in the rate would do nothing. Turn off its own step size or its update in the backward pass",
        ),
        (found.compounding, "noise would stay in the rate. Switch its own schedule off and use a scheduler"),
    ):
        if reason is not None:
            raise ValueError(
                f"{name} cannot be perturbed: {reason} (measured on a toy copy), so {consequence}, or use another "
                "optimizer, such as SGD or AdamW"
            )
    if found.failed is None and found.nonlinear is None:
        return MEASURED
    if per_element:
        reason = f"{found.nonlinear} (measured on a toy copy)"
        if found.failed is not None:
            reason = f"flatwise could not measure whether its update is linear in the learning rate ({found.failed})"
        raise ValueError(f"{name}{_PER_ELEMENT}: {reason}. {_ANOTHER}")
    if found.failed is not None:
        warnings.warn(
            f"flatwise could not check that the learning rate of {name} acts ({found.failed}). If it does not, the "
            "noise does nothing: compare one step at two learning rates",
            stacklevel=5,
        )
    return UNMEASURED


def _is_known(optimizer: Optimizer, name: str) -> bool:
    cls = type(optimizer)
    if _is_torchs(cls):
        return name in _LINEAR or name in _REFUSED_PER_ELEMENT
    # ZeRO passes the rate on to an inner optimizer; per element it is refused.
    return cls.__module__.startswith(("flatwise.optim.", "torch.distributed.optim."))


def _refusals(optimizer: Optimizer) -> Iterator[str]:
    """Why no perturbation can act on an optimizer, to follow its name."""
    for base in _torch_bases(optimizer):
        if base in _REFUSED:
            yield (
                f" cannot be perturbed: {_REFUSED[base]}. "
                "Use an optimizer whose update is linear in the learning rate, such as SGD or AdamW"
            )
    if getattr(optimizer, "_overlap_with_ddp", False):  # ZeroRedundancyOptimizer
        yield (
            " with overlap_with_ddp=True cannot be perturbed: it updates inside the backward pass, and its step does "
            "nothing. Use overlap_with_ddp=False"
        )
    if not type(optimizer).__module__.startswith("torch."):  # ZeroRedundancyOptimizer passes the rate on
        for place in _optimizers_in(vars(optimizer), depth=4):
            yield f" wraps other optimizers (self.{place}), which do the steps: perturb those instead"
    # A step for each parameter or group would count as a step of the training.
    if any(group.get("gradient_release") for group in optimizer.param_groups):  # optimi
        yield (
            " with gradient_release=True cannot be perturbed: it steps every parameter by itself inside the backward "
            "pass. Use gradient_release=False"
        )
    parameters = parameters_of(optimizer)
    if any(hasattr(parameter, "ds_id") for parameter in parameters) or (not parameters and is_deepspeeds()):
        yield (
            " cannot be perturbed under DeepSpeed's ZeRO stage 3, which steps it once for each part of the "
            "parameters. Use torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    if len(optimizer.param_groups) > 1 and any(is_deepspeeds(parameter) for parameter in parameters):
        yield (
            f" with {len(optimizer.param_groups)} parameter groups cannot be perturbed under DeepSpeed, which steps it "
            "once for each group. Use one group, or torch.distributed.fsdp.fully_shard (FSDP2)"
        )


def _refusals_per_element(optimizer: Optimizer) -> Iterator[str]:
    """Why no perturbation finer than a parameter group can act on an optimizer, to follow its name."""
    for base in _torch_bases(optimizer):
        if base in _REFUSED_PER_ELEMENT:
            yield f"{_PER_ELEMENT}: {_REFUSED_PER_ELEMENT[base]}. {_ANOTHER}"
    lost = [reason for reason in map(flattened, parameters_of(optimizer)) if reason is not None]
    if any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__):
        lost.insert(0, "it steps an inner optimizer that holds other parameters, at other positions, on every rank")
    for reason in lost:
        yield (
            f"{_PER_ELEMENT}: {reason}. Use torch.distributed.fsdp.fully_shard (FSDP2), or a perturbation with scope "
            "'all' or 'group'"
        )
    if any(group.get("differentiable") for group in optimizer.param_groups):
        yield (
            f" with differentiable=True{_PER_ELEMENT}: the update is scaled in place. Use differentiable=False, or a "
            "perturbation with scope 'all' or 'group'"
        )


def _optimizers_in(value: Any, depth: int, place: str = "") -> Iterator[str]:
    """Where a wrapper holds the optimizers that do its steps: ``base``, ``optimizers[0]``."""
    if isinstance(value, Optimizer):
        yield place
    elif depth and isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _optimizers_in(item, depth - 1, f"{place}[{key!r}]" if place else str(key))


def _torch_bases(optimizer: Optimizer) -> list[str]:
    return [base.__name__ for base in type(optimizer).__mro__ if _is_torchs(base)]


def _is_torchs(cls: type) -> bool:
    return f"{cls.__module__}.".startswith("torch.optim.")  # Muon's and Adafactor's module is torch.optim itself

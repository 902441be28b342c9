"""The GPU's fused updates of a parameter group, and whether they can be trusted on a device."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from flatwise._attach.parameters import local_part
from flatwise._attach.step import unhooked
from flatwise.noise import gpu, reference
from flatwise.noise.blender import KernelForm
from flatwise.noise.keys import derive_keys
from flatwise.optim.launch import Update, local, readable
from flatwise.optim.triton import SUPPORTED, Group

# Lists of states that a kernel's step takes, some of which may be missing.
_STATES = {"sgd": 1, "adam": 3, "rmsprop": 3}

_ONE = torch.ones((), device="cpu")


def objection(update: Update, kernel: str, form: KernelForm) -> str | None:
    """Why the kernels for GPUs cannot do an update of plain tensors on one device, or ``None`` if they can.

    The first time that it is asked of a device, a distribution, some dtypes and options, the kernels are tried on
    small tensors there. Arguments as :func:`flatwise.optim.plans.objection`.
    """
    params = local(update.params)
    device = params[0].device
    if any(isinstance(number, Tensor) for number in update.numbers[1:]):
        return "a setting other than the learning rate is a tensor"
    columns = [local(states) for states in update.states if states]
    kinds = set()
    for param, *states in zip(params, *columns, strict=True):
        made = [state for state in states if state is not None]
        dtypes = {state.dtype for state in made} or {param.dtype}
        if param.dtype not in SUPPORTED:
            return f"a parameter is {param.dtype}; the kernels for GPUs know {SUPPORTED}"
        if len(dtypes) > 1 or not dtypes <= {param.dtype, torch.float32}:
            return f"the states of a parameter of {param.dtype} are {', '.join(sorted(map(str, dtypes)))}"
        if not all(s.device == device and s.shape == param.shape and s.is_contiguous() for s in made):
            return "a state is not shaped, placed or laid out as its parameter"
        kinds.add((param.dtype, *dtypes))
    if not gpu.works(device):
        return f"Triton's kernels cannot be used on {device}, as a warning has said"
    for dtype, state_dtype in kinds:
        if (reason := _failure(device, dtype, state_dtype, kernel, form, update.options)) is not None:
            return reason
    return None


class Plan:
    """The launches that do the updates of one group on one device, step after step.

    Args:
        update, fresh, units, kernel, form, stream: as :func:`flatwise.optim.plans.make_plan`.
    """

    def __init__(
        self, update: Update, fresh: list[bool], units: list[int], kernel: str, form: KernelForm, stream: int
    ) -> None:
        self._params = local(update.params)
        self._states = [local(states) or None for states in update.states]
        self._states += [None] * (_STATES[kernel] - len(self._states))
        self._fresh = fresh
        self._starts = [local_part(param)[1].start or 0 for param in update.params]
        self._units = units
        self._kernel = kernel
        self._options = update.options
        self._counters = update.counters
        self._device = self._params[0].device
        # The kernel reads float32 on the device. Torch may have the counters elsewhere; then they are sent each step.
        is_elsewhere = any(c.device != self._device or c.dtype != torch.float32 for c in self._counters)
        self._sent = None
        if is_elsewhere:
            self._sent = torch.empty(len(self._counters), dtype=torch.float32, device=self._device)
        self._steps = self._counters if self._sent is None else list(self._sent.unbind())
        self._group = Group(self._device, form, stream)

    def run(self, grads: list[Tensor], numbers: tuple[Any, ...], seed: int, tick: int) -> None:
        """Does an update with gradients and settings of this step, and with the factors of (seed, tick)."""
        grads = readable(grads)
        lr = numbers[0]
        if isinstance(lr, Tensor) and lr.device != self._device:
            lr = float(lr)
        settings = _arguments(self._kernel, self._options, (lr, *numbers[1:]))
        self._group.clock.set(seed, tick)
        self._count()
        if not any(self._fresh):
            self._launch(None, grads, settings)
            return
        for first in (True, False):
            rows = [row for row, fresh in enumerate(self._fresh) if fresh == first]
            self._launch(rows, grads, {**settings, "first": first})
        self._fresh = []

    def _launch(self, rows: list[int] | None, grads: list[Tensor], settings: dict[str, Any]) -> None:
        """Updates the parameters at some positions, or all."""
        columns = [self._params, grads, *self._states]
        if self._kernel == "adam":
            columns.append(self._steps)
        columns += [self._starts, self._units]
        if rows is not None:
            columns = [column if column is None else [column[row] for row in rows] for column in columns]
        getattr(self._group, self._kernel)(*columns, **settings)

    def _count(self) -> None:
        """Adds 1 to the step counters, where torch keeps them, and sends them to the device if that is elsewhere."""
        if not self._counters:
            return
        # A tensor of 1 where they are on the CPU: torch would make one for each.
        torch._foreach_add_(self._counters, _ONE if self._counters[0].device.type == "cpu" else 1)
        if self._sent is not None and self._kernel == "adam":
            now = torch.stack(self._counters).float()
            if self._device.type == "cuda" and now.device.type == "cpu":
                now = now.pin_memory()  # or the copy would wait for the device
            self._sent.copy_(now, non_blocking=True)


def _arguments(kernel: str, options: tuple[bool, ...], numbers: tuple[Any, ...]) -> dict[str, Any]:
    """An update's options and numbers by the names that ``Group`` gives them."""
    if kernel == "sgd":
        (_, nesterov, _, maximize), (lr, momentum, undamped, decay) = options, numbers
        return {
            "lr": lr, "momentum": momentum, "dampening": 1 - undamped, "weight_decay": decay,
            "nesterov": nesterov, "maximize": maximize,
        }  # fmt: skip
    if kernel == "adam":
        (_, _, decoupled, maximize), (lr, beta1, beta2, eps, decay) = options, numbers
        return {
            "lr": lr, "betas": (beta1, beta2), "eps": eps, "weight_decay": decay,
            "decoupled": decoupled, "maximize": maximize,
        }  # fmt: skip
    (*_, maximize), (lr, alpha, eps, momentum, decay) = options, numbers
    return {
        "lr": lr, "alpha": alpha, "eps": eps, "weight_decay": decay, "momentum": momentum, "maximize": maximize,
    }  # fmt: skip


# Whether the kernels can be trusted


@cache
def _failure(
    device: torch.device,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    kernel: str,
    form: KernelForm,
    options: tuple[bool, ...],
) -> str | None:
    """What is wrong with the kernels that an update would launch on a device, or ``None`` if nothing is.

    They were written without a GPU at hand, and compilers differ: nothing is taken on trust.
    """
    try:
        _check(device, dtype, state_dtype, kernel, form, options)
    except Exception as error:  # whatever a compiler, an assembler or a driver raises
        return f"the kernels for GPUs failed a first trial on {device}: {type(error).__name__}: {error}"
    return None


def _check(
    device: torch.device,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    kernel: str,
    form: KernelForm,
    options: tuple[bool, ...],
) -> None:
    """Compares two small steps with torch's own in float32, scaled by the reference's factors."""
    size, seed, unit = 1500, 3, 7
    numbers = {
        "sgd": (0.1, 0.9 * options[0], 1.0, 0.1 * options[2]),
        "adam": (0.1, 0.8, 0.9, 1e-8, 0.1 * options[1]),
        "rmsprop": (0.1, 0.8, 1e-8, 0.9 * options[0], 0.1 * options[2]),
    }[kernel]
    ramp = torch.linspace(-0.5, 0.5, size, device=device)
    param = ramp.to(dtype, copy=True)
    expected = param.to(torch.float32, copy=True)
    torchs = _torchs(kernel, options, numbers, expected)
    present = {"sgd": options[:1], "adam": (True, True, options[0]), "rmsprop": (True, *options[:2])}[kernel]
    states = tuple([torch.zeros_like(param, dtype=state_dtype)] if has else [] for has in present)
    counters = [torch.zeros((), dtype=torch.float32, device=device)] if kernel == "adam" else []
    update = Update([param], [param], states, counters, "", options, numbers)
    plan = Plan(update, [kernel == "sgd" and options[0]], [unit], kernel, form, 0)
    index = torch.arange(size, dtype=torch.int32, device=device)
    for tick in (1, 2):
        grad = (ramp.flip(0) * tick + torch.where(ramp < 0, -1.0, 1.0)).to(dtype)
        before, old = param.clone(), expected.clone()
        plan.run([grad], numbers, seed, tick)
        expected.grad = grad.float()
        unhooked(type(torchs).step)(torchs)
        k0, k1 = derive_keys(seed, tick, 0, [unit])[0].tolist()
        factor = gpu.reference_factor(form, reference.words(index, (k0, k1)))
        expected.copy_(torch.where(factor == 0, old, old + factor * (expected - old)))
        error = float(((param.float() - expected).abs() / (1 + expected.abs())).max())
        if not error <= 1e-5 + 2 * torch.finfo(dtype).eps:
            raise RuntimeError(f"step {tick} of {kernel} in {dtype} differs from torch's by {error:.1e}")
        if not torch.equal(param[factor == 0], before[factor == 0]):
            raise RuntimeError(f"step {tick} of {kernel} in {dtype} moved an element whose factor is 0")


def _torchs(kernel: str, options: tuple[bool, ...], numbers: tuple[Any, ...], param: Tensor) -> torch.optim.Optimizer:
    """Torch's optimizer with an update's options and numbers."""
    arguments = {**_arguments(kernel, options, numbers), "foreach": False}
    if kernel == "sgd":
        return torch.optim.SGD([param], **arguments)
    if kernel == "rmsprop":
        return torch.optim.RMSprop([param], centered=options[1], **arguments)
    optimizer = torch.optim.AdamW if arguments.pop("decoupled") else torch.optim.Adam
    return optimizer([param], amsgrad=options[0], **arguments)

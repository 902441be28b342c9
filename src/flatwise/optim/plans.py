"""Who does a fused update: kernels compiled by numba for the CPU, or by Triton for a GPU."""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor

from flatwise._attach.parameters import local_part, share_memory
from flatwise.noise.blender import BACKENDS, PLAIN, KernelForm
from flatwise.optim import launch
from flatwise.optim.launch import Update, layout, local


class Plan(Protocol):
    """The kernel calls that do the updates of one group, step after step."""

    def run(self, grads: list[Tensor], numbers: tuple[float, ...], seed: int, tick: int) -> None:
        """Does an update with gradients and settings of this step, and with the factors of (seed, tick)."""


class _Nothing:
    """The plan of a group in which no parameter has a gradient."""

    def run(self, grads: list[Tensor], numbers: tuple[float, ...], seed: int, tick: int) -> None:
        pass


@cache
def _gpu() -> ModuleType | None:
    """The plans that Triton carries out, or ``None`` where it is not installed."""
    try:
        from flatwise.optim import gpu_plan
    except ImportError:
        return None
    return gpu_plan


def objection(update: Update, kernel: str, form: KernelForm) -> str | None:
    """Why no kernels can do an update, in words, or ``None`` if some can.

    Args:
        update: the update.
        kernel: which: ``"sgd"``, ``"adam"`` or ``"rmsprop"``.
        form: distribution of the factor.
    """
    params, grads = local(update.params), local(update.grads)
    for whole, grad in zip(update.params, update.grads, strict=True):
        if layout(whole) != layout(grad):
            return "a gradient is not spread over the processes as its parameter is"
    for whole, param, grad in zip(update.params, params, grads, strict=True):
        if grad.layout != torch.strided:
            return "a gradient is sparse"
        if type(param) not in PLAIN or type(grad) not in PLAIN:
            return f"a parameter or its gradient is a {type(param).__name__}, not a plain tensor"
        if grad.dtype != param.dtype:
            return f"a parameter is {param.dtype} with a gradient of {grad.dtype}"
        if not param.is_contiguous():
            return "a parameter is not contiguous"
        if param.shape != grad.shape or local_part(whole)[1].start is None:
            return "a parameter is sharded along a dimension that is not its first"
    if share_memory(params):  # threads would update it at the same time
        return "two parameters share memory"
    devices = {tensor.device for tensor in (*params, *grads)}
    if len(devices) > 1:
        return f"the tensors of one parameter group live on several devices: {', '.join(sorted(map(str, devices)))}"
    for device in devices:
        backend = BACKENDS.get(device.type)
        if backend == "numba":
            return launch.objection(update)
        if backend is None:
            return f"a parameter lives on {device}; there are kernels for {' and '.join(BACKENDS)}"
        if (gpu := _gpu()) is None:
            return "Triton is not installed (pip install 'flatwise[fast]')"
        reason: str | None = gpu.objection(update, kernel, form)
        return reason
    return None


def make_plan(update: Update, fresh: list[bool], units: list[int], kernel: str, form: KernelForm, stream: int) -> Plan:
    """The plan of an update without objection, all its states there.

    Args:
        update: the update.
        fresh: for each parameter, whether its first state holds −0 and becomes the gradient itself at this step.
        units: the identity of each parameter.
        kernel: as in :func:`objection`.
        form: distribution of the factor.
        stream: stream of the perturbation.
    """
    if not update.params:
        return _Nothing()
    if BACKENDS[local(update.params)[0].device.type] == "numba":
        return launch.Plan(update, fresh, units, kernel, form, stream)
    gpu = _gpu()
    assert gpu is not None
    plan: Plan = gpu.Plan(update, fresh, units, kernel, form, stream)
    return plan

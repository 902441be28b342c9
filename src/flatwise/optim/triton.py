"""Fused optimizer steps on GPUs: a parameter group's update, noise and all, in one launch for each kind of tensor.

For ``flatwise.optim``: these functions know tensors and numbers, not optimizers. Parameters, gradients and states may be
float32, bfloat16 or float16, each list in its own dtype, contiguous and on one device; the arithmetic is float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatwise.noise import triton as noise
from flatwise.noise.blender import KernelForm
from flatwise.noise.gpu import DTYPES, Clock, numbers_of, on_device
from flatwise.noise.tables import Tables, is_aligned
from flatwise.optim import triton_kernels as kernels

SUPPORTED = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class _Launch:
    """Tensors of the same dtypes and alignment: their tables, and the constants that follow from them."""

    tables: Tables
    constants: dict[str, Any]


class Group:
    """The tensors of one parameter group between steps; tables are sent to the device again only when they change.

    Everything that a step reads besides tensors and hyper-parameters is on the device: seed and tick (``clock``), and
    where given as tensors the learning rate and the steps. So a CUDA graph may capture a step together with
    ``clock.advance()``; while tensors keep their addresses, the graph stays valid.

    Args:
        device: where all tensors are.
        form: the factor's distribution, or ``None`` for a plain step.
        stream: position of the perturbation in its composition.

    Attributes:
        clock: seed and tick of the next step; set it before each.
    """

    def __init__(self, device: torch.device, form: KernelForm | None = None, stream: int = 0) -> None:
        self._device = device
        self._kind = noise.KINDS["one" if form is None else form.kind]
        self._numbers = numbers_of(form or KernelForm("normal", ()), device)
        self._stream = stream
        self._seen: tuple[list[list[int]], list[int], list[int]] | None = None
        self._launches: list[_Launch] = []
        self._tables: dict[Any, Tables] = {}  # by dtypes and alignment; what has not changed is not sent again
        self.clock = Clock(device)

    def sgd(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Tensor] | None,
        starts: Sequence[int],
        units: Sequence[int],
        *,
        lr: float | Tensor,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        maximize: bool = False,
        first: bool = False,
    ) -> None:
        """One step of ``torch.optim.SGD``, in place.

        Args:
            params: n parameters.
            grads: their gradients.
            buffers: momentum buffers, or ``None`` without momentum.
            starts: logical index in the whole tensor of each parameter's first element.
            units: the parameters' identities.
            lr: a number, or a 0-d tensor on the device.
            momentum, dampening, weight_decay, nesterov, maximize: as torch's.
            first: whether buffers hold nothing yet: they become the gradient.
        """
        if (buffers is None) != (momentum == 0):
            raise ValueError(f"momentum {momentum} needs {'no ' if momentum == 0 else ''}buffers")
        columns = [params, grads] if buffers is None else [params, grads, buffers]
        self._run(
            kernels.sgd_kernel,
            columns,
            [],
            starts,
            units,
            lr,
            [momentum, 1 - dampening, weight_decay],
            DECAY=weight_decay != 0,
            MOMENTUM=buffers is not None,
            NESTEROV=nesterov,
            MAXIMIZE=maximize,
            FIRST=first,
        )

    def adam(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        exp_avgs: Sequence[Tensor],
        exp_avg_sqs: Sequence[Tensor],
        max_exp_avg_sqs: Sequence[Tensor] | None,
        steps: Sequence[Tensor],
        starts: Sequence[int],
        units: Sequence[int],
        *,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
    ) -> None:
        """One step of ``torch.optim.Adam`` or ``AdamW``, in place.

        Args:
            params: n parameters.
            grads: their gradients.
            exp_avgs, exp_avg_sqs: their averages.
            max_exp_avg_sqs: maxima of the second average for AMSGrad, else ``None``.
            steps: n 0-d float32 tensors on the device: the number of this step, 1 at first (already incremented).
            starts: logical index in the whole tensor of each parameter's first element.
            units: the parameters' identities.
            lr: a number, or a 0-d tensor on the device.
            betas, eps, weight_decay, maximize: as torch's.
            decoupled: whether the weight decay is AdamW's; it is then scaled by the factor too, as all that the
                learning rate multiplies.
        """
        columns = [params, grads, exp_avgs, exp_avg_sqs]
        if max_exp_avg_sqs is not None:
            columns.append(max_exp_avg_sqs)
        logarithms = [part for beta in betas for part in _log_in_two(beta)]
        self._run(
            kernels.adam_kernel,
            columns,
            [steps],
            starts,
            units,
            lr,
            [betas[0], 1 - betas[0], betas[1], 1 - betas[1], *logarithms, eps, weight_decay],
            DECAY=weight_decay != 0,
            DECOUPLED=decoupled,
            AMSGRAD=max_exp_avg_sqs is not None,
            MAXIMIZE=maximize,
        )

    def rmsprop(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        square_avgs: Sequence[Tensor],
        buffers: Sequence[Tensor] | None,
        grad_avgs: Sequence[Tensor] | None,
        starts: Sequence[int],
        units: Sequence[int],
        *,
        lr: float | Tensor,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        maximize: bool = False,
    ) -> None:
        """One step of ``torch.optim.RMSprop``, in place.

        Args:
            params: n parameters.
            grads: their gradients.
            square_avgs: averages of the gradients' squares.
            buffers: momentum buffers, or ``None`` without momentum.
            grad_avgs: averages of the gradients for ``centered``, else ``None``.
            starts: logical index in the whole tensor of each parameter's first element.
            units: the parameters' identities.
            lr: a number, or a 0-d tensor on the device.
            alpha, eps, weight_decay, momentum, maximize: as torch's.
        """
        if (buffers is None) != (momentum == 0):
            raise ValueError(f"momentum {momentum} needs {'no ' if momentum == 0 else ''}buffers")
        columns = [params, grads, square_avgs, *(column for column in (buffers, grad_avgs) if column is not None)]
        self._run(
            kernels.rmsprop_kernel,
            columns,
            [],
            starts,
            units,
            lr,
            [alpha, 1 - alpha, eps, weight_decay, momentum],
            DECAY=weight_decay != 0,
            MOMENTUM=buffers is not None,
            CENTERED=grad_avgs is not None,
            MAXIMIZE=maximize,
        )

    def _run(
        self,
        kernel: Any,
        columns: list[Sequence[Tensor]],
        scalars: list[Sequence[Tensor]],
        starts: Sequence[int],
        units: Sequence[int],
        lr: float | Tensor,
        hyper: list[float],
        **flags: bool,
    ) -> None:
        """Launches a kernel over the columns, prepared again if a tensor is another one than last time."""
        seen = [list(map(Tensor.data_ptr, column)) for column in (*columns, *scalars)], list(starts), list(units)
        if seen != self._seen:
            self._launches = self._prepare(columns, scalars, starts, units)
            self._seen = seen
        with on_device(self._device):
            for launch in self._launches:
                kernel[(len(launch.tables.chunks),)](
                    launch.tables.tensors,
                    launch.tables.chunks,
                    self._numbers,
                    self.clock.state,
                    self._stream,
                    lr if isinstance(lr, Tensor) else float(lr),
                    *map(float, hyper),
                    KIND=self._kind,
                    LR_ON_DEVICE=isinstance(lr, Tensor),
                    **launch.constants,
                    **flags,
                    num_warps=noise.WARPS,
                    **noise.EXACT,
                )
        # The kernels write behind autograd's back.
        params, _, *states = columns
        torch.autograd.graph.increment_version([tensor for column in (params, *states) for tensor in column])

    def _prepare(
        self,
        columns: list[Sequence[Tensor]],
        scalars: list[Sequence[Tensor]],
        starts: Sequence[int],
        units: Sequence[int],
    ) -> list[_Launch]:
        alike: dict[tuple[torch.dtype | bool, ...], list[int]] = {}
        for i, tensors in enumerate(zip(*columns, strict=True)):
            for tensor in tensors:
                _check(tensor, tensors[0], self._device)
            if tensors[0].numel():
                # States share a dtype; a gradient may have its own.
                kind = (*(tensor.dtype for tensor in tensors), is_aligned(starts[i], *tensors))
                alike.setdefault(kind, []).append(i)
        launches = []
        for (dtype, grad, *states, aligned), some in alike.items():
            if len(set(states)) > 1:
                raise ValueError(f"all states of a parameter must have one dtype, got {states}")
            tables = self._tables.setdefault((dtype, grad, *states, aligned), Tables(self._device))
            tables.update(
                [[column[i] for i in some] for column in (*columns, *scalars)],
                [starts[i] for i in some],
                [units[i] for i in some],
            )
            constants = {
                "DTYPE": DTYPES[dtype],  # type: ignore[index]
                "GRAD": DTYPES[grad],  # type: ignore[index]
                "STATE": DTYPES[states[0] if states else dtype],  # type: ignore[index]
                "ALIGNED": aligned,
                "BLOCK": noise.BLOCK,
            }
            launches.append(_Launch(tables, constants))
        return launches


def _check(tensor: Tensor, parameter: Tensor, device: torch.device) -> None:
    if tensor.dtype not in SUPPORTED or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"the fused step needs contiguous float32, bfloat16 or float16 tensors on {device}, got {tensor.dtype} "
            f"with strides {tensor.stride()} on {tensor.device}"
        )
    if tensor.numel() != parameter.numel():
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} goes with a parameter of {tuple(parameter.shape)}")


def _log_in_two(beta: float) -> tuple[float, float]:
    """``ln(beta)`` as the sum of two float32 numbers, which is how kernels take arguments."""
    if beta == 0:
        return -math.inf, 0.0
    high = float(np.float32(math.log(beta)))
    return high, math.log(beta) - high

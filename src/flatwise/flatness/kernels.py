"""Torch's settings during a measurement: kernels that can be differentiated twice, and autocast."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Have torch choose, within the block, only kernels that have a second derivative. Its settings come back.

    * Scaled dot-product attention: the flash and memory-efficient kernels have none (on the CPU too); the "math" one
      has. It holds the attention matrix, so long sequences need more memory than in training.
    * cuDNN's recurrent layers: cuDNN is off where the model has an RNN, LSTM or GRU on a GPU.
    * What ``torch.compile`` compiled runs uncompiled: its backward pass cannot be differentiated.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) and any(p.is_cuda for p in m.parameters()) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # not imported, nothing can be compiled; and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@dataclass(frozen=True, slots=True)
class Autocast:
    """Where autocast is on, and with which dtype.

    The user's code (model, loss, data) runs under the autocast that is on around a measurement. The measurement's own
    arithmetic does not: a projection or a residual in bfloat16 has three digits. The weight cache is off in both, since
    it does not notice that weights are placed in place: the loss would be that of the weights before.

    Attributes:
        dtypes: device types on which autocast is on, each with its dtype.
    """

    dtypes: tuple[tuple[str, torch.dtype], ...] = ()

    @classmethod
    def capture(cls, device_types: Iterable[str]) -> Autocast:
        """The present state, for these types of devices."""
        on = [kind for kind in sorted(set(device_types)) if _is_on(kind)]
        return cls(tuple((kind, torch.get_autocast_dtype(kind)) for kind in on))

    @contextmanager
    def on(self) -> Iterator[None]:
        """The state again, for a ``with`` block, without the cache."""
        with ExitStack() as stack:
            for kind, dtype in self.dtypes:
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=False))
            yield

    @contextmanager
    def off(self) -> Iterator[None]:
        """No autocast for a ``with`` block, on the devices where this state has it."""
        with ExitStack() as stack:
            for kind, dtype in self.dtypes:
                stack.enter_context(torch.autocast(kind, dtype, enabled=False, cache_enabled=False))
            yield


def _is_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)

"""The kernels that can be differentiated twice."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

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

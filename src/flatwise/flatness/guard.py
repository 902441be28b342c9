"""The guard: a model is lent for a measurement, and comes back exactly as it was.

While it is lent, copies stand in for the model's parameters and buffers. Nothing that the measurement does, that the
model's own ``forward`` does (BatchNorm moves its statistics, ``Embedding(max_norm=...)`` writes its weights) or that
the loss does (call ``backward``) reaches the originals. Hooks on the parameters, such as those that clip gradients,
stay with the originals and do not act on the measurement: what is measured is the loss itself.

The price is memory for a second copy of parameters and buffers, and the time of copying them once per measurement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from flatwise.flatness.errors import FlatnessError
from flatwise.flatness.random_state import RandomState

Mode = Literal["eval", "train", "keep"]


@contextmanager
def untouched(
    model: nn.Module, *, mode: Mode = "eval", dtype: torch.dtype | None = None, data: object = None
) -> Iterator[None]:
    """Lend a model for a ``with`` block that may write to it at will; afterwards it is as it was, bit for bit.

    In the block, ``model.named_parameters()`` and ``model.named_buffers()`` give copies. Afterwards, also after an
    exception or Ctrl-C, the model has its own tensor objects again, with the bits, the ``.grad`` (the same object, or
    ``None``) and the ``requires_grad`` that they had; every attribute of every submodule is bound to what it was bound
    to (``training``, caches that ``forward`` made); and the random states of torch (CPU, and the devices that the model
    is on), Python, numpy and ``data`` are those from before the block.

    Not undone: what ``forward`` changes *inside* an attribute that is no tensor, such as a list that it appends to, and
    what it does to anything outside the model.

    Args:
        model: any module. Tied parameters stay tied.
        mode: ``"eval"`` (the default) calls ``model.eval()``: the loss of a sample then does not depend on its batch
            or on dropout, and it is the function that the model computes when it is used. ``"train"`` calls
            ``model.train()``: the loss that training descends, with the statistics of each batch in BatchNorm and with
            dropout. ``"keep"`` leaves every submodule's mode as it is (a model with frozen BatchNorm layers, say).
        dtype: dtype that the floating-point copies have; default: each one's own.
        data: a data loader whose generators are put back as well.

    Raises:
        FlatnessError: ``model`` is not a module, has parameters that are not materialised, is compiled by
            ``torch.jit``, or ``mode`` is none of the three.
    """
    _check(model, mode)
    tensors = [*model.parameters(), *model.buffers()]
    random = RandomState.capture({tensor.device for tensor in tensors}, data)
    modules = list(model.modules())
    # The attributes include the modes, and the lists in which RNNs keep their weights a second time.
    attributes = [dict(vars(module)) for module in modules]
    parameters = [dict(module._parameters) for module in modules]
    buffers = [dict(module._buffers) for module in modules]
    try:
        stand_ins: dict[int, torch.Tensor] = {}  # by the original's identity: what is tied stays tied
        for module in modules:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = _stand_in(parameter, dtype, stand_ins)  # type: ignore[assignment]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _stand_in(buffer, dtype, stand_ins)
        if mode != "keep":
            model.train(mode == "train")
        yield
    finally:
        for module, own, own_parameters, own_buffers in zip(modules, attributes, parameters, buffers, strict=True):
            _put_back(vars(module), own)
            _put_back(module._parameters, own_parameters)
            _put_back(module._buffers, own_buffers)
        random.restore()


def _stand_in(original: torch.Tensor, dtype: torch.dtype | None, made: dict[int, torch.Tensor]) -> torch.Tensor:
    if id(original) not in made:
        # Inference mode may be on around us, and its tensors cannot be differentiated.
        with torch.inference_mode(False), torch.no_grad():
            copy = original.detach().clone()
            if dtype is not None and copy.is_floating_point():
                copy = copy.to(dtype)
        if isinstance(original, nn.Parameter):
            copy = nn.Parameter(copy, requires_grad=original.requires_grad)
            vars(copy).update(vars(original))  # marks that the model or its author put on it
        made[id(original)] = copy
    return made[id(original)]


def _put_back(target: dict[str, Any], saved: dict[str, Any]) -> None:
    # Never empty on the way: a second Ctrl-C in here must not cost the user the model.
    target.update(saved)
    for name in target.keys() - saved.keys():
        del target[name]


def _check(model: nn.Module, mode: Mode) -> None:
    if not isinstance(model, nn.Module):
        raise FlatnessError(f"model must be a torch.nn.Module; got a {type(model).__name__}")
    if mode not in ("eval", "train", "keep"):
        raise FlatnessError(f"mode must be 'eval', 'train' or 'keep'; got {mode!r}")
    if isinstance(model, torch.jit.ScriptModule):
        raise FlatnessError("a model compiled by torch.jit cannot be measured: give the Python module")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise FlatnessError(f"parameter {name!r} has no shape yet: run the model once on a batch")
        if hasattr(parameter, "device_mesh"):
            raise FlatnessError(f"parameter {name!r} is sharded over devices (a DTensor): gather the model first")

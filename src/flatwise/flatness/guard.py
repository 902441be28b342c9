"""The guard: a model is lent for a measurement, and comes back exactly as it was.

While it is lent, copies stand in for the model's parameters and buffers. Nothing that the measurement does, that the
model's own ``forward`` does (BatchNorm moves its statistics, ``Embedding(max_norm=...)`` writes its weights) or that
the loss does (call ``backward``) reaches the originals. Hooks on the parameters, such as those that clip gradients,
stay with the originals and do not act on the measurement: what is measured is the loss itself.

The price is memory for a second copy of parameters and buffers, and the time of copying them once per measurement.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flatwise.exceptions import FlatwiseError

Mode = Literal["eval", "train", "keep"]


class FlatnessError(FlatwiseError, ValueError):
    """A model, a loss or data that cannot be measured as asked. The message is one line."""


def checked_count(name: str, value: int, least: int = 1) -> int:
    """The value, if it is a whole number that is not below ``least``.

    Raises:
        FlatnessError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise FlatnessError(f"{name} must be a whole number, {least} or more; got {value!r}")
    return value


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Say what a :class:`FlatnessError` within the block is about, before its message."""
    try:
        yield
    except FlatnessError as error:
        raise FlatnessError(f"{what}: {error}") from error.__cause__


@contextmanager
def reporting(failure: str) -> Iterator[None]:
    """Turn any other exception within the block into a :class:`FlatnessError` that says what failed."""
    try:
        yield
    except FlatnessError:
        raise
    except Exception as error:
        raise FlatnessError(f"{failure}: {type(error).__name__}: {error}") from error


@contextmanager
def untouched(
    model: nn.Module, *, mode: Mode = "eval", dtype: torch.dtype | None = None, data: object = None
) -> Iterator[None]:
    """Lend a model for a ``with`` block that may write to it at will; afterwards it is as it was, bit for bit.

    In the block, ``model.named_parameters()`` and ``model.named_buffers()`` give copies. Afterwards, also after an
    exception or Ctrl-C, the model has its own tensor objects again, with the bits, the ``.grad`` (the same object, or
    ``None``) and the ``requires_grad`` that they had; every attribute of every submodule is the object that it was
    (``training``, caches that ``forward`` made); and the random states of torch (CPU, and the devices that the model
    is on), Python, numpy and ``data`` are those from before the block.

    Two things are not undone: changes *inside* an attribute that is not a tensor, such as a list that ``forward``
    appends to, and changes outside the model.

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
            ``torch.jit``, or ``mode`` is unknown.
    """
    _check(model, mode)
    modules = list(model.modules())
    random_state = RandomState({tensor.device for tensor in (*model.parameters(), *model.buffers())}, data)
    # The attributes include the modes, and the lists in which RNNs keep their weights a second time.
    saved = [
        (target, dict(target)) for module in modules for target in (vars(module), module._parameters, module._buffers)
    ]
    try:
        stand_ins: dict[int, torch.Tensor] = {}  # by the original's identity: what is tied stays tied
        for module in modules:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        tensors[name] = _stand_in(tensor, dtype, stand_ins)  # type: ignore[assignment]
        if mode != "keep":
            model.train(mode == "train")
        yield
    finally:
        for target, own in saved:
            # Never empty on the way: a second Ctrl-C in here must not cost the user the model.
            target.update(own)
            for name in target.keys() - own.keys():
                del target[name]
        random_state.restore()


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name, in the order of ``model.named_parameters()``.

    Raises:
        FlatnessError: not a module, or nothing requires a gradient.
    """
    if not isinstance(model, nn.Module):
        raise FlatnessError(f"model must be a torch.nn.Module; got a {type(model).__name__}")
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise FlatnessError("the model has no parameter that requires a gradient: there is nothing to measure")
    return parameters


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


class RandomState:
    """The states of all generators that the code under measurement can reach, when this is made.

    These are torch's generators of the CPU and of the given devices, Python's, numpy's global one, and a data loader's
    own. Restoring draws nothing, so a pass over the data that starts with ``restore`` sees what the last one saw: the
    same order of a shuffling loader, the same augmentations, the same dropout masks.

    Args:
        devices: devices in use; those without a generator of their own (the CPU has torch's default one) are ignored.
        data: a data loader; the ``torch.Generator`` objects in it and in its samplers are kept too.
    """

    def __init__(self, devices: Iterable[torch.device] = (), data: object = None) -> None:
        # What puts each state back, and the state.
        self._states: list[tuple[Callable[[Any], object], Any]] = [
            (torch.set_rng_state, torch.get_rng_state()),
            (random.setstate, random.getstate()),
            (np.random.set_state, np.random.get_state(legacy=False)),
        ]
        for device in {device for device in devices if device.type not in ("cpu", "meta")}:
            module = torch.get_device_module(device.type)
            which = {} if device.type == "mps" else {"device": device}  # there is only one
            self._states.append((partial(module.set_rng_state, **which), module.get_rng_state(**which)))
        self._states += [(generator.set_state, generator.get_state()) for generator in _generators(data)]

    def restore(self) -> None:
        """Put all generators back to where they were when this was made."""
        for put_back, state in self._states:
            put_back(state)


def _generators(data: object) -> list[torch.Generator]:
    """The generators of a data loader and its samplers: a shuffling loader draws from its own, if it has one."""
    batch_sampler = getattr(data, "batch_sampler", None)
    holders = [data, getattr(data, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    found = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


@contextmanager
def twice_differentiable(model: nn.Module) -> Iterator[None]:
    """For a ``with`` block, let torch choose only kernels that have a second derivative.

    * Scaled dot-product attention: the flash and memory-efficient kernels have none (on the CPU too); the "math" one
      has. It holds the attention matrix, so long sequences need more memory than in training.
    * cuDNN's recurrent layers: cuDNN is off where the model has an RNN, LSTM or GRU on a GPU.
    * What ``torch.compile`` compiled runs uncompiled: its backward pass cannot be differentiated.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(m, nn.RNNBase) and any(p.is_cuda for p in m.parameters()) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and importing it takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@dataclass(frozen=True, slots=True)
class Autocast:
    """Where autocast is on, and with which dtype.

    The user's code (model, loss, data) runs under the autocast that is on around a measurement. The measurement's own
    arithmetic does not: a projection or a residual in bfloat16 has three digits. The weight cache is off in both,
    because it does not notice weights that change in place: the loss would be that of the old weights.

    Attributes:
        dtypes: device types on which autocast is on, each with its dtype.
    """

    dtypes: tuple[tuple[str, torch.dtype], ...] = ()

    @classmethod
    def capture(cls, device_types: Iterable[str]) -> Autocast:
        """The current state, for these types of devices."""
        on = [kind for kind in sorted(set(device_types)) if _is_on(kind)]
        return cls(tuple((kind, torch.get_autocast_dtype(kind)) for kind in on))

    def on(self) -> AbstractContextManager[None]:
        """Switch autocast on as it was, for a ``with`` block, without the cache."""
        return self._switched(True)

    def off(self) -> AbstractContextManager[None]:
        """Switch autocast off for a ``with`` block, on the devices where it was on."""
        return self._switched(False)

    @contextmanager
    def _switched(self, enabled: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for kind, dtype in self.dtypes:
                stack.enter_context(torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False))
            yield


def _is_on(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)

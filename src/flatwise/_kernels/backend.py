"""Who computes: one backend for each type of device, and the two things that all of them do.

A backend blends (:class:`Blender` scales updates that an optimizer has made) and updates (the fused optimizers'
steps). Where none serves, torch operations do the same: ``attach.blend`` and torch's own step.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from flatwise._kernels.forms import PLAIN, KernelForm, Piece, Update

# What computes on which type of device. With TRITON_INTERPRET=1, a test may have Triton serve CPU tensors too.
BACKENDS = {"cpu": "numba", "cuda": "triton"}


class PreparedBlend(Protocol):
    """Kernel calls over some pieces, all but seed and counter prepared."""

    def copy(self) -> None:
        """``old ← new``."""

    def run(self, seed: int, counter: int) -> None:
        """``new ← old + f · (new − old)``, with the factors of a seed and a counter."""


class PreparedStep(Protocol):
    """Kernel calls that do the updates of one parameter group, step after step."""

    def run(self, grads: list[Tensor], numbers: tuple[Any, ...], seed: int, counter: int) -> None:
        """Does an update with gradients and settings of this step, and with the factors of (seed, counter)."""


class Backend(Protocol):
    """What the ``backend`` module of each room has.

    Attributes:
        BLENDED, UPDATED: dtypes of parameters that it blends, and that it updates.
        RATE_MAY_BE_TENSOR: whether the learning rate of an update may be one.
        STATES_MAY_BE_WIDE: whether states of 16-bit parameters may be float32.
        Blend: prepares the blend of pieces on one device by factors of a form and a stream.
        Step: prepares an update without objection, all its states there, of an optimizer, a form and a stream.
    """

    BLENDED: tuple[torch.dtype, ...]
    UPDATED: tuple[torch.dtype, ...]
    RATE_MAY_BE_TENSOR: bool
    STATES_MAY_BE_WIDE: bool
    Blend: Callable[[Sequence[Piece], KernelForm, int], PreparedBlend]
    Step: Callable[[Update, str, KernelForm, int], PreparedStep]

    def works(self, device: torch.device) -> bool:
        """Whether the kernels can be used on a device."""

    def compile_ahead(self, form: KernelForm, dtype: torch.dtype) -> None:
        """Compiles the kernel of a blend, where that takes long at the first call."""

    def objection(self, update: Update, optimizer: str, form: KernelForm) -> str | None:
        """Why it cannot do an update of tensors that it knows, or ``None`` if it can."""


@cache
def load(name: str) -> Backend | None:
    """A backend, or ``None`` where what it needs is not installed."""
    try:
        return cast("Backend", importlib.import_module(f"flatwise._kernels.{name}.backend"))
    except ImportError:
        return None


def backend_of(device: torch.device) -> Backend | None:
    """The backend that serves a device."""
    name = BACKENDS.get(device.type)
    return None if name is None else load(name)


def can_blend(new: Tensor, old: Tensor) -> bool:
    """Whether kernels can blend such a parameter: a plain tensor, since others need not have memory of their own."""
    if type(new) not in PLAIN or not (new.is_contiguous() and old.is_contiguous()):
        return False
    backend = backend_of(new.device)
    return backend is not None and new.dtype in backend.BLENDED and backend.works(new.device)


def compile_ahead(form: KernelForm, parameter: Tensor) -> None:
    """Compiles the kernel that a parameter will need: slow at the first call, so better before a step.

    Args:
        form: the factor's distribution.
        parameter: one that :func:`can_blend` admits.
    """
    backend = backend_of(parameter.device)
    assert backend is not None
    backend.compile_ahead(form, parameter.dtype)


class Blender:
    """Blends the same tensors step after step with one distribution; what does not change is prepared once.

    Args:
        form: the factor's distribution.
        stream: the perturbation's stream.
    """

    def __init__(self, form: KernelForm, stream: int) -> None:
        self._form = form
        self._stream = stream
        self._memory: list[int] = []  # addresses and sizes that the blends were prepared for
        self._blends: list[PreparedBlend] = []

    def copy(self, pieces: Sequence[Piece]) -> None:
        """``old ← new`` for every piece, before the step that makes them differ.

        Args:
            pieces: as in :meth:`blend`.
        """
        for blend in self._blends_of(pieces):
            blend.copy()

    def blend(self, pieces: Sequence[Piece], seed: int, counter: int) -> None:
        """``new ← old + f · (new − old)`` for every piece, f drawn for each element; see ``attach.blend.blend``.

        Args:
            pieces: parts that :func:`can_blend` admits.
            seed, counter: what the words are a function of, besides stream, parameter id and element.
        """
        for blend in self._blends_of(pieces):
            blend.run(seed, counter)

    def _blends_of(self, pieces: Sequence[Piece]) -> list[PreparedBlend]:
        """Blends of the pieces where they are now; prepared again only if that is somewhere else."""
        memory = [word for p in pieces for word in (p.new.data_ptr(), p.old.data_ptr(), p.new.numel())]
        if memory != self._memory:
            by_device: dict[torch.device, list[Piece]] = {}
            for piece in pieces:
                by_device.setdefault(piece.new.device, []).append(piece)
            self._blends = [self._prepare(device, some) for device, some in by_device.items()]
            self._memory = memory
        return self._blends

    def _prepare(self, device: torch.device, pieces: list[Piece]) -> PreparedBlend:
        backend = backend_of(device)
        assert backend is not None
        return backend.Blend(pieces, self._form, self._stream)


def objection(update: Update, optimizer: str, form: KernelForm) -> str | None:
    """Why no kernels can do an update, in words, or ``None`` if some can.

    Args:
        update: the update, of what this process holds.
        optimizer: ``"sgd"``, ``"adam"`` or ``"rmsprop"``.
        form: distribution of the factor.
    """
    for param, grad in zip(update.params, update.grads, strict=True):
        if grad.layout != torch.strided:
            return "a gradient is sparse"
        if type(param) not in PLAIN or type(grad) not in PLAIN:
            return f"a parameter or its gradient is a {type(param).__name__}, not a plain tensor"
        if grad.dtype != param.dtype:
            return f"a parameter is {param.dtype} with a gradient of {grad.dtype}"
        if not param.is_contiguous():
            return "a parameter is not contiguous"
    devices = {tensor.device for tensor in (*update.params, *update.grads)}
    if len(devices) > 1:
        return f"the tensors of one parameter group live on several devices: {', '.join(sorted(map(str, devices)))}"
    if not devices:
        return None
    (device,) = devices
    name = BACKENDS.get(device.type)
    if name is None:
        return f"a parameter lives on {device}; there are kernels for {' and '.join(BACKENDS)}"
    backend = load(name)
    if backend is None:
        return f"{name} is not installed (pip install 'flatwise[fast]')"
    if any(isinstance(number, Tensor) for number in update.numbers[1:]):
        return "a setting other than the learning rate is a tensor"
    if isinstance(update.numbers[0], Tensor) and not backend.RATE_MAY_BE_TENSOR:
        return f"the learning rate is a tensor, which the kernels for {device.type} do not know"
    for index, param in enumerate(update.params):
        if param.dtype not in backend.UPDATED:
            return f"a parameter is {param.dtype}; the kernels for {device.type} know {backend.UPDATED}"
        states = [column[index] for column in update.states if column and column[index] is not None]
        if not all(s.shape == param.shape and s.device == device and s.is_contiguous() for s in states):
            return "a state is not shaped, placed or laid out as its parameter"
        known = {param.dtype, torch.float32} if backend.STATES_MAY_BE_WIDE else {param.dtype}
        dtypes = {state.dtype for state in states}
        if len(dtypes) > 1 or not dtypes <= known:
            return f"the states of a parameter of {param.dtype} are {', '.join(sorted(map(str, dtypes)))}"
    return backend.objection(update, optimizer, form)


def prepare(update: Update, optimizer: str, form: KernelForm, stream: int) -> PreparedStep:
    """The kernel calls of an update without objection.

    Args:
        update: the update, of what this process holds; all its states are there.
        optimizer: as in :func:`objection`.
        form: distribution of the factor.
        stream: stream of the perturbation.
    """
    backend = backend_of(update.params[0].device)
    assert backend is not None
    return backend.Step(update, optimizer, form, stream)

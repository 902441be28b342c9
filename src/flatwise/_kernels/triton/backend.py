"""The backend for GPUs: all that a kernel reads is sent once, and a step is one launch for tensors that are alike.

What tells a kernel its work are the tables of ``forms``: a program looks up its chunk, then the chunk's row. They are
sent again where they have changed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from flatwise._kernels import forms
from flatwise._kernels.forms import KINDS, OPTIMIZERS, KernelForm, Piece, Update, addresses
from flatwise._kernels.triton import blend as blends
from flatwise._kernels.triton import updates
from flatwise._noise import reference
from flatwise._noise.keys import derive_keys

DTYPES = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.float64: tl.float64,
}
BLENDED = tuple(DTYPES)
UPDATED = BLENDED[:3]
RATE_MAY_BE_TENSOR = STATES_MAY_BE_WIDE = True

# Of an address, in bytes, and of an element's place in its tensor: what a 16-byte load needs.
ALIGNMENT = 16

# The kernel's options of each optimizer, in the order of ``Update.options``.
_FLAGS = {
    "sgd": ("MOMENTUM", "NESTEROV", "DECAY", "MAXIMIZE"),
    "adam": ("AMSGRAD", "DECAY", "DECOUPLED", "MAXIMIZE"),
    "rmsprop": ("MOMENTUM", "CENTERED", "DECAY", "MAXIMIZE"),
}
_NO_FLAGS = dict.fromkeys((flag for flags in _FLAGS.values() for flag in flags), False)


def compile_ahead(form: KernelForm, dtype: torch.dtype) -> None:
    """Nothing: Triton compiles at the first launch; that it can is known from :func:`works`."""


class _Launch(NamedTuple):
    """Tensors of the same dtypes and alignment: their tables on the device, and the constants that follow from them."""

    rows: Tensor
    chunks: Tensor
    constants: dict[str, Any]


class _Launches:
    """The launches of a kernel over some tensors, all of one device.

    Args:
        kernel: the kernel.
        params: the tensors that it changes first of all.
        dtypes: for each of them the kernel's constants ``DTYPE`` and, if it knows states, ``STATE_DTYPE``.
        rows: their table; write addresses into it before :meth:`run`.
        form, stream: of the factor.
    """

    def __init__(
        self,
        kernel: Any,
        params: Sequence[Tensor],
        dtypes: Sequence[tuple[torch.dtype, ...]],
        rows: NDArray[np.int64],
        form: KernelForm,
        stream: int,
    ) -> None:
        self._kernel = kernel
        self._device = params[0].device
        self._sizes = [param.numel() for param in params]
        self._dtypes = dtypes
        self._numbers = torch.tensor([*form.numbers, 0.0, 0.0][:3], dtype=torch.float64, device=self._device)
        self._kind = KINDS[form.kind]
        self._stream = stream
        self._chunks: dict[tuple[int, ...], Tensor] = {}  # on the device; they depend on sizes alone
        self._launches: list[_Launch] = []
        self._sent: NDArray[np.int64] | None = None
        self._rows = rows
        rows[:, forms.PARAMETER] = addresses(params)

    def run(self, seed: int, counter: int, *arguments: Any, **flags: Any) -> None:
        """Launches the kernel with the words of (seed, counter), and its own arguments and constants."""
        if self._sent is None or not np.array_equal(self._rows, self._sent):
            self._launches = self._prepare()
            self._sent = self._rows.copy()
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            for launch in self._launches:
                self._kernel[(len(launch.chunks),)](
                    launch.rows,
                    launch.chunks,
                    self._numbers,
                    *_halves(seed),
                    *_halves(counter),
                    self._stream,
                    *arguments,
                    KIND=self._kind,
                    BLOCK=blends.BLOCK,
                    **launch.constants,
                    **flags,
                    num_warps=blends.WARPS,
                    **blends.EXACT,
                )

    def _prepare(self) -> list[_Launch]:
        """One launch for each combination of dtypes and alignment."""
        places = self._rows[:, [*range(forms.PARAMETER, forms.STEP), forms.FIRST]]
        alike: dict[tuple[Any, ...], list[int]] = {}
        for row, is_aligned in enumerate((places % ALIGNMENT == 0).all(axis=1).tolist()):
            if self._sizes[row]:
                alike.setdefault((is_aligned, *self._dtypes[row]), []).append(row)
        launches = []
        for (is_aligned, *dtypes), some in alike.items():
            if (key := tuple(some)) not in self._chunks:
                table = forms.chunks_of([self._sizes[row] for row in some], self._rows[some, forms.FIRST].tolist())
                self._chunks[key] = _send(table, self._device)
            constants = {name: DTYPES[dtype] for name, dtype in zip(("DTYPE", "STATE_DTYPE"), dtypes, strict=False)}
            rows = _send(self._rows[some], self._device)
            launches.append(_Launch(rows, self._chunks[key], {**constants, "ALIGNED": is_aligned}))
        return launches


def _halves(word: int) -> tuple[int, int]:
    """The low and the high 32 bits as int32: numbers of one type, whatever they are, make one kernel."""
    return reference.signed(word & 0xFFFFFFFF), reference.signed(word >> 32)


def _send(rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """A copy on the device, without waiting for the device."""
    host = torch.from_numpy(rows)
    if device.type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)


class Blend:
    """Blends pieces, step after step.

    Args:
        pieces: at least one.
        form, stream: of the factor.
    """

    def __init__(self, pieces: Sequence[Piece], form: KernelForm, stream: int) -> None:
        self._news, self._olds = [piece.new for piece in pieces], [piece.old for piece in pieces]
        rows = forms.rows_of([piece.start for piece in pieces], [piece.parameter_id for piece in pieces])
        rows[:, forms.GRADIENT] = addresses(self._olds)
        dtypes = [(new.dtype,) for new in self._news]
        self._launches = _Launches(blends.blend_kernel, self._news, dtypes, rows, form, stream)

    def copy(self) -> None:
        """``old ← new``; torch does that at the speed of memory."""
        with torch.no_grad():
            torch._foreach_copy_(self._olds, self._news)

    def run(self, seed: int, counter: int) -> None:
        """``new ← old + f · (new − old)``."""
        self._launches.run(seed, counter)


class Step:
    """Updates the parameters of a group, step after step.

    Args:
        update: at least one parameter.
        optimizer: which.
        form, stream: of the factor.
    """

    def __init__(self, update: Update, optimizer: str, form: KernelForm, stream: int) -> None:
        columns = [column for column in update.states if column]
        params, self._steps = update.params, update.steps
        self._device = params[0].device
        self._optimizer = optimizer
        self._flags = _NO_FLAGS | dict(zip(_FLAGS[optimizer], update.options, strict=True))
        self._rows = rows = forms.rows_of(update.starts, update.ids)
        for position, column in enumerate(update.states):
            if column:
                rows[:, forms.STATE + position] = addresses(column)
        rows[:, forms.FRESH] = update.fresh
        self._is_fresh = any(update.fresh)
        of_states = columns[0] if columns else params
        dtypes = [(param.dtype, state.dtype) for param, state in zip(params, of_states, strict=True)]
        self._launches = _Launches(updates.update_kernel, params, dtypes, rows, form, stream)
        # The kernel reads float32 on the device. Torch may have the steps elsewhere; then they are sent each time.
        self._sent_steps: Tensor | None = None
        if optimizer == "adam":
            on_device = self._steps
            if any(step.device != self._device or step.dtype != torch.float32 for step in on_device):
                self._sent_steps = torch.empty(len(on_device), dtype=torch.float32, device=self._device)
                on_device = list(self._sent_steps.unbind())
            rows[:, forms.STEP] = addresses(on_device)
        self._written = [tensor for column in (params, *columns) for tensor in column]  # behind autograd's back

    def run(self, grads: list[Tensor], numbers: tuple[Any, ...], seed: int, counter: int) -> None:
        """Does an update."""
        grads = forms.readable(grads)
        self._rows[:, forms.GRADIENT] = addresses(grads)
        self._count()
        lr = numbers[0]
        if isinstance(lr, Tensor) and lr.device != self._device:
            lr = float(lr)
        settings = _settings(self._optimizer, [float(number) for number in numbers[1:]])
        self._launches.run(
            seed,
            counter,
            lr if isinstance(lr, Tensor) else float(lr),
            *settings,
            OPTIMIZER=OPTIMIZERS[self._optimizer],
            LR_ON_DEVICE=isinstance(lr, Tensor),
            **self._flags,
        )
        torch.autograd.graph.increment_version(self._written)
        if self._is_fresh:
            self._rows[:, forms.FRESH] = 0
            self._is_fresh = False

    def _count(self) -> None:
        """Adds 1 to the steps, where torch keeps them, and sends them to the device if that is elsewhere."""
        if not self._steps:
            return
        # A tensor of 1 where they are on the CPU: torch would make one for each.
        torch._foreach_add_(self._steps, _ONE if self._steps[0].device.type == "cpu" else 1)
        if self._sent_steps is not None:
            now = torch.stack(self._steps).float()
            if self._device.type == "cuda" and now.device.type == "cpu":
                now = now.pin_memory()  # or the copy would wait for the device
            self._sent_steps.copy_(now, non_blocking=True)


_ONE = torch.ones((), device="cpu")


def _settings(optimizer: str, numbers: Sequence[float]) -> tuple[float, ...]:
    """The arguments of the update kernel from ``momentum`` on."""
    momentum = undamped = beta1 = beta2 = eps = decay = 0.0
    if optimizer == "sgd":
        momentum, undamped, decay = numbers
    elif optimizer == "adam":
        beta1, beta2, eps, decay = numbers
    else:
        beta2, eps, momentum, decay = numbers
    betas = beta1, 1 - beta1, beta2, 1 - beta2
    return momentum, undamped, *betas, *_log_in_two(beta1), *_log_in_two(beta2), eps, decay


def _log_in_two(beta: float) -> tuple[float, float]:
    """``ln(beta)`` as the sum of two float32 numbers, which is how kernels take arguments."""
    if beta == 0:
        return -math.inf, 0.0
    high = float(np.float32(math.log(beta)))
    return high, math.log(beta) - high


# Whether the kernels can be trusted. They were written without a GPU at hand, and compilers differ.


@cache
def works(device: torch.device) -> bool:
    """Whether kernels run on a device and give the reference's values there; where not, warns why."""
    try:
        _try_blends(device)
    except Exception as error:  # whatever a compiler, an assembler or a driver raises
        warnings.warn(
            f"Triton is installed but its kernels cannot be used on {device}, so flatwise draws its noise there with "
            f"slower torch operations. The cause: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def objection(update: Update, optimizer: str, form: KernelForm) -> str | None:
    """Why the kernels for GPUs cannot do an update of tensors that they know, or ``None`` if they can.

    The first time that it is asked of a device, a distribution, some dtypes and options, the kernels are tried on
    small tensors there.
    """
    device = update.params[0].device
    if not works(device):
        return f"Triton's kernels cannot be used on {device}, as a warning has said"
    columns = [column for column in update.states if column]
    for dtypes in {
        (param.dtype, next((s.dtype for s in states if s is not None), param.dtype))
        for param, *states in zip(update.params, *columns, strict=True)
    }:
        if (reason := _failure(device, dtypes, optimizer, form, update.options)) is not None:
            return reason
    return None


@cache
def _failure(
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype],
    optimizer: str,
    form: KernelForm,
    options: tuple[bool, ...],
) -> str | None:
    """What is wrong with the kernels that an update would launch on a device, or ``None`` if nothing is."""
    try:
        _try_updates(device, dtypes, optimizer, form, options)
    except Exception as error:  # whatever a compiler, an assembler or a driver raises
        return f"the kernels for GPUs failed a first trial on {device}: {type(error).__name__}: {error}"
    return None


def _factors(form: KernelForm, size: int, seed: int, counter: int, parameter_id: int, device: torch.device) -> Tensor:
    """A parameter's first factors, by the reference."""
    k0, k1 = derive_keys(seed, counter, 0, [parameter_id])[0].tolist()
    return form.factors(reference.words(torch.arange(size, dtype=torch.int32, device=device), (k0, k1)))


def _try_blends(device: torch.device) -> None:
    """Compares a blend from 0 to 1, which is the factor itself, with the reference."""
    size, seed, counter, parameter_id = 5000, 3, 5, 7
    for form in (
        KernelForm("bernoulli", (float(1 << 30),)),
        KernelForm("normal", (1.0, 0.5, -math.inf)),
        KernelForm("uniform", (0.0, 2.0)),
    ):
        new, old = torch.ones(size, device=device), torch.zeros(size, device=device)
        Blend([Piece(new, old, 0, parameter_id)], form, 0).run(seed, counter)
        expected = _factors(form, size, seed, counter, parameter_id, device)
        error = float((new - expected).abs().max())
        if not error <= 1e-6:
            raise RuntimeError(f"a {form.kind} factor differs from the reference by {error:.1e}")


def _try_updates(
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype],
    optimizer: str,
    form: KernelForm,
    options: tuple[bool, ...],
) -> None:
    """Compares two small steps with torch's own in float32, scaled by the reference's factors."""
    size, seed, parameter_id = 1500, 3, 7
    dtype, state_dtype = dtypes
    numbers, has_state = {
        "sgd": ((0.1, 0.9 * options[0], 1.0, 0.1 * options[2]), (options[0],)),
        "adam": ((0.1, 0.8, 0.9, 1e-8, 0.1 * options[1]), (True, True, options[0])),
        "rmsprop": ((0.1, 0.8, 1e-8, 0.9 * options[0], 0.1 * options[2]), (True, *options[:2])),
    }[optimizer]
    ramp = torch.linspace(-0.5, 0.5, size, device=device)
    param = ramp.to(dtype, copy=True)
    states = tuple([torch.zeros_like(param, dtype=state_dtype)] if has else [] for has in has_state)
    steps = [torch.zeros((), device=device)] if optimizer == "adam" else []
    is_fresh = [optimizer == "sgd" and options[0]]
    update = Update([param], [param], states, steps, "", options, numbers, is_fresh, [0], [parameter_id])
    ours = Step(update, optimizer, form, 0)
    expected = param.to(torch.float32, copy=True)
    torchs = [torch.zeros_like(expected) for _ in range(3)]
    for counter in (1, 2):
        grad = (ramp.flip(0) * counter + torch.where(ramp < 0, -1.0, 1.0)).to(dtype)
        before, old = param.clone(), expected.clone()
        ours.run([grad], numbers, seed, counter)
        _step_of_torch(optimizer, options, numbers, expected, grad.float(), torchs, counter)
        factor = _factors(form, size, seed, counter, parameter_id, device)
        expected.copy_(torch.where(factor == 0, old, old + factor * (expected - old)))
        error = float(((param.float() - expected).abs() / (1 + expected.abs())).max())
        if not error <= 1e-5 + 2 * torch.finfo(dtype).eps:
            raise RuntimeError(f"step {counter} of {optimizer} in {dtype} differs from torch's by {error:.1e}")
        if not torch.equal(param[factor == 0], before[factor == 0]):
            raise RuntimeError(f"step {counter} of {optimizer} in {dtype} moved an element whose factor is 0")


def _step_of_torch(
    optimizer: str,
    options: tuple[bool, ...],
    numbers: tuple[float, ...],
    param: Tensor,
    grad: Tensor,
    states: list[Tensor],
    step: int,
) -> None:
    """Torch's own step, by its functions without the optimizer around them, whose hooks belong to others."""
    settings: dict[str, Any] = {
        "lr": numbers[0], "weight_decay": numbers[-1], "maximize": options[3], "foreach": False,
    }  # fmt: skip
    one, two, three = ([state] for state in states)
    before = [torch.tensor(step - 1.0, device="cpu")]
    if optimizer == "sgd":
        _, momentum, undamped, _ = numbers
        settings |= {"momentum": momentum, "dampening": 1 - undamped, "nesterov": options[1]}
        sgd([param], [grad], [states[0] if momentum else None], **settings)
    elif optimizer == "adam":
        _, beta1, beta2, eps, _ = numbers
        settings |= {"beta1": beta1, "beta2": beta2, "eps": eps}
        settings |= {"amsgrad": options[0], "decoupled_weight_decay": options[2]}
        adam([param], [grad], one, two, three, before, **settings)
    else:
        _, alpha, eps, momentum, _ = numbers
        settings |= {"alpha": alpha, "eps": eps, "momentum": momentum, "centered": options[1]}
        rmsprop([param], [grad], one, three, two, before, **settings)

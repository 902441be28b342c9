"""SGD, Adam, AdamW and RMSprop, with the noise inside their updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from flatwise._attach.step import unhooked
from flatwise._kernels.forms import Update
from flatwise.optim._plan import Settings
from flatwise.optim.fused import Fused, Perturbations


class SGD(Fused, torch.optim.SGD):
    """``torch.optim.SGD`` with a random learning rate: its arguments, its state, its checkpoints.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused: as
            ``torch.optim.SGD``. ``foreach=True`` and ``fused=False`` ask for torch's own step, which is then scaled
            afterwards.
        perturbation: one, or several whose factors multiply; default none, which is ``torch.optim.SGD`` to the bit.
        seed, stream, steps_per_epoch, epochs: as :func:`flatwise.perturb`.

    Raises:
        ValueError: as ``torch.optim.SGD`` and :func:`flatwise.perturb`; a seed without a perturbation.
    """

    _kernel = "sgd"
    _torch_step = unhooked(torch.optim.SGD.step)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        perturbation: Perturbations | None = None,
        seed: int | None = None,
        stream: int | None = None,
        steps_per_epoch: int | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self._attach(perturbation, seed, stream, steps_per_epoch, epochs)

    def _update(self, group: dict[str, Any]) -> Update:
        lists: list[list[Any]] = [[] for _ in range(3)]
        self._init_group(group, *lists)  # type: ignore[no-untyped-call]
        params, grads, momenta = lists
        states = (momenta,) if group["momentum"] != 0 else ()
        return Update(params, grads, states, [], "momentum_buffer", *self._settings(group))

    def _settings(self, group: dict[str, Any]) -> Settings:
        momentum, decay = group["momentum"], group["weight_decay"]
        options = (momentum != 0, group["nesterov"], decay != 0, group["maximize"])
        return options, (group["lr"], momentum, 1 - group["dampening"], decay)


class _Adam(Fused):
    """What Adam and AdamW share."""

    _kernel = "adam"
    _torch_step = unhooked(torch.optim.Adam.step)

    def _update(self, group: dict[str, Any]) -> Update:
        lists: list[list[Any]] = [[] for _ in range(6)]
        self._init_group(group, *lists)  # type: ignore[attr-defined]
        params, grads, averages, squares, peaks, counters = lists
        states = (averages, squares, peaks) if group["amsgrad"] else (averages, squares)
        return Update(params, grads, states, counters, "exp_avg", *self._settings(group))

    def _settings(self, group: dict[str, Any]) -> Settings:
        decay = group["weight_decay"]
        options = (group["amsgrad"], decay != 0, group["decoupled_weight_decay"], group["maximize"])
        return options, (group["lr"], *group["betas"], group["eps"], decay)


class Adam(_Adam, torch.optim.Adam):
    """``torch.optim.Adam`` with a random learning rate: its arguments, its state, its checkpoints.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, foreach, maximize, capturable, differentiable, fused,
            decoupled_weight_decay: as ``torch.optim.Adam``. ``foreach=True`` and ``fused=False`` ask for torch's own
            step, which is then scaled afterwards.
        perturbation: one, or several whose factors multiply; default none, which is ``torch.optim.Adam`` to the bit.
        seed, stream, steps_per_epoch, epochs: as :func:`flatwise.perturb`.

    Raises:
        ValueError: as ``torch.optim.Adam`` and :func:`flatwise.perturb`; a seed without a perturbation.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        perturbation: Perturbations | None = None,
        seed: int | None = None,
        stream: int | None = None,
        steps_per_epoch: int | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self._attach(perturbation, seed, stream, steps_per_epoch, epochs)


class AdamW(_Adam, torch.optim.AdamW):
    """``torch.optim.AdamW`` with a random learning rate: its arguments, its state, its checkpoints.

    Decoupled weight decay is multiplied by the learning rate, so the factor multiplies it as well.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize, foreach, capturable, differentiable, fused: as
            ``torch.optim.AdamW``. ``foreach=True`` and ``fused=False`` ask for torch's own step, which is then scaled
            afterwards.
        perturbation: one, or several whose factors multiply; default none, which is ``torch.optim.AdamW`` to the bit.
        seed, stream, steps_per_epoch, epochs: as :func:`flatwise.perturb`.

    Raises:
        ValueError: as ``torch.optim.AdamW`` and :func:`flatwise.perturb`; a seed without a perturbation.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        perturbation: Perturbations | None = None,
        seed: int | None = None,
        stream: int | None = None,
        steps_per_epoch: int | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self._attach(perturbation, seed, stream, steps_per_epoch, epochs)


class RMSprop(Fused, torch.optim.RMSprop):
    """``torch.optim.RMSprop`` with a random learning rate: its arguments, its state, its checkpoints.

    Args:
        params, lr, alpha, eps, weight_decay, momentum, centered, capturable, foreach, maximize, differentiable: as
            ``torch.optim.RMSprop``. ``foreach=True`` asks for torch's own step, which is then scaled afterwards.
        perturbation: one, or several whose factors multiply; default none: ``torch.optim.RMSprop`` to the bit.
        seed, stream, steps_per_epoch, epochs: as :func:`flatwise.perturb`.

    Raises:
        ValueError: as ``torch.optim.RMSprop`` and :func:`flatwise.perturb`; a seed without a perturbation.
    """

    _kernel = "rmsprop"
    _torch_step = unhooked(torch.optim.RMSprop.step)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        perturbation: Perturbations | None = None,
        seed: int | None = None,
        stream: int | None = None,
        steps_per_epoch: int | None = None,
        epochs: int | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            alpha,
            eps,
            weight_decay,
            momentum,
            centered,
            capturable,
            foreach,
            maximize,
            differentiable,
        )
        self._attach(perturbation, seed, stream, steps_per_epoch, epochs)

    def _update(self, group: dict[str, Any]) -> Update:
        lists: list[list[Any]] = [[] for _ in range(6)]
        self._init_group(group, *lists)  # type: ignore[no-untyped-call]
        params, grads, squares, momenta, averages, counters = lists
        return Update(params, grads, (squares, momenta, averages), counters, "square_avg", *self._settings(group))

    def _settings(self, group: dict[str, Any]) -> Settings:
        momentum, decay = group["momentum"], group["weight_decay"]
        options = (momentum > 0, group["centered"], decay != 0, group["maximize"])
        return options, (group["lr"], group["alpha"], group["eps"], momentum, decay)

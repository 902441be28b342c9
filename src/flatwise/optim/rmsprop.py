"""RMSprop, with the noise inside its update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from flatwise._kernels.forms import Update
from flatwise.optim._plan import Settings
from flatwise.optim.fused import Fused, Perturbations, unhooked


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
        params: list[Tensor] = []
        grads: list[Tensor] = []
        squares: list[Tensor] = []
        momenta: list[Tensor] = []
        averages: list[Tensor] = []
        counters: list[Tensor] = []
        self._init_group(group, params, grads, squares, momenta, averages, counters)  # type: ignore[no-untyped-call]
        return Update(params, grads, (squares, momenta, averages), counters, "square_avg", *self._settings(group))

    def _settings(self, group: dict[str, Any]) -> Settings:
        momentum, decay = group["momentum"], group["weight_decay"]
        options = (momentum > 0, group["centered"], decay != 0, group["maximize"])
        return options, (group["lr"], group["alpha"], group["eps"], momentum, decay)

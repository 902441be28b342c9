"""SGD, with the noise inside its update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from flatwise._kernels.forms import Update
from flatwise.optim._plan import Settings
from flatwise.optim.fused import Fused, Perturbations, unhooked


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
        params: list[Tensor] = []
        grads: list[Tensor] = []
        momenta: list[Tensor | None] = []
        self._init_group(group, params, grads, momenta)  # type: ignore[no-untyped-call]
        states = (momenta,) if group["momentum"] != 0 else ()
        return Update(params, grads, states, [], "momentum_buffer", *self._settings(group))

    def _settings(self, group: dict[str, Any]) -> Settings:
        momentum, decay = group["momentum"], group["weight_decay"]
        options = (momentum != 0, group["nesterov"], decay != 0, group["maximize"])
        return options, (group["lr"], momentum, 1 - group["dampening"], decay)

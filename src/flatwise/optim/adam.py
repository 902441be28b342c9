"""Adam, with the noise inside its update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from flatwise._kernels.forms import Update
from flatwise.optim._plan import Settings
from flatwise.optim.fused import Fused, Perturbations, unhooked


class _Adam(Fused):
    """What Adam and AdamW share."""

    _kernel = "adam"
    _torch_step = unhooked(torch.optim.Adam.step)

    def _update(self, group: dict[str, Any]) -> Update:
        params: list[Tensor] = []
        grads: list[Tensor] = []
        averages: list[Tensor] = []
        squares: list[Tensor] = []
        peaks: list[Tensor] = []
        counters: list[Tensor] = []
        self._init_group(group, params, grads, averages, squares, peaks, counters)  # type: ignore[attr-defined]
        states = (averages, squares, peaks) if group["amsgrad"] else (averages, squares)
        return Update(params, grads, states, counters, "exp_avg", *self._settings(group))

    def _settings(self, group: dict[str, Any]) -> Settings:
        decay = group["weight_decay"]
        options = (group["amsgrad"], decay != 0, group.get("decoupled_weight_decay", False), group["maximize"])
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
        # torch 2.6's Adam does not know decoupled weight decay: it is only mentioned where it is asked for.
        asked = {"decoupled_weight_decay": True} if decoupled_weight_decay else {}
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
            **asked,
        )
        self._attach(perturbation, seed, stream, steps_per_epoch, epochs)

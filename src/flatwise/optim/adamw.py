"""AdamW, with the noise inside its update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from flatwise.optim._plan import Settings
from flatwise.optim.adam import _Adam
from flatwise.optim.fused import Perturbations, unhooked


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

    _torch_step = unhooked(torch.optim.AdamW.step)

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

    def _settings(self, group: dict[str, Any]) -> Settings:
        (amsgrad, decays, _, ascends), numbers = super()._settings(group)
        return (amsgrad, decays, True, ascends), numbers  # older torch does not keep it in the group

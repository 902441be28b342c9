"""Learning-rate schedules by name: recipes of the papers, over torch's schedulers.

Every recipe multiplies the learning rate that is set, so the rate can be tuned under any of them. Shares of the epochs
are rounded up to whole epochs, so a short run never begins with a reduced rate. LRD is "Learning Rate Dropout", RN
"Random Noise in Learning Rates", RALR "Random Amplify Learning Rates"; the epochs in brackets are theirs.

==================  ====================================================================================================
``constant``        the rate that is set (LRD on MNIST; RN's Const; LEAP, Tables 2 and 3)
``cosine``          half a cosine, down to 0 after the last epoch (Loshchilov and Hutter 2017, without restarts)
``step``            ÷ 10 at 1/2 and 3/4 of the epochs (LRD on CIFAR: 100, 150 of 200; RALR: 150, 225 of 300)
``step-half``       ÷ 10 at 1/2 (RALR, Table 6, under Adam and Adagrad: 150 of 300)
``step-thirds``     ÷ 10 at 1/3 and 2/3 (LRD on Tiny ImageNet: 30, 60 of 90)
``step-quarters``   ÷ 10 at 1/4, 1/2 and 3/4 (LRD on ImageNet: 20, 40, 60 of 80)
``rn-step``         ÷ 10 at 2/5, 3/5 and 4/5, ÷ 2 at 9/10 (RN's SD: 80, 120, 160 and 180 of 200)
``exponential``     × 0.96^(k/600) at step k, whatever the epochs (RN's ED)
``cyclic``          straight from the rate up to 3 × it and back in 16 epochs, again and again (Smith 2017)
``rn-cyclic``       ``cyclic`` times ``rn-step`` (RN's CLR, whose bounds decay as its SD does)
``warm-restarts``   half a cosine down to 0, again from the full rate after 10, 30, 70, … epochs (Loshchilov and Hutter
                    2017, T₀ = 10, T_mult = 2; RN's WR)
==================  ====================================================================================================

The last four change the rate at every step, the others between epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, LambdaLR, MultiStepLR

from flatwise.study.task import Settings

if TYPE_CHECKING:
    from flatwise.study.trial import Interval, SchedulerFactory


RN_STEPS = ((Fraction(2, 5), 0.1), (Fraction(3, 5), 0.1), (Fraction(4, 5), 0.1), (Fraction(9, 10), 0.5))
CYCLE_EPOCHS = 16
FIRST_RESTART = 10


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule for :meth:`flatwise.study.trial.Trial.attach`.

    Attributes:
        factory: makes the scheduler; ``None`` for a constant rate.
        interval: how often it is stepped: once an ``"epoch"`` or after every optimizer ``"step"``.
    """

    factory: SchedulerFactory | None
    interval: Interval


Recipe = Callable[[int, int], Schedule]


def find_schedule(settings: Settings, steps_per_epoch: int) -> Schedule:
    """Return the schedule that the settings name.

    Args:
        settings: the schedule's name, and the epochs.
        steps_per_epoch: optimizer steps in an epoch.
    """
    return RECIPES[settings.schedule](settings.epochs, steps_per_epoch)


def _tenth_at(*shares: Fraction) -> Recipe:
    """A recipe that divides the rate by 10 after each of these shares of the epochs."""

    def recipe(epochs: int, steps_per_epoch: int) -> Schedule:
        milestones = [math.ceil(share * epochs) for share in shares]
        return Schedule(lambda optimizer: MultiStepLR(optimizer, milestones=milestones, gamma=0.1), "epoch")

    return recipe


def _warm_restarts(epochs: int, steps: int) -> Schedule:
    first = FIRST_RESTART * steps
    return Schedule(lambda optimizer: CosineAnnealingWarmRestarts(optimizer, T_0=first, T_mult=2), "step")


def _by_factor(interval: Interval, factor: Callable[[int], float]) -> Schedule:
    """The rate times the factor of the step or epoch."""
    return Schedule(lambda optimizer: LambdaLR(optimizer, factor), interval)


def _rn_factor(epoch: int, epochs: int) -> float:
    """RN's step decay: the product of the factors of all milestones that are behind."""
    return math.prod(factor for share, factor in RN_STEPS if epoch >= math.ceil(share * epochs))


def _triangle(step: int, steps: int) -> float:
    """From 1 up to 3 and back to 1 in a cycle."""
    progress = step / (CYCLE_EPOCHS * steps) % 1
    return 1 + 2 * (1 - abs(2 * progress - 1))


# Each makes a schedule from the number of epochs and the number of steps in an epoch.
RECIPES: dict[str, Recipe] = {
    "constant": lambda epochs, steps: Schedule(None, "epoch"),
    "cosine": lambda epochs, steps: Schedule(lambda optimizer: CosineAnnealingLR(optimizer, T_max=epochs), "epoch"),
    "step": _tenth_at(Fraction(1, 2), Fraction(3, 4)),
    "step-half": _tenth_at(Fraction(1, 2)),
    "step-thirds": _tenth_at(Fraction(1, 3), Fraction(2, 3)),
    "step-quarters": _tenth_at(Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)),
    "rn-step": lambda epochs, steps: _by_factor("epoch", lambda epoch: _rn_factor(epoch, epochs)),
    "exponential": lambda epochs, steps: _by_factor("step", lambda step: 0.96 ** (step / 600)),
    "cyclic": lambda epochs, steps: _by_factor("step", lambda step: _triangle(step, steps)),
    "rn-cyclic": lambda epochs, steps: _by_factor(
        "step", lambda step: _triangle(step, steps) * _rn_factor(step // steps, epochs)
    ),
    "warm-restarts": _warm_restarts,
}

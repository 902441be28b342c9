"""A perturbation of the learning rate, as a value: which factor, shared by whom, drawn how often, and when it acts.

``h = η(t) · f``: a schedule decides η, a :class:`Perturbation` decides f. Every method is one such value.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal, get_args

from flatwise.distributions import Constant, Distribution, plain_number

Scope = Literal["all", "group", "tensor", "channel", "element"]
Cadence = Literal["step", "epoch", "once"]


@dataclass(frozen=True)
class Window:
    """The part of training in which a perturbation acts, in fractions of the epochs: ``start · S ≤ e < stop · S``.

    Args:
        start: first epoch that is perturbed, as a fraction of the S epochs, rounded up; default 0.
        stop: end of the window; default 1, which never ends.

    Raises:
        ValueError: not ``0 <= start < stop <= 1``.
    """

    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop <= 1:
            raise ValueError(f"Window: needs 0 <= start < stop <= 1, got start={self.start!r}, stop={self.stop!r}")
        for name in ("start", "stop"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))

    @property
    def is_always(self) -> bool:
        """Whether the window is all of training; then the number of epochs need not be known."""
        return self.start == 0 and self.stop == 1

    def contains(self, epoch: int, epochs: int) -> bool:
        """Whether the 0-based ``epoch`` of ``epochs`` lies in the window."""
        # Rounding first: (1 − 0.7) · 10 is a little more than 3 in floating point, and epoch 3 is meant to be inside.
        first = math.ceil(round(self.start * epochs, 9))
        last = math.inf if self.stop == 1 else math.ceil(round(self.stop * epochs, 9))
        return first <= epoch < last


@dataclass(frozen=True)
class Perturbation:
    """The random factor f of ``h = η(t) · f``.

    Args:
        distribution: distribution of the factor.
        scope: who shares one draw: ``"all"`` parameters, the parameters of a ``"group"``, a ``"tensor"``, the weights
            of one output ``"channel"`` (the first dimension), or each ``"element"`` for itself (the default).
        cadence: a new draw at every optimizer ``"step"`` (the default), every ``"epoch"``, or ``"once"``.
        window: the epochs in which it acts; outside, f = 1. Default: all.
        min_lr: the noisy rate h is not allowed below this; scopes ``"all"`` and ``"group"`` only. Default: no bound.
        max_lr: the noisy rate h is not allowed above this; likewise.

    Raises:
        TypeError: ``distribution`` or ``window`` is of the wrong type.
        ValueError: an unknown scope or cadence, or bounds that do not apply or are not ``0 <= min_lr <= max_lr``.
    """

    distribution: Distribution
    scope: Scope = "element"
    cadence: Cadence = "step"
    window: Window = Window()
    min_lr: float | None = None
    max_lr: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.distribution, Distribution):
            raise TypeError(f"Perturbation: distribution must be a flatwise Distribution, got {self.distribution!r}")
        if not isinstance(self.window, Window):
            raise TypeError(f"Perturbation: window must be a flatwise.Window, got {self.window!r}")
        if self.scope not in get_args(Scope):
            raise ValueError(f"Perturbation: scope must be one of {', '.join(get_args(Scope))}; got {self.scope!r}")
        if self.cadence not in get_args(Cadence):
            raise ValueError(
                f"Perturbation: cadence must be one of {', '.join(get_args(Cadence))}; got {self.cadence!r}"
            )
        for name in ("min_lr", "max_lr"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        low, high = self.bounds
        if (low, high) != (-math.inf, math.inf) and not self.acts_on_rate:
            raise ValueError(
                f"Perturbation: min_lr and max_lr bound one rate, and scope {self.scope!r} has many: "
                "use scope 'all' or 'group', or a distribution with bounds"
            )
        if any(bound is not None and not bound >= 0 for bound in (self.min_lr, self.max_lr)) or not low <= high:
            raise ValueError(f"Perturbation: needs 0 <= min_lr <= max_lr, got {self.min_lr!r} and {self.max_lr!r}")

    @property
    def acts_on_rate(self) -> bool:
        """Whether one number per parameter group says it all: then the group's rate is multiplied for the step."""
        return self.scope in ("all", "group")

    @property
    def bounds(self) -> tuple[float, float]:
        """(min_lr, max_lr), with infinities for those not given."""
        low = -math.inf if self.min_lr is None else self.min_lr
        high = math.inf if self.max_lr is None else self.max_lr
        return low, high

    @property
    def is_identity(self) -> bool:
        """Whether f is always 1 and nothing bounds the rate: the plain optimizer, to the bit."""
        return self.distribution.is_one and not self.is_bounded

    @property
    def is_bounded(self) -> bool:
        """Whether ``min_lr`` or ``max_lr`` is given."""
        return self.bounds != (-math.inf, math.inf)

    @property
    def needs_steps_per_epoch(self) -> bool:
        """Whether the perturbation must be told how many optimizer steps make an epoch."""
        return self.cadence == "epoch" or not self.window.is_always

    @property
    def needs_epochs(self) -> bool:
        """Whether the perturbation must be told how many epochs the training has."""
        return not self.window.is_always

    def matched_rate(self) -> Perturbation:
        """The control with the same mean rate and no randomness: the factor is its mean, in the same window.

        A gain over plain training that this control has as well is the rate's, not the noise's. Bounds are kept.
        """
        scope: Scope = self.scope if self.acts_on_rate else "all"
        return replace(self, distribution=Constant(self.distribution.mean), scope=scope, cadence="once")

    def to_dict(self) -> dict[str, Any]:
        """The perturbation as plain data, for records and fingerprints: equal perturbations give equal data."""
        return {
            **self.distribution.to_dict(),
            "scope": self.scope,
            "cadence": self.cadence,
            "window": [float(self.window.start), float(self.window.stop)],
            "min_lr": None if self.min_lr is None else float(self.min_lr),
            "max_lr": None if self.max_lr is None else float(self.max_lr),
        }


def fingerprint(
    perturbations: tuple[Perturbation, ...], steps_per_epoch: int | None = None, epochs: int | None = None
) -> int:
    """63 bits that tell one composition from another: a plain number, so that any checkpoint can hold it.

    The number of steps in an epoch and of epochs count where the perturbations depend on them.
    """
    content: list[Any] = [perturbation.to_dict() for perturbation in perturbations]
    if any(p.needs_steps_per_epoch for p in perturbations):
        content.append({"steps_per_epoch": steps_per_epoch})
    if any(p.needs_epochs for p in perturbations):
        content.append({"epochs": epochs})
    text = json.dumps(content, sort_keys=True)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

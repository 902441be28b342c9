"""Losses along lines: what was measured, as plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from flatwise.flatness.errors import FlatnessError


@dataclass(frozen=True, slots=True)
class LossCurve:
    """The losses of one model over one data set along one or several directions.

    Attributes:
        model, data: their names.
        center: the loss of the model as it is.
        losses: for each direction, the loss at each distance: the mean over the samples. Infinite or NaN where it is.
    """

    model: str
    data: str
    center: float
    losses: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean over the directions at each distance; infinite or NaN if one of them is."""
        return tuple(sum(column) / len(column) for column in zip(*self.losses, strict=True))


@dataclass(frozen=True, slots=True)
class LossCurves:
    """The losses of models over data sets along the same lines.

    Attributes:
        distances: where along each line, in the units that the function which measured them says.
        curves: one for every model with every data set.
        end: for a path between two points, the distance of the other point; else ``None``.
        ends: the same by the models' names, where each has a path of its own; else empty.
    """

    distances: tuple[float, ...]
    curves: tuple[LossCurve, ...]
    end: float | None = None
    ends: Mapping[str, float] = field(default_factory=dict)

    def curve(self, model: str | None = None, data: str | None = None) -> LossCurve:
        """The curve of one model over one data set; what there is only one of need not be named.

        Raises:
            FlatnessError: there is none, or several.
        """
        return pick(self.curves, model, data)


class Named(Protocol):
    """What belongs to one model and one data set."""

    @property
    def model(self) -> str: ...  # noqa: D102

    @property
    def data(self) -> str: ...  # noqa: D102


Entry = TypeVar("Entry", bound=Named)


def pick(entries: Sequence[Entry], model: str | None, data: str | None) -> Entry:
    """The one entry with these names; ``None`` fits any.

    Raises:
        FlatnessError: there is none, or several.
    """
    fitting = [entry for entry in entries if model in (None, entry.model) and data in (None, entry.data)]
    if len(fitting) != 1:
        raise FlatnessError(
            f"{len(fitting)} entries have model={model!r} and data={data!r}, not one; there are (model, data) "
            f"{[(entry.model, entry.data) for entry in entries]}"
        )
    return fitting[0]


def checked_distances(distances: Iterable[float], what: str = "distances") -> tuple[float, ...]:
    """Distances as floats.

    Raises:
        FlatnessError: there are none, or one is not a finite number.
    """
    try:
        values = tuple(float(distance) for distance in distances)
    except (TypeError, ValueError):
        raise FlatnessError(f"{what} must be numbers; got {distances!r}") from None
    if not values or not all(math.isfinite(value) for value in values):
        raise FlatnessError(f"{what} must be finite numbers, at least one; got {values}")
    return values


def symmetric(reach: float, steps: int) -> tuple[float, ...]:
    """``2 · steps + 1`` distances from ``−reach`` to ``reach``, both and 0 exactly among them."""
    return tuple(reach * (index / steps) for index in range(-steps, steps + 1))

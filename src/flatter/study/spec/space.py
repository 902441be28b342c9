"""Search spaces: which values a setting may be tuned to."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import Self

Value = int | float | str | bool


class Choices(BaseModel):
    """Some values, in the order in which a grid tries them: ``[0.1, 0.05, 0.01]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    values: tuple[Value, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len({(type(value), value) for value in self.values}) < len(self.values):
            raise ValueError("a value stands twice in the search space: give each once")
        return self


class Times(BaseModel):
    """The baseline's value times these factors, in the order of a grid: ``{ times = [0.5, 1, 2] }``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    times: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len(set(self.times)) < len(self.times):
            raise ValueError("a factor stands twice in the search space: give each once")
        return self


class Range(BaseModel):
    """Any number between two: ``{ low = 1e-4, high = 0.1, log = true }``. For the samplers random and tpe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high; got low = {self.low:g}, high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range needs low above 0; got {self.low:g}")
        return self


def _by_shape(given: Any) -> Any:
    """A list is choices, a table is what its keys say: each gets its own class, and so its own errors."""
    if isinstance(given, (Choices, Times, Range)):
        return given
    if isinstance(given, list):
        return Choices(values=tuple(given))
    if isinstance(given, dict):
        return Times(**given) if "times" in given else Range(**given)
    raise ValueError("expected a list of values, { times = [...] } or { low = ..., high = ..., log = ... }")


Space = dict[str, Annotated[Choices | Times | Range, BeforeValidator(_by_shape)]]


def grid_size(space: Space) -> int | None:
    """Number of configurations of a grid over the space; ``None`` where a range has no grid. An empty space has one."""
    sizes = []
    for dimension in space.values():
        if isinstance(dimension, Range):
            return None
        sizes.append(len(dimension.times if isinstance(dimension, Times) else dimension.values))
    return math.prod(sizes)

"""Search spaces: which values a setting may be tuned to."""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

T = TypeVar("T")


def _value(given: Any) -> int | float | str | bool:
    """One plain value. A union of pydantic's would give a message for each of its types."""
    if isinstance(given, float) and not math.isfinite(given):
        raise ValueError("expected a finite number")
    if isinstance(given, int) and not -(2**63) <= given < 2**63:
        raise ValueError("expected a number of at most 64 bits")
    if not isinstance(given, (int, float, str)):
        raise ValueError("expected a number, a text, true or false")
    return given


def _setting(given: Any) -> Any:
    """A value or a list of values."""
    return [_value(each) for each in given] if isinstance(given, (list, tuple)) else _value(given)


def _not_empty(given: tuple[T, ...]) -> tuple[T, ...]:
    """As pydantic's ``min_length``, which would also call a list empty whose values are all wrong."""
    if not given:
        raise PydanticCustomError("too_short", "it is empty")
    return given


Value = Annotated[int | float | str | bool, PlainValidator(_value)]
Setting = Annotated[int | float | str | bool | list[int | float | str | bool], PlainValidator(_setting)]
Number = Annotated[float, Field(strict=True)]
"""A number, and neither a text nor a truth value that could be read as one."""


class Choices(BaseModel):
    """Some values, in the order in which a grid tries them: ``[0.1, 0.05, 0.01]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    values: Annotated[tuple[Value, ...], AfterValidator(_not_empty)]

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len({(type(value), value) for value in self.values}) < len(self.values):
            raise ValueError("a value stands twice in the search space: give each once")
        return self


class Times(BaseModel):
    """The baseline's value times these factors, in the order of a grid: ``{ times = [0.5, 1, 2] }``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    times: Annotated[tuple[Annotated[Number, Field(gt=0)], ...], AfterValidator(_not_empty)]

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len(set(self.times)) < len(self.times):
            raise ValueError("a factor stands twice in the search space: give each once")
        return self


class Range(BaseModel):
    """Any number between two: ``{ low = 1e-4, high = 0.1, log = true }``. For the samplers random and tpe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: Number
    high: Number
    log: bool = Field(default=False, strict=True)

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

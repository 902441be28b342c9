"""The study file as data: its tables, their fields, the search spaces, and what must hold between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from flatwise.exceptions import FlatwiseError
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.hints import did_you_mean


class StudyError(FlatwiseError, ValueError):
    """A study that cannot be run as it is written. The message is one line."""


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


VANILLA = "vanilla"
_SEED_LIMIT = 2**63  # what torch's generators take
_MOST_THREADS = 1024
Seed = Annotated[int, Field(ge=0, lt=_SEED_LIMIT, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]
# Far from the final runs' 0, 1, 2, …: a setting must not be chosen on the seeds that it is judged by.
_FIRST_TUNING_SEED = 1000


def _check_grid(where: str, space: Space, trials: int | None) -> int:
    size = grid_size(space)
    if size is None:
        key = next(key for key, dimension in space.items() if isinstance(dimension, Range))
        raise ValueError(f"{where}.{key} is a range, which has no grid: list its values, or use sampler = 'random'")
    if trials is not None and space and size != trials:
        raise ValueError(f"{where} has a grid of {size} configurations, but the budget is {trials}")
    return size


def _check_names(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two {what} are named {name!r}: give each a name of its own")


def _check_enough(what: str, space: Space, trials: int | None) -> None:
    """A sampler that has fewer configurations than trials tries some twice: its budget is smaller than it seems."""
    size = grid_size(space)
    if space and size is not None and trials is not None and size < trials:
        raise ValueError(
            f"{what} has only {size} configuration{'s'[: size > 1]}, but the budget is {trials}: "
            "widen its space, or use sampler = 'grid'"
        )


def _named_after(given: Any, key: str) -> Any:
    """The table with a name; default: what it has under the key. A name that is written must not be empty."""
    if not isinstance(given, dict) or not given.get(key):
        return given
    return {"name": given[key], **given}


def _thread_count(given: Any) -> Any:
    is_count = isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= _MOST_THREADS
    if not is_count and given != "fair":
        raise ValueError(f"expected 1 to {_MOST_THREADS}, or 'fair'")
    return given


def _check_seed(given: Any) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < _SEED_LIMIT:
        raise ValueError(f"a seed is a whole number from 0 to 2**63 - 1; got {given!r}")


def _seed_list(given: Any, first: int) -> Any:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= 10_000:
            raise ValueError(f"expected 1 to 10,000 seeds, or a list of them; got {given}")
        return tuple(range(first, first + given))
    if not isinstance(given, (list, tuple)):
        raise ValueError("expected a number of seeds or a list of them")
    for seed in given:
        _check_seed(seed)
    if len(set(given)) < len(given):
        raise ValueError("a seed stands twice in the list")
    return given


def _flatness(given: Any) -> FlatnessSettings | None:
    if given is None or isinstance(given, FlatnessSettings):
        return given
    if isinstance(given, bool):
        return FlatnessSettings() if given else None
    if not isinstance(given, dict):
        raise ValueError("expected true, false, or a table such as { max_batches = 5 }")
    known = [each.name for each in fields(FlatnessSettings)]
    for name in given:
        if name not in known:
            raise ValueError(f"there is no field {name}: {did_you_mean(name, known)}There are {', '.join(known)}")
    return FlatnessSettings(**given)


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PaperSpec(_Table):
    """Which printed results a study, a cell or an arm is compared with: notes for a plugin, which flatwise only keeps.

    A plugin that knows published tables, such as flatwise-papers, reads them. Each field names the value in a column
    of its tables; ``None`` is any value. What a cell sets counts before the study's, and what an arm sets before both.

    Attributes:
        paper, table: the paper, and its table as the paper numbers it, such as ``"3"`` or ``"I"``.
        dataset, model, optimizer, schedule: the cell, in the paper's spelling.
        arm: the paper's name for the arm; an arm without it is compared with nothing.
        settings: the arm's settings, as in ``"alpha=8;beta=0.6"``.
        baseline: the paper's name for vanilla.
    """

    paper: str | None = None
    table: str | None = None
    dataset: str | None = None
    model: str | None = None
    optimizer: str | None = None
    schedule: str | None = None
    arm: str | None = None
    settings: str | None = None
    baseline: str | None = None


class CellSpec(_Table):
    """One problem of the study: a task with settings. Everything is tuned and judged cell by cell.

    Attributes:
        task: a built-in task, or ``"module:attribute"`` that names a :class:`flatwise.Task`.
        name: what the report calls it; default: the task's name.
        settings: changes to the task's settings in this cell.
        paper: what it replicates.
    """

    task: str = Field(min_length=1)
    name: str = Field(default="", min_length=1)
    settings: dict[str, Setting] = {}
    paper: PaperSpec = Field(default_factory=PaperSpec)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return _named_after(given, "task")


class ArmSpec(_Table):
    """One arm: a method, what is fixed about it, and what is tuned.

    Attributes:
        method: ``"vanilla"`` or a method, such as ``"leap"``.
        name: what the report calls it; default: the method.
        arguments: fixed arguments of the method, such as ``{ beta = 0.6 }``.
        settings: changes to the task's settings in this arm alone, such as ``{ label_noise = 0.1 }``.
        space: what is tuned: arguments of the method and settings of the task.
        paper: what the arm is called in the paper's table.
    """

    method: str = Field(min_length=1)
    name: str = Field(default="", min_length=1, pattern=r"^[^/\x00-\x1f]*$")
    arguments: dict[str, Number] = {}
    settings: dict[str, Setting] = {}
    space: Space = {}
    paper: PaperSpec = Field(default_factory=PaperSpec)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return _named_after(given, "method")

    @model_validator(mode="after")
    def _said_once(self) -> Self:
        """What is fixed is not tuned as well; only factors need a value to multiply."""
        for key, dimension in self.space.items():
            for table, fixed in (("arguments", self.arguments), ("settings", self.settings)):
                if key in fixed and not isinstance(dimension, Times):
                    raise ValueError(
                        f"{table}.{key} is fixed beside space.{key}, which tunes it: remove one of the two"
                    )
        return self


class TuningSpec(_Table):
    """How settings are searched: on validation data, with as many configurations for every arm.

    Attributes:
        sampler: ``"grid"`` (all of a space), ``"random"``, or ``"tpe"`` (Optuna's tree-structured Parzen estimator).
        trials: configurations of every arm; default, for a grid: the size of the arms' spaces, which must be equal.
        baseline: a space that vanilla is tuned over first; every arm starts from its choice.
        baseline_trials: configurations of that; default, for a grid: its size.
        seeds: a configuration is judged by its mean over these; a number stands for so many seeds from 1000 on.
        sampler_seed: seed of the samplers random and tpe; default 0.
        round_size: tpe proposes this many configurations at once, before it learns from their outcome; default 4. It is
            part of the study, not of the machine: the same study tries the same configurations on any number of cores.
    """

    sampler: Literal["grid", "random", "tpe"] = "grid"
    trials: Count | None = None
    baseline: Space = {}
    baseline_trials: Count | None = None
    seeds: tuple[Seed, ...] = Field(default=(_FIRST_TUNING_SEED,), min_length=1)
    sampler_seed: int = Field(default=0, ge=0, lt=2**32, strict=True)
    round_size: Count = 4

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, given: Any) -> Any:
        return _seed_list(given, _FIRST_TUNING_SEED)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, dimension in self.baseline.items():
            if isinstance(dimension, Times):
                raise ValueError(f"baseline.{key}: times are factors of the baseline's choice, so it cannot have them")
        self._check_used()
        if self.sampler != "grid" and self.baseline and self.baseline_trials is None:
            raise ValueError(f"baseline_trials is missing: the sampler {self.sampler} needs a number of configurations")
        if self.sampler == "grid":
            _check_grid("baseline", self.baseline, self.baseline_trials)
        return self

    def _check_used(self) -> None:
        """Refuses what is written and would do nothing."""
        given = self.model_fields_set
        if "sampler_seed" in given and self.sampler == "grid":
            raise ValueError("sampler_seed is for the samplers random and tpe: a grid draws nothing, remove it")
        if "round_size" in given and self.sampler != "tpe":
            raise ValueError(f"round_size is for the sampler tpe, not for {self.sampler}: remove it")
        if "baseline_trials" in given and not self.baseline:
            raise ValueError("baseline_trials is given, but no baseline: add a baseline, or remove it")


class FinalSpec(_Table):
    """The runs that are judged, on the test set.

    Attributes:
        seeds: a list, or how many: 0, 1, …; default 10.
        controls: whether every method is held against a control with its settings and its mean rate, without noise.
        level: family-wise level of the tests, in (0, 1); default 0.05.
        flatness: measure how flat the loss is around the final models: ``true``, or a table with fields of
            :class:`flatwise.FlatnessSettings`, such as ``{ max_batches = 5 }``. Default: it is not measured.
    """

    seeds: tuple[Seed, ...] = Field(default=tuple(range(10)), min_length=1)
    controls: bool = Field(default=True, strict=True)
    level: Number = Field(default=0.05, gt=0, lt=1)
    flatness: Annotated[FlatnessSettings | None, PlainValidator(_flatness)] = None

    @field_validator("seeds", mode="before")
    @classmethod
    def _counted(cls, given: Any) -> Any:
        return _seed_list(given, 0)


class StudySpec(_Table):
    """A whole study.

    Attributes:
        name: what folders and reports are called; default: the file's name.
        title: one line for the report; may be empty.
        description: what the study asks and what its budget leaves out, for the report; may be empty.
        cells: the problems; ``task = "..."`` at the top stands for one cell.
        settings: changes to the tasks' settings, in all cells.
        arms: the arms; vanilla is among them.
        tuning: how settings are searched; without it nothing is tuned.
        final: the runs that are judged.
        threads: torch's CPU threads per trial, 1 to 1024; default 1, so that results do not depend on the number
            of cores.
            ``"fair"`` divides the machine's cores among the workers: faster for large models, not the same bits.
        paper: what the study replicates.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    description: str = ""
    cells: tuple[CellSpec, ...] = Field(min_length=1)
    settings: dict[str, Setting] = {}
    arms: tuple[ArmSpec, ...] = Field(min_length=1)
    tuning: TuningSpec = Field(default_factory=TuningSpec)
    final: FinalSpec = Field(default_factory=FinalSpec)
    threads: Annotated[int | Literal["fair"], PlainValidator(_thread_count)] = 1
    paper: PaperSpec = Field(default_factory=PaperSpec)

    @model_validator(mode="before")
    @classmethod
    def _one_cell(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "task" not in given:
            return given
        if "cells" in given:
            raise ValueError("give either task = '...' or [[cells]], not both")
        return {**{key: value for key, value in given.items() if key != "task"}, "cells": [{"task": given["task"]}]}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_names("cells", [cell.name for cell in self.cells])
        _check_names("arms", [arm.name for arm in self.arms])
        for arm in self.arms:
            if (arm.name == VANILLA) != (arm.method == VANILLA and not arm.settings and not arm.arguments):
                raise ValueError(
                    f"arm {arm.name!r}: vanilla is the training without a method, and the name of no other arm"
                )
        if all(arm.name != VANILLA for arm in self.arms):
            raise ValueError("there is no arm vanilla to compare with: add [[arms]] with method = 'vanilla'")
        tuned = bool(self.tuning.baseline) or any(arm.space for arm in self.arms)
        self._check_tuning_used(tuned)
        if tuned and set(self.tuning.seeds) & set(self.final.seeds):
            raise ValueError("tuning.seeds and final.seeds share a seed: settings must be judged on seeds of their own")
        self._check_budgets()
        return self

    def _check_tuning_used(self, tuned: bool) -> None:
        """Refuses what [tuning] says of searches that there are not."""
        given = [
            name for name in TuningSpec.model_fields if name in self.tuning.model_fields_set and name != "baseline"
        ]
        if given and not tuned:
            raise ValueError(f"tuning.{given[0]} is given, but nothing is tuned: give an arm a space, or remove it")
        if self.tuning.trials is not None and not any(arm.space for arm in self.arms):
            raise ValueError("tuning.trials is given, but no arm has a space: give each arm one, or remove it")

    def _check_budgets(self) -> None:
        """Every arm tries as many configurations as every other: else tuning alone could make a winner."""
        tuning = self.tuning
        if tuning.sampler == "grid":
            sizes = {arm.name: _check_grid(f"arm {arm.name!r}: space", arm.space, tuning.trials) for arm in self.arms}
            if len(set(sizes.values())) > 1:
                told = ", ".join(f"{name} {size}" for name, size in sizes.items())
                raise ValueError(
                    f"the arms have unequal tuning budgets ({told} configurations): give each as many, as in a "
                    "vanilla arm with space.learning_rate = { times = [0.5, 0.7, 1, 1.4, 2] }"
                )
            return
        searched = [arm.name for arm in self.arms if arm.space]
        if searched and len(searched) < len(self.arms):
            idle = next(arm.name for arm in self.arms if not arm.space)
            raise ValueError(f"arm {idle!r} has no search space while others have: equal budgets need one for each")
        if searched and tuning.trials is None:
            raise ValueError(f"tuning.trials is missing: the sampler {tuning.sampler} needs a number of configurations")
        for arm in self.arms:
            _check_enough(f"arm {arm.name!r}", arm.space, tuning.trials)
        _check_enough("tuning.baseline", tuning.baseline, tuning.baseline_trials)

    def with_cells(self, names: Sequence[str]) -> Self:
        """The same study of some of its cells.

        Args:
            names: names of cells.

        Raises:
            ValueError: there is no such cell; the message has the closest name and all names.
        """
        known = [cell.name for cell in self.cells]
        for name in names:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ValueError(f"study {self.name} has no cell {name!r}: {hint}Its cells are {', '.join(known)}")
        return self.model_copy(update={"cells": tuple(cell for cell in self.cells if cell.name in names)})

    @property
    def trials_per_arm(self) -> int:
        """Configurations that every arm tries, after the baseline's tuning; 1 where nothing is tuned."""
        if self.tuning.sampler == "grid":
            return grid_size(self.arms[0].space) or 1
        return (self.tuning.trials or 1) if self.arms[0].space else 1

"""Several models over several data sets, all measured in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import nn

from flatwise.flatness._data import Replay
from flatwise.flatness.guard import FlatnessError, Mode, untouched
from flatwise.flatness.objective import Loss, Objective, measuring_again

Models: TypeAlias = nn.Module | Mapping[str, nn.Module]
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ModelsAndData:
    """What is measured: models, data sets, and how.

    Attributes:
        models: by name; a single one is called ``"model"``.
        data: data sets by name; a single one is called ``"data"``.
        loss, max_batches, mode, dtype: as for :func:`flatwise.flatness.measuring`.
        replays: by data set, what its batches were at the first pass: all models must see the same.
    """

    models: dict[str, nn.Module]
    data: dict[str, Any]
    loss: Loss
    max_batches: int | None
    mode: Mode
    dtype: torch.dtype | None
    replays: dict[str, Replay] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Models,
        loss: Loss,
        data: Any,
        *,
        max_batches: int | None,
        mode: Mode,
        dtype: torch.dtype | None,
    ) -> ModelsAndData:
        """Name what the user gave.

        Args:
            model: a module, or a mapping of names to modules.
            data: data as :func:`flatwise.flatness.measuring` takes them, or a mapping of names to such data. A mapping
                that has a tensor among its values is one batch.

        Raises:
            FlatnessError: an empty mapping.
        """
        models = dict(model) if isinstance(model, Mapping) else {"model": model}
        several = isinstance(data, Mapping) and not any(isinstance(item, torch.Tensor) for item in data.values())
        sets = dict(data) if several else {"data": data}
        for kind, given in (("model", models), ("data set", sets)):
            if not given:
                raise FlatnessError(f"no {kind} was given: the mapping is empty")
        return cls(models, sets, loss, max_batches, mode, dtype)

    def alone(self, name: str) -> ModelsAndData:
        """The same with one of the models."""
        return replace(self, models={name: self.models[name]})

    @property
    def first(self) -> nn.Module:
        """The first model: directions that all share are made from its weights."""
        return next(iter(self.models.values()))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The names of every model with every data set."""
        return [(model, data) for model in self.models for data in self.data]

    @contextmanager
    def measuring(self, model: str, data: str, loss: Loss | None = None) -> Iterator[Objective]:
        """Lend one model for a ``with`` block, with one data set; errors name both if there are several.

        Args:
            model, data: names.
            loss: in place of :attr:`loss`, which is lent all the same.
        """
        try:
            with measuring_again(
                self.models[model],
                self.loss if loss is None else loss,
                self.data[data],
                max_batches=self.max_batches,
                mode=self.mode,
                dtype=self.dtype,
                replay=self.replays.setdefault(data, Replay()),
            ) as objective:
                if loss is not None and isinstance(self.loss, nn.Module):
                    with untouched(self.loss, mode=self.mode, dtype=self.dtype):
                        yield objective
                else:
                    yield objective
        except FlatnessError as error:
            if len(self.models) == 1 and len(self.data) == 1:
                raise
            raise FlatnessError(f"model {model!r}, data {data!r}: {error}") from error.__cause__

    def check_same_parameters(self) -> None:
        """Refuse models that cannot be moved along the same directions.

        Raises:
            FlatnessError: the parameters that require a gradient differ in name or shape.
        """
        first_name, *others = self.models
        first = parameter_shapes(self.models[first_name])
        for name in others:
            shapes = parameter_shapes(self.models[name])
            if shapes == first:
                continue
            differing = next(key for key in {**first, **shapes} if first.get(key) != shapes.get(key))
            raise FlatnessError(
                "models can be compared along the same directions only if their parameters that require a gradient "
                f"have the same names and shapes: {differing!r} is {_shape(first, differing)} in {first_name!r} and "
                f"{_shape(shapes, differing)} in {name!r}"
            )


def counter(progress: Progress | None, most: int) -> Callable[[], None]:
    """A function to call after each step: it calls ``progress(steps so far, most)``."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, most)

    return step


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters that require a gradient, by name.

    Raises:
        FlatnessError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise FlatnessError(f"a model must be a torch.nn.Module; got a {type(model).__name__}")
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}


def _shape(shapes: dict[str, tuple[int, ...]], name: str) -> str:
    return str(shapes[name]) if name in shapes else "missing or frozen"

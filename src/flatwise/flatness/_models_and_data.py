"""Several models over several data sets, by name, all measured in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn
from typing_extensions import Unpack

from flatwise.flatness._data import Replay
from flatwise.flatness.guard import FlatnessError, naming, trainable, untouched
from flatwise.flatness.objective import Loss, Objective, Options, Progress, measuring_again

Models: TypeAlias = nn.Module | Mapping[str, nn.Module]
Rows: TypeAlias = tuple[tuple[float, ...], ...]


class PathOptions(Options, total=False):
    """How to measure losses along paths: :class:`Options`, and ``progress``.

    ``progress`` is called after each loss as ``progress(losses so far, all losses)``.
    """

    progress: Progress | None


class ModelsAndData:
    """Models and data sets to measure, and how.

    Args:
        model: a module, or a mapping of names to modules.
        loss, **options: as for :func:`flatwise.flatness.measuring`.
        data: data as :func:`flatwise.flatness.measuring` takes them, or a mapping of names to such data. A mapping that
            has a tensor among its values is one batch.
        progress: called after each step as ``progress(steps so far, all steps)``.

    Attributes:
        models: by name; a single one is called ``"model"``.
        data: data sets by name; a single one is called ``"data"``.

    Raises:
        FlatnessError: an empty mapping.
    """

    def __init__(
        self, model: Models, loss: Loss, data: Any, progress: Progress | None = None, **options: Unpack[Options]
    ) -> None:
        several = isinstance(data, Mapping) and not any(isinstance(item, torch.Tensor) for item in data.values())
        self.models: dict[str, nn.Module] = dict(model) if isinstance(model, Mapping) else {"model": model}
        self.data: dict[str, Any] = dict(data) if several else {"data": data}
        for kind, given in (("model", self.models), ("data set", self.data)):
            if not given:
                raise FlatnessError(f"no {kind} was given: the mapping is empty")
        self.loss, self.progress, self.options = loss, progress, options
        self._replays: dict[str, Replay] = {}  # by data set: all models must see the same batches

    @property
    def first(self) -> nn.Module:
        """The first model: directions that all share are made from its weights."""
        return next(iter(self.models.values()))

    @property
    def first_data(self) -> str:
        """The name of the first data set: directions that depend on data are made from it."""
        return next(iter(self.data))

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
        several = len(self.models) > 1 or len(self.data) > 1
        measured = measuring_again(
            self.models[model],
            self.loss if loss is None else loss,
            self.data[data],
            self._replays.setdefault(data, Replay()),
            **self.options,
        )
        with naming(f"model {model!r}, data {data!r}") if several else nullcontext(), measured as objective:
            if loss is not None and isinstance(self.loss, nn.Module):
                mode, dtype = self.options.get("mode", "eval"), self.options.get("dtype")
                with untouched(self.loss, mode=mode, dtype=dtype):
                    yield objective
            else:
                yield objective

    def losses(
        self, rows: Callable[[str, Objective], Iterable[Iterable[torch.Tensor | None]]], count: int
    ) -> Iterator[tuple[str, str, float, Rows]]:
        """Measure every model over every data set at rows of weights.

        Args:
            rows: from a model's name and its objective to the weights; ``None``: the model's own.
            count: how many losses that is, for each model and data set.

        Yields:
            The names of the model and the data set, the loss of the model as it is, and the losses.
        """
        step = self.counter(len(self.pairs) * count)
        for model, data in self.pairs:
            with self.measuring(model, data) as objective:
                center = objective.loss()
                measured = []
                for row in rows(model, objective):
                    losses = []
                    for weights in row:
                        losses.append(center if weights is None else objective.loss(weights))
                        step()
                    measured.append(tuple(losses))
            yield model, data, center, tuple(measured)

    def counter(self, most: int) -> Callable[[], None]:
        """A function to call after each of ``most`` steps: it reports the progress."""
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            if self.progress is not None:
                self.progress(done, most)

        return step

    def check_same_parameters(self) -> None:
        """Raise if the models cannot be moved along the same directions.

        Raises:
            FlatnessError: the parameters that require a gradient differ in name or shape.
        """
        first_name, *others = self.models
        first, *rest = (
            {name: tuple(parameter.shape) for name, parameter in trainable(model).items()}
            for model in self.models.values()
        )
        for name, shapes in zip(others, rest, strict=True):
            if shapes == first:
                continue
            differing = next(key for key in {**first, **shapes} if first.get(key) != shapes.get(key))
            one, other = (of.get(differing, "missing or frozen") for of in (first, shapes))
            raise FlatnessError(
                "models can be compared along the same directions only if their parameters that require a gradient "
                f"have the same names and shapes: {differing!r} is {one} in {first_name!r} and {other} in {name!r}"
            )

"""What a task is: data, a training function, the metric that is judged, and default settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from flatwise.exceptions import FlatwiseError
from flatwise.stats import Better
from flatwise.study.comparison import direction_of

if TYPE_CHECKING:
    from flatwise.study.trial import Trial


OptimizerName = Literal["sgd", "nesterov", "rmsprop", "adam", "amsgrad", "radam", "adamw", "adagrad"]
ScheduleName = Literal[
    "constant",
    "cosine",
    "step",
    "step-half",
    "step-thirds",
    "step-quarters",
    "rn-step",
    "exponential",
    "cyclic",
    "rn-cyclic",
    "warm-restarts",
]

# What an optimizer's momentum is where none is set; None: it has no momentum.
USUAL_MOMENTUM: dict[str, float | None] = {
    "sgd": 0.9,
    "nesterov": 0.9,
    "rmsprop": 0.0,
    "adam": 0.9,
    "amsgrad": 0.9,
    "radam": 0.9,
    "adamw": 0.9,
    "adagrad": None,
}


class SettingsError(FlatwiseError, ValueError):
    """A task was given a setting that does not exist or a value that it cannot have. The message is one line."""


class Settings(BaseModel):
    """How a task trains. Immutable; a wrong value or an unknown name is an error.

    A task whose training has more to set (images: augmentation) extends it with fields of its own.

    Attributes:
        epochs: passes over the training data, at least 1.
        batch_size: examples per step, at least 1. The last batch of an epoch holds what is left, so it may be smaller.
        learning_rate: initial learning rate, above 0; the usual one depends on the optimizer. Schedules multiply it.
        optimizer: one of torch's, with torch's defaults for all that is not set here: ``"sgd"``; ``"nesterov"``, SGD
            with Nesterov momentum; ``"rmsprop"``; ``"adam"``; ``"amsgrad"``, Adam that divides by the largest second
            moment so far; ``"radam"``; ``"adamw"``; ``"adagrad"``.
        momentum: in [0, 1): the factor on the momentum buffer of ``"sgd"``, ``"nesterov"`` (above 0) and ``"rmsprop"``;
            β₁ of the Adams, whose β₂ is 0.999. ``"adagrad"`` has none, and refuses one. ``None`` (default): what is
            usual for the optimizer, so that one can be exchanged for another: 0 for ``"rmsprop"``, else 0.9.
        weight_decay: at least 0; decoupled for ``"adamw"``, L2 for all others.
        gradient_centralization: whether the mean over all dimensions but the first is subtracted from the gradient of
            every weight matrix or kernel: see :func:`flatwise.study.tasks.training.centralize_gradients`.
        schedule: how the rate changes: see :mod:`flatwise.study.tasks.schedules`.
        device: ``"cpu"`` or ``"cuda"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, le=2**31 - 1)
    learning_rate: float = Field(gt=0)
    optimizer: OptimizerName = "sgd"  # before momentum, which is checked against it
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_centralization: bool = False
    schedule: ScheduleName = "constant"
    device: Literal["cpu", "cuda"] = "cpu"

    @field_validator("momentum")
    @classmethod
    def _is_used(cls, momentum: float | None, info: ValidationInfo) -> float | None:
        """Refuses what the optimizer would ignore."""
        optimizer = info.data.get("optimizer")  # None where it is itself wrong
        if momentum is not None and optimizer is not None and USUAL_MOMENTUM[optimizer] is None:
            raise PydanticCustomError("momentum", "{name} has no momentum: leave it away", {"name": optimizer})
        if momentum == 0 and optimizer == "nesterov":
            raise PydanticCustomError("momentum", "nesterov without momentum is plain sgd: use optimizer = 'sgd'")
        return momentum

    def updated(self, changes: Mapping[str, Any]) -> Self:
        """Return these settings with ``changes``, validated. Text is converted, as in ``{"epochs": "30"}``.

        Raises:
            SettingsError: an unknown name or a value out of range; names each, and the closest known name.
        """
        try:
            return type(self).model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            known = list(type(self).model_fields)
            raise SettingsError(
                "; ".join(_problem(known, e["type"], e["loc"], e["msg"], e["input"]) for e in error.errors())
            ) from None

    def check_device(self) -> None:
        """Checks that the device is there.

        Raises:
            SettingsError: it is ``"cuda"`` and torch sees none.
        """
        if self.device == "cuda" and not torch.cuda.is_available():
            raise SettingsError(
                f"device = 'cuda', but torch {torch.__version__} sees no CUDA device: use device = 'cpu'"
            )


def _problem(names: list[str], kind: str, location: tuple[int | str, ...], message: str, value: object) -> str:
    name = str(location[0])
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(name, names, n=1)
        hint = f", did you mean '{close[0]}'?" if close else ";"
        return f"there is no setting {name!r}{hint} The settings are {', '.join(names)}"
    return f"{name} = {value!r}: {message[0].lower()}{message[1:]}"


class ClassificationSettings(Settings):
    """Settings of a task that can train on wrong labels.

    Attributes:
        label_noise: in [0, 1): the probability that a training label is replaced by one of the other classes, anew in
            every epoch; validation and test labels stay as they are. See
            :func:`flatwise.study.tasks.training.disturb_labels`.
    """

    label_noise: float = Field(default=0.0, ge=0, lt=1)


class TaskData(Protocol):
    """What every task's data can do."""

    def without_test(self) -> TaskData:
        """The same data without the test split."""


@dataclass(frozen=True, slots=True)
class Task:
    """A training problem on which arms are compared.

    While settings are tuned, ``train`` is handed ``load(...).without_test()``, and reports no test metric.

    Attributes:
        name: name on the command line, such as ``"digits-mlp"``.
        summary: one line that says what is trained on what.
        settings: default settings.
        load: gives the data; the argument is the data folder, ``None`` for the default. A task that needs no files
            ignores it. What it gives has a method ``without_test()`` that returns it without the test split.
        train: trains one model; gets the trial, the settings and what ``load`` gave.
        metric: the reported metric that is judged.
        validation_metric: the reported metric that settings are chosen by, in the same unit.
        unit: their unit.
        better: whether ``"lower"`` or ``"higher"`` values of them are better. Default: what the metric's name says; a
            name that does not say it is refused with a :class:`ValueError`.
        reads_files: whether ``load`` reads from the data folder.
        is_own: whether it is the user's own; set where it is imported.
        code: what its code is known by: the version of the plugin that it comes from, or what a store remembers of a
            user's own task. Default: found when needed.
    """

    name: str
    summary: str
    settings: Settings
    load: Callable[[Path | None], TaskData]
    train: Callable[[Trial, Any, Any], None]
    metric: str = "test_error"
    validation_metric: str = "val_error"
    unit: str = "%"
    better: Better | None = None
    reads_files: bool = True
    is_own: bool = False
    code: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "better", direction_of(self.metric, self.better))

    @property
    def direction(self) -> Better:
        """What is better, as it is given or known."""
        assert self.better is not None
        return self.better

"""What a task is: data, a training function, the metric that is judged, and default settings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from flatter.stats import Better

if TYPE_CHECKING:
    from flatter.study.trial import Trial


class SettingsError(ValueError):
    """A task was given a setting that does not exist or a value that it cannot have. The message is one line."""


class Settings(BaseModel):
    """How a task trains. Immutable; a wrong value or an unknown name is an error.

    A task whose training has more to set (images: augmentation) extends it with fields of its own.

    Attributes:
        epochs: passes over the training data, at least 1.
        batch_size: examples per step, at least 1. The last batch of an epoch holds what is left, so it may be smaller.
        learning_rate: initial learning rate, above 0.
        momentum: SGD's momentum, or β₁ of Adam and AdamW; in [0, 1).
        weight_decay: at least 0; L2 for ``"sgd"`` and ``"adam"``, decoupled for ``"adamw"``.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``.
        schedule: ``"constant"``; ``"cosine"``: from the initial rate towards 0 over the epochs; or ``"step"``: a tenth
            after one half and again after three quarters of the epochs. Rates change between epochs.
        device: ``"cpu"`` or ``"cuda"``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, le=2**31 - 1)
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    schedule: Literal["constant", "cosine", "step"] = "constant"
    device: Literal["cpu", "cuda"] = "cpu"

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
        return f"there is no setting '{name}'{hint} The settings are {', '.join(names)}"
    return f"{name} = {value!r}: {message[0].lower()}{message[1:]}"


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
        better: whether lower or higher values of them are better.
    """

    name: str
    summary: str
    settings: Settings
    load: Callable[[Path | None], TaskData]
    train: Callable[[Trial, Any, Any], None]
    metric: str = "test_error"
    validation_metric: str = "val_error"
    unit: str = "%"
    better: Better = "lower"

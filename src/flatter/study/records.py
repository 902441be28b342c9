"""What one trial leaves behind: plain data that survives JSON, a store and a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Status = Literal["finished", "failed"]


@dataclass(frozen=True, slots=True)
class Record:
    """One trial's outcome. A crash or a NaN is an outcome too: it has a record, with the message.

    Attributes:
        key: the hash of the trial's specification; two trials with one key are the same trial.
        task: name of the task.
        arm: name of the arm.
        seed: the seed that the trial shares with the other arms of its pair.
        status: ``"finished"``, or ``"failed"`` when the training function raised or the final metric is not finite.
        epochs: one mapping per reported epoch, in order: the training function's own metrics and flatter's
            ``scheduled_lr``, ``effective_lr`` (first parameter group, at the epoch's last step) and ``seconds``.
        error: the message of a failed trial, else ``None``.
        versions: the versions that the trial ran under, such as ``{"torch": "2.13.0"}``.
    """

    key: str
    task: str
    arm: str
    seed: int
    status: Status
    epochs: tuple[Mapping[str, float], ...]
    error: str | None = None
    versions: Mapping[str, str] | None = None

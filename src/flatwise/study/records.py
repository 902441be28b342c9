"""What one trial leaves behind: plain data that survives JSON, a store and a cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

Status = Literal["finished", "failed"]
# What flatwise adds to the metrics of an epoch.
OWN_COLUMNS = ("scheduled_lr", "effective_lr", "seconds")


@dataclass(frozen=True, slots=True)
class FlatnessRecord:
    """How flat one trial's final model is.

    Attributes:
        settings: what was asked for: :meth:`flatwise.FlatnessSettings.to_dict`.
        values: by name, each finite: ``loss``, ``gradient_norm``, ``eigenvalue_1`` and so on, ``trace`` and half the
            width of its 95 % interval, ``trace_error``; the mean loss increase at each radius, ``loss_increase_0.1``.
        missing: by name, why there is no value.
        unconverged: names of the values that ``max_iter`` products did not settle: eigenvalues whose residual is not
            within 1 %, or of which a further copy may be missing; the trace if its error bar is more than 10 % of it.
        seconds: what it took.
    """

    settings: Mapping[str, Any]
    values: Mapping[str, float]
    missing: Mapping[str, str]
    unconverged: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """One trial's outcome. A crash or a NaN is an outcome too: it has a record, with the message.

    Attributes:
        key: the hash of the trial's specification; two trials with one key are the same trial.
        task: name of the task.
        arm: name of the arm.
        seed: the seed that the trial shares with the other arms of its pair.
        status: ``"finished"``, or ``"failed"`` when the training function raised or the final metric is not finite.
        epochs: one mapping per reported epoch, in order: the training function's own metrics and flatwise's
            ``scheduled_lr``, ``effective_lr`` (first parameter group, at the epoch's last step) and ``seconds``.
        error: the message of a failed trial, else ``None``.
        traceback: where it was raised; ``None`` where nothing was, and in records of older versions.
        versions: the versions that the trial ran under, such as ``{"torch": "2.13.0"}``.
        flatness: how flat the final model is; ``None`` where it was not asked for or the training did not get so far.
        spec: all that identifies the trial but for the versions, as plain data; see :class:`TrialSpec`.
        started: when it started, UTC, such as ``"2026-03-01T12:00:00+00:00"``.
        seconds: what it took, evaluation included, loading the data excluded.
        memory: peak bytes by kind: ``"resident"``, ``"gpu"``.
        environment: what it ran on, such as ``{"platform": ..., "commit": ...}``.

    Those from ``spec`` on are ``None`` in records of older versions.
    """

    key: str
    task: str
    arm: str
    seed: int
    status: Status
    epochs: tuple[Mapping[str, float], ...]
    error: str | None = None
    versions: Mapping[str, str] | None = None
    flatness: FlatnessRecord | None = None
    spec: Mapping[str, Any] | None = None
    started: str | None = None
    seconds: float | None = None
    memory: Mapping[str, int] | None = None
    environment: Mapping[str, str] | None = None
    traceback: str | None = None

    def same_metrics(self, other: Record) -> bool:
        """Whether all metrics of all epochs are the same to the bit: two runs of one training.

        The time is left out, and so are the learning rates, which follow from the arm and not from the training.
        """
        return self.metrics() == other.metrics()

    def metrics(self) -> list[tuple[tuple[str, float | None], ...]]:
        """What the training function reported, epoch by epoch, in an order that does not depend on its own; a NaN is
        ``None``, so that it equals itself.
        """
        return [
            tuple(
                (name, None if math.isnan(value) else value)
                for name, value in sorted(epoch.items())
                if name not in OWN_COLUMNS
            )
            for epoch in self.epochs
        ]

    def final(self, metric: str) -> float:
        """The final epoch's metric; NaN for a failed trial."""
        return float(self.epochs[-1][metric]) if self.status == "finished" else math.nan

    @property
    def ended(self) -> datetime | None:
        """When the trial ended, UTC; ``None`` in records of older versions."""
        if self.started is None or self.seconds is None:
            return None
        return datetime.fromisoformat(self.started).astimezone(timezone.utc) + timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class JudgedArm:
    """An arm that was judged, as a store remembers it.

    Attributes:
        name: what it was called.
        control: the name of its control; ``None`` where it has none.
        is_control: whether it is one.
        identity: a text that two arms share if they do the same.
        keys: of each seed, the key of its trial.
    """

    name: str
    control: str | None
    is_control: bool
    identity: str
    keys: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Look:
    """A comparison that was judged: later ones on the same subject must know of it.

    Attributes:
        seeds: the seeds.
        arms: the arms, without vanilla.
    """

    seeds: tuple[int, ...]
    arms: tuple[JudgedArm, ...]

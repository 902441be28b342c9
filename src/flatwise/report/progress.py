"""Live progress in the terminal: which trial runs, how far it is, how long the rest will take."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flatwise.study.machine import kind_in_words, kind_of_machine
from flatwise.study.records import Record
from flatwise.study.runner import TrialSpec


class Reuse:
    """Counts the trials that were reused from the store, and the kinds of machines that trials ran on."""

    def __init__(self) -> None:
        self.count = 0
        self._run = 0
        self._ends: list[datetime] = []
        self._kinds: list[Mapping[str, str]] = []

    def found(self, record: Record) -> None:
        """Counts a trial that was in the store."""
        self.count += 1
        if record.ended is not None:
            self._ends = [min([*self._ends, record.ended]), max([*self._ends, record.ended])]
        self.runs_on(record.environment)

    def ran(self, record: Record) -> None:
        """Counts a trial that was run now."""
        self._run += 1
        self.runs_on(record.environment)

    def runs_on(self, environment: Mapping[str, str] | None) -> None:
        """Notes the kind of a machine that trials ran on, or will."""
        kind = kind_of_machine(environment)
        if kind is not None and kind not in self._kinds:
            self._kinds.append(kind)

    def line(self, total: int | None = None) -> str:
        """How many of all trials were found, and when they ended.

        Args:
            total: number of all trials; default: those found and those run so far.
        """
        total = self.count + self._run if total is None else total
        dates = list(dict.fromkeys(f"{end:%Y-%m-%d}" for end in self._ends))
        when = f", from {' to '.join(dates)}" if dates else ""
        return f"{self.count} of {total} trial{'' if total == 1 else 's'} reused{when}."

    def machines_line(self) -> str | None:
        """Says so where trials ran on different kinds of machines."""
        if len(self._kinds) < 2:
            return None
        kinds = "; ".join(map(kind_in_words, self._kinds))
        return (
            f"Note: the trials ran on different kinds of machines ({kinds}). The same trial may differ between them, "
            "in its last bits or more. If that matters, run all of them on one kind, in a new folder."
        )


class LiveProgress:
    """A progress bar over all trials; tells of failed trials as they fail. A context manager.

    Args:
        console: where to draw.
        shown: whether to draw at all; default ``True``.
    """

    def __init__(self, console: Console, *, shown: bool = True) -> None:
        self._shown = shown
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[detail]}", markup=False),  # arms have the user's names: never markup
            console=console,
            disable=not shown,
        )
        self._bar = self._progress.add_task("compare", total=None, detail="")

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, spec: TrialSpec, number: int, total: int) -> None:
        """Names the trial that starts."""
        self._progress.update(self._bar, total=total, completed=number, detail=f"{spec.arm.name}, seed {spec.seed}")

    def reported(self, spec: TrialSpec, epoch: int, metrics: Mapping[str, float]) -> None:
        """Shows an epoch's metric."""
        value = metrics.get(spec.subject.metric)
        shown = "" if value is None else f": {spec.subject.metric} {value:.4g}"
        self._progress.update(
            self._bar, detail=f"{spec.arm.name}, seed {spec.seed}, epoch {epoch + 1}{shown}", refresh=False
        )

    def measuring(self, spec: TrialSpec, what: str, done: int, of: int) -> None:
        """Shows how far a measurement of the final model is."""
        detail = f"{spec.arm.name}, seed {spec.seed}: {what} {done}/{of}"
        self._progress.update(self._bar, detail=detail, refresh=False)

    def ended(self, spec: TrialSpec, record: Record, number: int, total: int) -> None:
        """Counts a trial; a failed one, and a measurement that failed, is said aloud."""
        self._progress.update(self._bar, total=total, completed=number + 1)
        trial = f"{spec.arm.name}, seed {spec.seed}"
        if record.status == "failed":
            self._say(f"{trial} failed: {record.error}")
        elif record.flatness is not None and record.flatness.missing:
            reasons = "; ".join(dict.fromkeys(record.flatness.missing.values()))
            self._say(f"{trial}: {', '.join(record.flatness.missing)} not measured: {reasons}")

    def _say(self, message: str) -> None:
        if self._shown:
            self._progress.console.print(message, style="yellow", markup=False, highlight=False)

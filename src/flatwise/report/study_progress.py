"""Live progress of a study in the terminal: how many trials ended, how many failed, how long the round will take."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flatwise.report.progress import Reuse
from flatwise.report.table import NOTHING, number_of, plural
from flatwise.study.records import Record
from flatwise.study.runner import TrialSpec


class StudyProgress:
    """A progress bar over the trials of a round; tells of every kind of failure once. A context manager.

    A round is what can run at once: tuning, then the final runs. When one ends, the bar starts anew.

    Args:
        console: where to draw.
        shown: whether to draw at all; default ``True``.
    """

    def __init__(self, console: Console, *, shown: bool = True) -> None:
        self._shown = shown
        self._rounds = 0
        self._reuse = Reuse()
        self._said_machines = False
        self._failures: Counter[str] = Counter()
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[failed]}", style="yellow"),
            TextColumn("{task.fields[detail]}", markup=False),  # arms have the user's names: never markup
            console=console,
            disable=not shown,
        )
        self._bar = self._progress.add_task("study", total=None, failed="", detail="")

    def __enter__(self) -> StudyProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._reuse.count:
            self._say(self._reuse.line(), style="dim")
        for message, count in self._failures.items():
            if count > 1:
                self._say(f"{plural(count, 'trial')} failed with: {message}")

    def reused(self, record: Record) -> None:
        """Counts a trial that the store holds already."""
        self._reuse.found(record)
        self._compare_machines()

    def round_starts(self, missing: int, planned: int) -> None:
        """Starts the bar anew, at what the store holds already."""
        self._rounds += 1
        kept = f", {planned - missing} already there" if missing < planned else ""
        if missing:
            self._say(f"Round {self._rounds}: {plural(missing, 'trial')} to run{kept}", style="dim")
        # Else the trials that were there already would count as run in no time.
        self._progress.reset(self._bar, total=planned, completed=planned - missing)
        self._progress.update(self._bar, detail="")

    def ended(self, spec: TrialSpec, record: Record) -> None:
        """Counts a trial and shows its value; the first failure with a message is said aloud, the others counted."""
        self._reuse.ran(record)
        self._compare_machines()
        trial = f"{spec.subject.name}, {spec.arm.name}, seed {spec.seed}"
        if record.status == "failed":
            message = record.error or "no message"
            self._failures[message] += 1
            if self._failures[message] == 1:
                self._say(f"{trial} failed: {message}")
        value = number_of(record.final(spec.subject.metric))
        detail = f"{trial}: {'failed' if value == NOTHING else f'{spec.subject.metric} {value}'}"
        failed = self._failures.total()
        told = f"{failed} failed" if failed else ""
        self._progress.update(self._bar, advance=1, failed=told, detail=detail)

    def _compare_machines(self) -> None:
        line = self._reuse.machines_line()
        if line is not None and not self._said_machines:
            self._said_machines = True
            self._say(line)

    def _say(self, message: str, style: str = "yellow") -> None:
        if self._shown:
            self._progress.console.print(message, style=style, markup=False, highlight=False)

"""Live progress in the terminal: which trial runs, how many ended and failed, how long the rest will take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flatwise.report.table import NOTHING, number_of, plural
from flatwise.study.provenance import kind_in_words, kind_of_machine
from flatwise.study.store import Record
from flatwise.study.subjects import TrialSpec
from flatwise.study.work import Callback, Round


class LiveProgress(Callback):
    """A progress bar over the trials of a round; every kind of failure is printed once. A context manager.

    A round is what can run at once: in a study tuning, then the final runs. When one ends, the bar starts anew.

    Args:
        console: where to draw.
        shown: whether to draw at all; default ``True``.
    """

    def __init__(self, console: Console, *, shown: bool = True) -> None:
        self._shown = shown
        self._rounds = 0
        self._reused: list[Record] = []
        self._kinds: list[Mapping[str, str]] = []  # of the machines that trials ran on
        self._failures: Counter[str] = Counter()
        self._failed = 0
        self._progress = Progress(
            MofNCompleteColumn(),
            BarColumn(bar_width=16),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[failed]}", style="yellow"),
            TextColumn("{task.fields[detail]}", markup=False),  # arms have the user's names: never markup
            console=console,
            disable=not shown,
        )
        self._bar = self._progress.add_task("trials", total=None, failed="", detail="")

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        for message, count in self._failures.items():
            if count > 1:
                self._say(f"{plural(count, 'trial')} failed with: {message}")

    def on_reused(self, spec: TrialSpec, record: Record) -> None:
        """Count a trial that the store holds; see :meth:`on_round_start`."""
        self._reused.append(record)
        self._count_failure(spec, record)
        self._compare_machines(record)

    def on_round_start(self, start: Round) -> None:
        """Start the bar anew, at what the store holds already, and say what is reused and what runs again."""
        self._rounds += 1
        if start.missing:
            kept = f", {start.planned - start.missing} already there" if start.missing < start.planned else ""
            self._say(f"Round {self._rounds}: {plural(start.missing, 'trial')} to run{kept}", style="dim")
        if self._reused:
            self._say(f"{len(self._reused)} of {plural(start.planned, 'trial')} reused{_when(self._reused)}.", "dim")
        elif start.stored and start.missing and self._rounds == 1 and not start.remeasured:
            self._say(
                f"None of the {start.stored} trials in the folder is reused: they have another training function, or "
                "other settings, arms, seeds or versions.",
                "dim",
            )
        if start.remeasured:
            them = "it is" if start.remeasured == 1 else "they are"
            self._say(
                f"Note: {start.remeasured} of the finished trials have no flatness measures, or were measured by other "
                f"settings. Models are not kept, so {them} trained again as before, and measured.",
                "",
            )
        self._reused = []
        # Else the trials that were there already would count as run in no time.
        self._progress.reset(self._bar, total=start.planned, completed=start.planned - start.missing)
        self._progress.update(self._bar, detail="")

    def on_trial_start(self, spec: TrialSpec) -> None:
        """Name the trial."""
        self._progress.update(self._bar, detail=_name(spec))

    def on_epoch(self, spec: TrialSpec, epoch: int, metrics: Mapping[str, float]) -> None:
        """Show an epoch's metric."""
        value = metrics.get(spec.subject.metric)
        shown = "" if value is None else f": {spec.subject.metric} {value:.4g}"
        self._progress.update(self._bar, detail=f"{_name(spec)}, epoch {epoch + 1}{shown}", refresh=False)

    def on_measure(self, spec: TrialSpec, what: str, done: int, of: int) -> None:
        """Show how far a measurement of the final model is."""
        self._progress.update(self._bar, detail=f"{_name(spec)}: {what} {done}/{of}", refresh=False)

    def on_trial_end(self, spec: TrialSpec, record: Record) -> None:
        """Count a trial and show its value; the first failure with a message is printed, the others are counted."""
        self._compare_machines(record)
        self._count_failure(spec, record)
        value = number_of(record.final(spec.subject.metric))
        detail = f"{_name(spec)}: {'failed' if value == NOTHING else f'{spec.subject.metric} {value}'}"
        failed = f"{self._failed} failed" if self._failed else ""
        self._progress.update(self._bar, advance=1, failed=failed, detail=detail)

    def _count_failure(self, spec: TrialSpec, record: Record) -> None:
        if record.status == "failed":
            self._failed += 1
            message = record.error or "no message"
            self._failures[message] += 1
            if self._failures[message] == 1:
                self._say(f"{_name(spec)} failed: {message}")
        elif spec.flatness is not None and record.flatness is not None and record.flatness.missing:
            reasons = "; ".join(dict.fromkeys(record.flatness.missing.values()))
            self._say(f"{_name(spec)}: {', '.join(record.flatness.missing)} not measured: {reasons}")

    def _compare_machines(self, record: Record) -> None:
        """Say so, once, when trials ran on different kinds of machines."""
        kind = kind_of_machine(record.environment)
        if kind is None or kind in self._kinds:
            return
        self._kinds.append(kind)
        if len(self._kinds) == 2:
            self._say(
                f"Note: the trials ran on different kinds of machines ({'; '.join(map(kind_in_words, self._kinds))}). "
                "The same trial may differ between them, in its last bits or more. If that matters, run all of them on "
                "one kind, in a new folder."
            )

    def _say(self, message: str, style: str = "yellow") -> None:
        if self._shown:
            self._progress.console.print(message, style=style, markup=False, highlight=False)


def _name(spec: TrialSpec) -> str:
    return f"{spec.subject.name}, {spec.arm.name}, seed {spec.seed}"


def _when(records: list[Record]) -> str:
    """``", from 2026-03-02 to 2026-03-05"``: when the trials ended."""
    ends = [record.ended for record in records if record.ended is not None]
    dates = dict.fromkeys(f"{end:%Y-%m-%d}" for end in (min(ends), max(ends))) if ends else {}
    return f", from {' to '.join(dates)}" if dates else ""

"""Studies from end to end: read the file, run what is missing, show and write what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from flatwise.report.page import write_study_report
from flatwise.report.study import status_table, study_table, tuning_lines
from flatwise.report.study_progress import StudyProgress
from flatwise.report.terminal import terminal, written
from flatwise.study.check import check_study
from flatwise.study.comparison import Comparison
from flatwise.study.driver import drive
from flatwise.study.executors import Executor, LocalExecutor, ProcessExecutor, RayExecutor
from flatwise.study.executors.processes import visible_cores
from flatwise.study.export import Format, export
from flatwise.study.registry import Section, load_study, plugins, without_imports
from flatwise.study.results import CellResult, CellStatus, study_results, study_status
from flatwise.study.spec import StudyError, StudySpec, read_study, read_study_text
from flatwise.study.store import STORE_NAME, Store
from flatwise.study.subjects import remembered_task
from flatwise.study.task import Task
from flatwise.study.work import Work

ExecutorName = Literal["local", "processes", "ray"]


@dataclass(frozen=True, slots=True)
class ExecutorChoice:
    """Where the trials run.

    Attributes:
        name: ``"local"``: in this process, one after the other; ``"processes"``: in worker processes of this machine;
            ``"ray"``: on a Ray cluster.
        workers: of ``"processes"``: how many; default: one per core.
        address: of ``"ray"``: the cluster's, ``"host:port"`` or ``"auto"``; default: a Ray of its own on this machine.
        cpus_per_trial, gpus_per_trial: of ``"ray"``: what a trial takes of a node; 0.25 lets four share a GPU.
        retries: of ``"ray"``: how often a trial is run again whose node was lost.
    """

    name: ExecutorName = "local"
    workers: int | None = None
    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    retries: int | None = None

    def open(self) -> Executor:
        """The executor, to be used in a ``with`` block.

        Raises:
            StudyError: an option that this executor does not have.
            ExecutorError: a number that makes no sense.
        """
        known = {
            "local": (),
            "processes": ("workers",),
            "ray": ("address", "cpus_per_trial", "gpus_per_trial", "retries"),
        }
        if self.name not in known:
            raise StudyError(f"there is no executor {self.name!r}: there are {', '.join(known)}")
        options = known[self.name]
        given = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        given = {option: value for option, value in given.items() if value is not None}
        for option in given:
            if option not in options:
                has = ", ".join(options) or "none"
                raise StudyError(f"the executor '{self.name}' has no option {option}: it has {has}")
        if self.name == "local":
            return LocalExecutor()
        if self.name == "processes":
            return ProcessExecutor(visible_cores() if self.workers is None else self.workers)
        return RayExecutor(**given)


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """What a study has come to.

    Attributes:
        study: the study.
        cells: every cell's result.
        sections: what plugins made of the study, by the plugin's name: a ledger of the papers' claims, for example.
        page: the report; ``None`` where it could not be written.
    """

    study: StudySpec
    cells: tuple[CellResult, ...]
    sections: Mapping[str, Any]
    page: Path | None


def run_study(
    study: StudySpec | str | Path,
    *,
    out: str | Path | None = None,
    executor: ExecutorChoice | ExecutorName = "local",
    data_dir: str | Path | None = None,
    retry_failed: bool = False,
    quiet: bool = False,
) -> StudyOutcome:
    """Runs a study: tunes every arm on validation data with equal budgets, judges the choices on the test set.

    Killed at any moment, the same call goes on: a trial that is in the store is not run again. Results do not depend
    on where and in which order trials run.

    Args:
        study: a study file that ends in ``.toml``, the name of a packaged study, or a study.
        out: folder of the store and the report; default: ``runs/`` and the study's name.
        executor: where trials run; a name stands for an :class:`ExecutorChoice` with its defaults.
        data_dir: folder of data files, on every machine where trials run; default: ``FLATWISE_DATA``, else a cache.
        retry_failed: run trials again that failed.
        quiet: show neither progress nor tables.

    Raises:
        StudyError: the study cannot be run as it is written.
        StoreError: the folder cannot be used, or another program is writing to it.
        DataError, ExecutorError, TrialError: see there. What ended before is kept.
    """
    chosen = find_study(str(study)) if isinstance(study, (str, Path)) else study
    check_study(chosen)
    _check_plugins(chosen)
    folder = folder_of(chosen, out)
    where = ExecutorChoice(executor) if isinstance(executor, str) else executor
    console = terminal(stderr=True)
    work = Work(None if data_dir is None else Path(data_dir).expanduser().absolute())
    with (
        where.open() as opened,
        Store.open(folder / STORE_NAME) as store,
        StudyProgress(console, shown=not quiet) as progress,
    ):
        cells = drive(chosen, store, opened, work, progress, retry_failed=retry_failed)
    return _shown(chosen, cells, folder, quiet=quiet)


def report_study(study: StudySpec, *, out: str | Path | None = None, quiet: bool = False) -> StudyOutcome:
    """Writes the report of what a study has come to so far, and shows its tables; runs nothing.

    Raises:
        StudyError: the study cannot be run as it is written, or nothing of it was run yet.
        StoreError: the store is damaged.
    """
    folder = folder_of(study, out)
    with closing(_open(study, folder)) as store, without_imports(_tasks_in(study, store)):
        check_study(study)
        cells = study_results(study, store)
        return _shown(study, cells, folder, quiet=quiet)


def status_of(study: StudySpec, *, out: str | Path | None = None) -> list[CellStatus]:
    """How far every cell of a study is; runs nothing.

    Raises:
        StudyError: the study cannot be run as it is written.
        StoreError: the store is damaged.
    """
    path = folder_of(study, out) / STORE_NAME
    opened = Store(path, read_only=True) if path.exists() else Store(None)
    with closing(opened) as store:
        tasks = _tasks_in(study, store)
        # What was never run cannot be planned without importing it: nothing of it is there yet.
        unknown = {cell.name for cell in study.cells if ":" in cell.task and cell.task not in tasks}
        known = [cell.name for cell in study.cells if cell.name not in unknown]
        found: dict[str, CellStatus] = {}
        if known:
            some = study.with_cells(known)
            with without_imports(tasks):
                check_study(some)
                found = {status.name: status for status in study_status(some, store)}
        return [found.get(cell.name) or CellStatus(cell.name, "tuning", 0, 0, 0) for cell in study.cells]


def show_status(statuses: Sequence[CellStatus]) -> None:
    """Prints a table of how far every cell is."""
    terminal().print(status_table(statuses))


def export_study(study: StudySpec, folder: Path, form: Format, *, out: str | Path | None = None) -> tuple[Path, Path]:
    """Writes all trials of a study's store as tables: see :func:`flatwise.study.export.export`.

    Raises:
        StudyError, StoreError: as for :func:`report_study`.
        ExportError, OSError: as for :func:`flatwise.study.export.export`.
    """
    with closing(_open(study, folder_of(study, out))) as store:
        return export(store, folder, form)


def find_study(name: str, cells: Sequence[str] = (), *, to_run: bool = True) -> StudySpec:
    """The study in a file, or the packaged one of that name.

    Args:
        name: a file that ends in ``.toml``, or a name.
        cells: names of cells: the others are left out; default: all.
        to_run: whether it is going to be run (default). Else tasks of the user's own are not imported, and what can
            be wrong with them is not looked for.

    Raises:
        StudyError: the file cannot be read or does not describe a study that can be run, or there is no such cell.
        UnknownStudyError: there is no such study.
    """
    is_file = name.endswith(".toml")
    study = read_study(Path(name)) if is_file else load_study(name)
    try:
        chosen = study.with_cells(cells) if cells else study
    except ValueError as error:
        raise StudyError(str(error)) from None
    if is_file and (to_run or not any(":" in cell.task for cell in chosen.cells)):
        # Here it is known where in the file a mistake stands.
        check_study(chosen, source=name, text=read_study_text(Path(name)))
    return chosen


def folder_of(study: StudySpec, out: str | Path | None) -> Path:
    """Where a study's store and report are."""
    return Path("runs") / study.name if out is None else Path(out)


def _tasks_in(study: StudySpec, store: Store) -> dict[str, Task]:
    """The user's own tasks as far as the store remembers them: nothing of the user's is imported to read."""
    names = dict.fromkeys(cell.task for cell in study.cells if ":" in cell.task)
    notes = {name: store.remembered_task(name) for name in names}
    return {name: remembered_task(name, of_task) for name, of_task in notes.items() if of_task}


def _open(study: StudySpec, folder: Path) -> Store:
    path = folder / STORE_NAME
    if not path.exists():
        raise StudyError(f"nothing of the study {study.name} was run yet: there is no {path}")
    return Store(path, read_only=True)


def _check_plugins(study: StudySpec) -> None:
    """What a plugin is to make of a study must be possible: better known before the first trial."""
    for plugin in plugins().values():
        if plugin.check is not None:
            plugin.check(study)
    if any(arm.paper.arm is not None for arm in study.arms) and "papers" not in plugins():
        raise StudyError(
            f"study {study.name}: its arms name a paper's results in `paper`, and flatwise-papers compares with them: "
            "pip install flatwise-papers, or omit `paper`"
        )


def _sections(study: StudySpec, compared: Mapping[str, Comparison]) -> dict[str, Section]:
    made = {name: plugin.section(study, compared) for name, plugin in plugins().items() if plugin.section is not None}
    return {name: section for name, section in made.items() if section is not None}


def _shown(study: StudySpec, cells: Sequence[CellResult], folder: Path, *, quiet: bool) -> StudyOutcome:
    compared = {cell.cell.name: cell.comparison for cell in cells if cell.comparison is not None}
    sections = _sections(study, compared)
    # The page first, because the tables' output may be closed early, as by `| head`.
    where = written(lambda: write_study_report(study, cells, folder, list(sections.values())))
    if not quiet:
        console = terminal()
        for line in tuning_lines(study, cells):
            console.print(f"• {line}", highlight=False, markup=False)
        console.print(study_table(cells))
        for section in sections.values():
            console.print(section.table)
    if not quiet or where.page is None:
        terminal(stderr=True).print(where.line, highlight=False, soft_wrap=True, markup=False)
    return StudyOutcome(study, tuple(cells), {name: section.content for name, section in sections.items()}, where.page)

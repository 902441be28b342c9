"""Compare methods and run studies: what Python programs and the command line call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatwise.exceptions import FlatwiseError
from flatwise.report.page import write_page, write_study_report
from flatwise.report.progress import LiveProgress
from flatwise.report.study import status_table, study_table, tuning_lines
from flatwise.report.table import plural
from flatwise.report.terminal import Written, show, terminal, written
from flatwise.stats import Better
from flatwise.study.arms import DEFAULT_ARMS, Arm, parse_arm, split_arms, with_controls
from flatwise.study.check import check_study
from flatwise.study.comparison import Comparison, direction_of
from flatwise.study.engine import ExecutorChoice, ExecutorName, drive, run_plan
from flatwise.study.export import Format, export
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.identify import identify, plain_data
from flatwise.study.plan import plan_comparison
from flatwise.study.registry import Section, get_task, load_study, plugins, without_imports
from flatwise.study.results import CellResult, CellStatus, study_results, study_status
from flatwise.study.spec import StudyError, StudySpec
from flatwise.study.store import STORE_NAME, Store
from flatwise.study.study_file import read_study, read_study_text
from flatwise.study.subjects import Subject, look_at_code_again, remembered_task, subject_of
from flatwise.study.task import Task
from flatwise.study.work import FUNCTION_SETTING, TrainFunction, Work, load_data

__all__ = [
    "CompareError",
    "ExecutorChoice",
    "StudyOutcome",
    "all_failed",
    "compare",
    "compare_task",
    "export_study",
    "find_study",
    "folder_of",
    "report_study",
    "run_study",
    "show_status",
    "status_of",
]


class CompareError(FlatwiseError, ValueError):
    """The arguments do not describe a comparison. The message is one line."""


PAGE_NAME = "report.html"


def compare(
    train: TrainFunction,
    arms: str | Sequence[str | Arm] = DEFAULT_ARMS,
    seeds: int | Sequence[int] = 10,
    *,
    metric: str = "test_error",
    unit: str = "",
    better: Better | None = None,
    level: float = 0.05,
    controls: bool = True,
    out: str | Path | None = None,
    name: str | None = None,
    settings: Any = None,
    flatness: bool | FlatnessSettings = False,
    executor: ExecutorChoice | ExecutorName = "local",
    retry_failed: bool = False,
    quiet: bool = False,
) -> Comparison:
    """Train with and without each method, paired by seed, and say whether it helps.

    Every arm is run with every seed; the arms of one seed share initial weights and batches if the training function
    takes them from ``trial.seed``. Each method is also compared with a control that has its mean learning rate and no
    randomness.

    Args:
        train: ``train(trial)`` trains one model: see :class:`flatwise.Trial` for what it must do.
        arms: names, with or without settings, such as ``"leap"`` or ``"leap(sigma=0.1)"``, or :class:`flatwise.Arm`
            values. Vanilla is always among them. Default: the five papers' methods.
        seeds: how many (0, 1, …) or which; default 10. Fewer than 6 cannot reach a verdict at level 0.05.
        metric: the reported metric that is judged, by its value after the final epoch; default ``"test_error"``.
        unit: its unit, for the report. Default: none.
        better: whether ``"lower"`` or ``"higher"`` is better. Default: what the metric's name says, such as lower for
            ``"val_loss"`` and higher for ``"accuracy"``; required for a name that does not say it.
        level: family-wise level of the tests; default 0.05.
        controls: whether to add the matched-rate controls; default ``True``.
        out: folder for finished trials and ``report.html``. An interrupted comparison resumes there; finished trials
            are not run again, unless ``settings``, a version, ``train`` or something that its code names
            changed: see :func:`flatwise.study.identify.identify`. Default: nothing is written.
        name: what the report calls the task; default: the training function's name.
        settings: what ``train`` depends on besides its code and globals; it is shown, and a change runs all trials
            again. Default: none. A mapping, a dataclass, a pydantic model or an argparse namespace of numbers, text,
            lists, paths, enums, torch devices and dtypes, numpy scalars, and of such mappings.
        flatness: measure how flat the loss is around each trial's final model, and add it to the report; ``train``
            must call :meth:`flatwise.Trial.measure_flatness`. :class:`flatwise.FlatnessSettings` say what is measured
            and how much work it may take; ``True`` means the defaults. Trials in ``out`` without flatness, or with
            other settings, are run again, because models are not kept; the training is the same. Default: ``False``.
        executor: where trials run: ``"local"`` (default), in this process one after the other; ``"processes"`` or
            ``"ray"``, which need a ``train`` that can be sent to another process: a function of a module. An
            :class:`ExecutorChoice` has more to set. Torch's number of threads may differ there, and with it the last
            bits of a result.
        retry_failed: run trials again that failed, or whose flatness could not be measured. Default: ``False``.
        quiet: show neither progress nor the table. Default: ``False``.

    Returns:
        The comparison, as plain data.

    Raises:
        ArmError: an arm does not exist or cannot be built.
        CompareError: no seeds, the same seed twice, a level outside (0, 1), a metric whose name does not say what is
            better, and the like.
        NotIdentifiableError: with ``out``, ``train`` depends on a value that cannot be identified later.
        TrialError: ``train`` uses its trial wrongly.
        StoreError: the folder cannot be used, or holds a damaged store.
        ExecutorError: the executor cannot run, or ``train`` cannot be sent to it.
        StudyError: an executor that does not exist or lacks an option; ``train`` is another in a worker.
        Exception: what ``train`` raised in the vanilla arm. In another arm it is that trial's outcome.
    """
    try:
        direction = direction_of(metric, better)
    except ValueError as error:
        raise CompareError(str(error)) from None
    subject = Subject(
        name=name or str(getattr(train, "__name__", "training")),
        metric=metric,
        unit=unit,
        better=direction,
        settings={
            FUNCTION_SETTING: identify(train, stored=out is not None),
            **_plain({} if settings is None else settings),
        },
    )
    return _compare(
        subject,
        Work(train=train, raise_in_vanilla=True),
        arms,
        seeds,
        level=level,
        controls=controls,
        out=out,
        flatness=flatness,
        executor=executor,
        retry_failed=retry_failed,
        quiet=quiet,
    )


def compare_task(
    task_name: str,
    *,
    arms: str | Sequence[str | Arm] = DEFAULT_ARMS,
    seeds: int | Sequence[int] = 10,
    settings: Mapping[str, Any] | None = None,
    data_dir: Path | None = None,
    level: float = 0.05,
    controls: bool = True,
    out: Path | None = None,
    flatness: bool | FlatnessSettings = False,
    executor: ExecutorChoice | ExecutorName = "local",
    retry_failed: bool = False,
    quiet: bool = False,
) -> Comparison:
    """:func:`compare` for a task that is known by name, built in or from a plugin, or the user's own.

    Args:
        task_name: name of the task, such as ``"digits-mlp"``.
        arms, seeds, level, controls, out, flatness, executor, retry_failed, quiet: as for :func:`compare`.
        settings: changes to the task's settings, such as ``{"epochs": 10}``.
        data_dir: folder of data files, on every machine where trials run; default: ``FLATWISE_DATA``, else a cache
            that is downloaded into.

    Raises:
        UnknownTaskError: there is no such task.
        SettingsError: a setting that does not exist or cannot have this value.
        DataError: data are missing or corrupt.
        Exception: as for :func:`compare`.
    """
    look_at_code_again()
    task = get_task(task_name)
    chosen = task.settings.updated(settings or {})
    if _choice(executor).name == "local":
        chosen.check_device()
        load_data(task, data_dir)  # what is wrong with them is better known before the first trial
    return _compare(
        subject_of(task, chosen),
        Work(_absolute(data_dir), raise_in_vanilla=True),
        arms,
        seeds,
        level=level,
        controls=controls,
        out=out,
        flatness=flatness,
        executor=executor,
        retry_failed=retry_failed,
        quiet=quiet,
        threads=1,
    )


@dataclass(frozen=True, slots=True)
class StudyOutcome:
    """The results of a study.

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
    with (
        _choice(executor).open() as opened,
        Store.open(folder / STORE_NAME) as store,
        LiveProgress(terminal(stderr=True), shown=not quiet) as progress,
    ):
        work = Work(_absolute(data_dir))
        cells = drive(chosen, store, opened, work, progress, retry_failed=retry_failed)
    return _shown(chosen, cells, folder, quiet=quiet)


def report_study(study: StudySpec, *, out: str | Path | None = None, quiet: bool = False) -> StudyOutcome:
    """Write the report of a study's results so far, and show its tables; runs nothing.

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


def all_failed(comparison: Comparison) -> bool:
    """Whether no arm could be compared because a trial of it, or of vanilla, failed."""
    judged = [arm.vs_vanilla for arm in comparison.arms[1:] if not arm.is_control]
    if not judged:
        return comparison.arms[0].failed > 0
    return all(judgement is None or judgement.verdict == "failed" for judgement in judged)


def _compare(
    subject: Subject,
    work: Work,
    arms: str | Sequence[str | Arm],
    seeds: int | Sequence[int],
    *,
    level: float,
    controls: bool,
    out: str | Path | None,
    flatness: bool | FlatnessSettings,
    executor: ExecutorChoice | ExecutorName,
    retry_failed: bool,
    quiet: bool,
    threads: int | None = None,
) -> Comparison:
    chosen = with_controls(_arms(arms), controls=controls)
    numbers = _seeds(seeds)
    _check_level(level)
    plan = plan_comparison(subject, chosen, numbers, threads, _flatness(flatness))
    folder = None if out is None else Path(out)
    if not quiet:
        _warn_if_hopeless(len(numbers), sum(not arm.is_control for arm in chosen) - 1, level)
    with (
        _choice(executor).open() as opened,
        Store(None) if folder is None else Store.open(folder / STORE_NAME) as store,
        LiveProgress(terminal(stderr=True), shown=not quiet) as progress,
    ):
        (cell,) = run_plan(plan, store, opened, work, progress, level=level, retry_failed=retry_failed)
    comparison = cell.comparison
    assert comparison is not None  # every trial has a record
    # The page first, because the table's output may be closed early, as by `| head`.
    where = None if folder is None else written(lambda: write_page(comparison, folder / PAGE_NAME))
    if not quiet:
        show(comparison, terminal())
    _say_where(where, quiet=quiet)
    return comparison


def _choice(executor: ExecutorChoice | ExecutorName) -> ExecutorChoice:
    return ExecutorChoice(executor) if isinstance(executor, str) else executor


def _absolute(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder).expanduser().absolute()


def _say_where(where: Written | None, *, quiet: bool) -> None:
    """Say where the page is, or why there is none."""
    if where is not None and (not quiet or where.page is None):
        terminal(stderr=True).print(where.line, highlight=False, soft_wrap=True, markup=False)


def _arms(arms: str | Sequence[str | Arm]) -> list[Arm]:
    given = split_arms(arms) if isinstance(arms, str) else arms
    for arm in given:
        if not isinstance(arm, (str, Arm)):
            raise CompareError(f"an arm is a name such as 'leap' or a flatwise.Arm(name, perturbation); got {arm!r}")
    return [parse_arm(arm) if isinstance(arm, str) else arm for arm in given]


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    given = range(seeds) if isinstance(seeds, int) and not isinstance(seeds, bool) else seeds
    numbers = tuple(given) if isinstance(given, Sequence) else ()
    whole = all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
    if not numbers or not whole or len(set(numbers)) < len(numbers):
        raise CompareError(f"seeds must be a positive number, or different whole numbers from 0 on; got {seeds!r}")
    return numbers


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise CompareError(f"level must lie in (0, 1): it is the accepted share of false verdicts; got {level!r}")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The user's settings as they are shown and kept."""
    try:
        plain = plain_data(settings)
    except TypeError as error:
        raise CompareError(
            f"settings must be plain data, such as numbers, text, paths and dataclasses of these: {error}"
        ) from None
    if not isinstance(plain, dict):
        raise CompareError(f"settings must be a mapping, a dataclass or the like, with names; got {settings!r}")
    return plain


def _flatness(given: bool | FlatnessSettings) -> FlatnessSettings | None:
    if not isinstance(given, (bool, FlatnessSettings)):
        raise CompareError(f"flatness must be True, False or flatwise.FlatnessSettings(...); got {given!r}")
    return (FlatnessSettings() if given else None) if isinstance(given, bool) else given


def _warn_if_hopeless(seeds: int, comparisons: int, level: float) -> None:
    """Warn if no difference, however clear, can reach a verdict: no sign-flip p value is below 2/2ⁿ."""
    needed = math.ceil(math.log2(2 * comparisons / level)) if comparisons else 0
    if seeds < needed:
        terminal(stderr=True).print(
            f"Note: with {plural(seeds, 'seed')} no verdict can be reached at level {level:g} over "
            f"{plural(comparisons, 'comparison')} with vanilla; {needed} seeds can.",
            highlight=False,
        )


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
    _say_where(where, quiet=quiet)
    return StudyOutcome(study, tuple(cells), {name: section.content for name, section in sections.items()}, where.page)

"""``flatwise run``, ``status``, ``report``, ``export`` and ``studies``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from flatwise.cli.program import FAILED, INTERRUPTED, app, fail
from flatwise.report.terminal import terminal
from flatwise.studies import (
    ExecutorChoice,
    all_failed,
    export_study,
    find_study,
    folder_of,
    report_study,
    run_study,
    show_status,
    status_of,
)
from flatwise.study.arms import ArmError
from flatwise.study.executors import ExecutorError
from flatwise.study.export import ExportError
from flatwise.study.identify import NotIdentifiableError
from flatwise.study.registry import (
    PluginError,
    UnknownStudyError,
    UnknownTaskError,
    known_studies,
    load_study,
    packaged_studies,
    study_text,
)
from flatwise.study.spec import StudyError, StudySpec
from flatwise.study.store import StoreError
from flatwise.study.task import SettingsError
from flatwise.study.tasks.classification import DataError
from flatwise.study.trial import TrialError


class ExecutorOption(str, Enum):
    """Where trials run."""

    local = "local"
    processes = "processes"
    ray = "ray"


class _Format(str, Enum):
    csv = "csv"
    parquet = "parquet"


Study = Annotated[str, typer.Argument(help="A study file, such as studies/mine.toml, or the name of a packaged study.")]
Cells = Annotated[
    list[str] | None, typer.Option("--cell", help="Only this cell of the study; may be given several times.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of the trials and the report \\[default: runs/NAME].")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of data files \\[default: FLATWISE_DATA, else a download].")]
Where = Annotated[ExecutorOption, typer.Option("--executor", help="Where trials run.")]
Workers = Annotated[int | None, typer.Option(help="With processes: how many \\[default: one per core].")]
Address = Annotated[str | None, typer.Option(help="With ray: the cluster, host:port or auto \\[default: a local Ray].")]
Cpus = Annotated[float | None, typer.Option(help="With ray: CPUs of a trial \\[default: 1].")]
Gpus = Annotated[float | None, typer.Option(help="With ray: GPUs of a trial; 0.25 lets four share one \\[default: 0].")]
Retries = Annotated[int | None, typer.Option(help="With ray: runs of a trial after its node was lost \\[default: 3].")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Run trials again that failed.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Write the report, print nothing.")]


@app.command()
def run(
    study: Study,
    cell: Cells = None,
    out: Out = None,
    executor: Where = ExecutorOption.local,
    workers: Workers = None,
    address: Address = None,
    cpus_per_trial: Cpus = None,
    gpus_per_trial: Gpus = None,
    retries: Retries = None,
    data_dir: DataDir = None,
    retry_failed: RetryFailed = False,
    quiet: Quiet = False,
) -> None:
    """Tune every arm on validation data under equal budgets, then judge the choices on the test set.

    Interrupted or killed, the same command goes on where it was: every finished trial is in the study's store.
    """
    where = ExecutorChoice(executor.value, workers, address, cpus_per_trial, gpus_per_trial, retries)
    with _errors():
        _run(find_study(study, cell or ()), out, where, data_dir, retry_failed, quiet)


@app.command()
def studies(
    name: Annotated[
        str | None, typer.Argument(help="A packaged study: print its file, to change it and run that.")
    ] = None,
) -> None:
    """List the studies that installed packages have, such as the papers' tables of flatwise-papers."""
    with _errors():
        if name is not None:
            typer.echo(study_text(name), nl=False)
            return
        texts = packaged_studies()
        if not texts:
            typer.echo(known_studies(texts))
            return
        table = Table("study", "what it repeats", "runs on", box=None)
        for study in map(load_study, texts):
            on_gpu = any((study.settings | cell.settings).get("device") == "cuda" for cell in study.cells)
            table.add_row(study.name, study.title, "a GPU" if on_gpu else "a CPU")
        terminal().print(table)


@app.command()
def status(study: Study, cell: Cells = None, out: Out = None) -> None:
    """Say how far a study is."""
    with _errors():
        show_status(status_of(find_study(study, cell or (), to_run=False), out=out))


@app.command()
def report(study: Study, cell: Cells = None, out: Out = None, quiet: Quiet = False) -> None:
    """Write the report of what a study has come to so far; runs nothing."""
    with _errors():
        report_study(find_study(study, cell or (), to_run=False), out=out, quiet=quiet)


@app.command()
def export(
    study: Study,
    to: Annotated[Path | None, typer.Option(help="Folder to write to \\[default: the study's, then export].")] = None,
    form: Annotated[_Format, typer.Option("--format", help="Format of the tables.")] = _Format.csv,
    out: Out = None,
) -> None:
    """Write every trial and every epoch of a study as tables."""
    with _errors():
        chosen = find_study(study, to_run=False)
        folder = folder_of(chosen, out) / "export" if to is None else to
        for path in export_study(chosen, folder, form.value, out=out):
            typer.echo(path)


def _run(
    study: StudySpec, out: Path | None, where: ExecutorChoice, data_dir: Path | None, retry_failed: bool, quiet: bool
) -> None:
    folder = folder_of(study, out)
    try:
        outcome = run_study(study, out=out, executor=where, data_dir=data_dir, retry_failed=retry_failed, quiet=quiet)
    except KeyboardInterrupt:
        fail(f"interrupted; finished trials are in {folder}, and the same command goes on from there", INTERRUPTED)
    compared = [cell.comparison for cell in outcome.cells if cell.comparison is not None]
    if compared and all(map(all_failed, compared)):
        fail(
            "every arm of every cell failed, so nothing was compared: the report has the messages. Finished trials are "
            f"kept in {folder}; --retry-failed runs the failed ones again",
            FAILED,
        )


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (
        ArmError,
        DataError,
        ExecutorError,
        ExportError,
        NotIdentifiableError,
        PluginError,
        SettingsError,
        StoreError,
        StudyError,
        TrialError,
        UnknownStudyError,
        UnknownTaskError,
    ) as error:
        fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"{error.filename or 'a file'}: {error.strerror or error}. Finished trials are kept")

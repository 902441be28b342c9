"""The commands: each reads its options and calls the library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import typer
from rich.table import Table

from flatwise.bench import OPTIMIZERS, Timing, measure, table, write_csv
from flatwise.cli.program import FAILED, INTERRUPTED, app, errors, fail
from flatwise.report.terminal import terminal
from flatwise.studies import (
    ExecutorChoice,
    all_failed,
    compare_task,
    export_study,
    find_study,
    folder_of,
    report_study,
    run_study,
    show_status,
    status_of,
)
from flatwise.study.arms import DEFAULT_ARMS, split_arms
from flatwise.study.comparison import Comparison
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.registry import (
    all_tasks,
    known_studies,
    load_study,
    packaged_studies,
    study_text,
)
from flatwise.study.task import OptimizerName, ScheduleName


class _Executor(str, Enum):
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
Where = Annotated[_Executor, typer.Option("--executor", help="Where trials run.")]
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
    executor: Where = _Executor.local,
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
    with errors():
        chosen = find_study(study, cell or ())
        folder = folder_of(chosen, out)
        with _interruptible(folder):
            outcome = run_study(
                chosen, out=out, executor=where, data_dir=data_dir, retry_failed=retry_failed, quiet=quiet
            )
    _check_compared(
        " of every cell", [cell.comparison for cell in outcome.cells if cell.comparison is not None], folder
    )


@app.command()
def studies(
    name: Annotated[
        str | None, typer.Argument(help="A packaged study: print its file, to change it and run that.")
    ] = None,
) -> None:
    """List the studies that installed packages have, such as the papers' tables of flatwise-papers."""
    with errors():
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
    with errors():
        show_status(status_of(find_study(study, cell or (), to_run=False), out=out))


@app.command()
def report(study: Study, cell: Cells = None, out: Out = None, quiet: Quiet = False) -> None:
    """Write the report of a study's results so far; runs nothing."""
    with errors():
        report_study(find_study(study, cell or (), to_run=False), out=out, quiet=quiet)


@app.command()
def export(
    study: Study,
    to: Annotated[Path | None, typer.Option(help="Folder to write to \\[default: the study's, then export].")] = None,
    form: Annotated[_Format, typer.Option("--format", help="Format of the tables.")] = _Format.csv,
    out: Out = None,
) -> None:
    """Write every trial and every epoch of a study as tables."""
    with errors():
        chosen = find_study(study, to_run=False)
        folder = folder_of(chosen, out) / "export" if to is None else to
        for path in export_study(chosen, folder, form.value, out=out):
            typer.echo(path)


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        fail(f"interrupted; finished trials are kept in {folder}, and the same command goes on from there", INTERRUPTED)


def _check_compared(what: str, comparisons: Sequence[Comparison], folder: Path) -> None:
    """Fail if trials of every arm failed."""
    if comparisons and all(map(all_failed, comparisons)):
        fail(
            f"every arm{what} failed, so nothing was compared: the report has the messages. Finished trials are kept "
            f"in {folder}; --retry-failed runs the failed ones again",
            FAILED,
        )


def _listed(names: Any) -> str:
    *some, last = get_args(names)
    return f"{', '.join(some)} or {last}"


@app.command()
def tasks() -> None:
    """List the tasks: the built-in one and those of installed packages, such as flatwise-papers."""
    table = Table("task", "what it trains", "epochs", box=None)
    with errors():
        for task in all_tasks().values():
            table.add_row(task.name, task.summary, str(task.settings.epochs))
    terminal().print(table)


@app.command()
def compare(
    task: Annotated[str, typer.Argument(help="A task; `flatwise tasks` lists them.")] = "digits-mlp",
    arms: Annotated[
        str, typer.Option(help="Methods, with or without settings: 'leap(sigma=0.1),lr_dropout,random_lr(alpha=8)'.")
    ] = ",".join(DEFAULT_ARMS),
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds; with all methods, fewer than 8 cannot reach a verdict.")
    ] = 10,
    data_dir: DataDir = None,
    out: Annotated[Path | None, typer.Option(help="Folder for trials and report \\[default: runs/TASK].")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each trial \\[default: the task's].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step \\[default: the task's].")] = None,
    lr: Annotated[float | None, typer.Option("--lr", help="Learning rate \\[default: the task's].")] = None,
    momentum: Annotated[float | None, typer.Option(help="Momentum \\[default: the task's].")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay \\[default: the task's].")] = None,
    optimizer: Annotated[str | None, typer.Option(help=f"{_listed(OptimizerName)} \\[default: the task's].")] = None,
    schedule: Annotated[str | None, typer.Option(help=f"{_listed(ScheduleName)} \\[default: the task's].")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda \\[default: cpu].")] = None,
    controls: Annotated[bool, typer.Option(help="Add the controls that have each method's mean rate.")] = True,
    level: Annotated[float, typer.Option(help="Share of false verdicts accepted, over all arms.")] = 0.05,
    flatness: Annotated[
        bool, typer.Option("--flatness", help="Measure how flat the loss is around each final model.")
    ] = False,
    max_batches: Annotated[
        int | None, typer.Option(min=1, help="With --flatness: batches to measure on \\[default: 10, of 500 examples].")
    ] = None,
    max_iter: Annotated[
        int | None, typer.Option(min=3, help="With --flatness: Hessian-vector products per measure \\[default: 60].")
    ] = None,
    executor: Where = _Executor.local,
    workers: Workers = None,
    address: Address = None,
    cpus_per_trial: Cpus = None,
    gpus_per_trial: Gpus = None,
    retries: Retries = None,
    retry_failed: Annotated[
        bool, typer.Option(help="Run trials again that failed, or were not fully measured.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train with and without each method, paired by seed, and say whether it helps.

    Interrupted or killed, the same command goes on where it was: finished trials are kept in the output folder.
    """
    given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": lr,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "schedule": schedule,
        "device": device,
    }
    measured = _flatness(flatness, max_batches, max_iter)
    folder = out if out is not None else Path("runs") / task
    where = ExecutorChoice(executor.value, workers, address, cpus_per_trial, gpus_per_trial, retries)
    with errors(), _interruptible(folder):
        comparison = compare_task(
            task,
            arms=split_arms(arms),
            seeds=seeds,
            settings={name: value for name, value in given.items() if value is not None},
            data_dir=data_dir,
            level=level,
            controls=controls,
            out=folder,
            flatness=measured,
            executor=where,
            retry_failed=retry_failed,
            quiet=quiet,
        )
    _check_compared("", [comparison], folder)


def _flatness(wanted: bool, max_batches: int | None, max_iter: int | None) -> FlatnessSettings | bool:
    if not wanted:
        for option, value in (("--max-batches", max_batches), ("--max-iter", max_iter)):
            if value is not None:
                fail(f"{option} is a bound on the flatness measures: give --flatness too")
        return False
    chosen = FlatnessSettings()
    chosen = chosen if max_batches is None else replace(chosen, max_batches=max_batches)
    return chosen if max_iter is None else replace(chosen, max_iter=max_iter)


@app.command()
def bench(
    models: Annotated[str, typer.Option(help="Which of mlp, resnet18 and 50m to step.")] = "mlp,resnet18",
    optimizers: Annotated[str, typer.Option(help="Which of SGD, Adam, AdamW and RMSprop.")] = ",".join(OPTIMIZERS),
    rounds: Annotated[int, typer.Option(min=1, help="How many turns every contender has.")] = 15,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of torch \\[default: torch's].")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table here, as CSV.")] = None,
) -> None:
    """Measure what the noise costs: optimizer steps with and without it, taking turns on this machine."""
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        rows: list[Timing] = []
        for row in measure(models.split(","), optimizers.split(","), rounds=rounds):
            typer.echo("\n".join(table([row]).splitlines()[bool(rows) :]))  # the header once
            rows.append(row)
        if out is not None:
            write_csv(rows, out)
    except ValueError as error:
        fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"cannot write {error.filename}: {error.strerror}")

"""``flatwise compare`` and ``flatwise tasks``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Table

from flatwise.cli.program import FAILED, INTERRUPTED, app, fail
from flatwise.cli.study import Address, Cpus, ExecutorOption, Gpus, Quiet, Retries, Where, Workers
from flatwise.report.terminal import terminal
from flatwise.studies import PAGE_NAME, CompareError, ExecutorChoice, all_failed, compare_task
from flatwise.study.arms import DEFAULT_ARMS, ArmError, split_arms
from flatwise.study.executors import ExecutorError
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.identify import NotIdentifiableError
from flatwise.study.registry import PluginError, UnknownTaskError, all_tasks
from flatwise.study.spec import StudyError
from flatwise.study.store import StoreError
from flatwise.study.task import OptimizerName, ScheduleName, SettingsError
from flatwise.study.tasks.classification import DataError
from flatwise.study.trial import TrialError


def _listed(names: Any) -> str:
    *some, last = get_args(names)
    return f"{', '.join(some)} or {last}"


@app.command()
def tasks() -> None:
    """List the tasks: the built-in one and those of installed packages, such as flatwise-papers."""
    table = Table("task", "what it trains", "epochs", box=None)
    try:
        known = all_tasks()
    except PluginError as error:
        fail(str(error))
    for task in known.values():
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
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of data files \\[default: FLATWISE_DATA, else a download].")
    ] = None,
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
    executor: Where = ExecutorOption.local,
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
    try:
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
            executor=ExecutorChoice(executor.value, workers, address, cpus_per_trial, gpus_per_trial, retries),
            retry_failed=retry_failed,
            quiet=quiet,
        )
    except KeyboardInterrupt:
        fail(f"interrupted; finished trials are kept in {folder}, and the same command goes on from there", INTERRUPTED)
    except (
        ArmError,
        CompareError,
        DataError,
        ExecutorError,
        NotIdentifiableError,
        PluginError,
        SettingsError,
        StoreError,
        StudyError,
        TrialError,
        UnknownTaskError,
    ) as error:
        fail(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        fail(f"cannot write {error.filename or folder / PAGE_NAME}: {error.strerror}. Finished trials are kept")
    if all_failed(comparison):
        fail(
            "every arm failed, so nothing was compared: the report has the messages. Finished trials are kept in "
            f"{folder}; --retry-failed runs the failed ones again",
            FAILED,
        )


def _flatness(wanted: bool, max_batches: int | None, max_iter: int | None) -> FlatnessSettings | bool:
    if not wanted:
        for option, value in (("--max-batches", max_batches), ("--max-iter", max_iter)):
            if value is not None:
                fail(f"{option} is a bound on the flatness measures: give --flatness too")
        return False
    chosen = FlatnessSettings()
    chosen = chosen if max_batches is None else replace(chosen, max_batches=max_batches)
    return chosen if max_iter is None else replace(chosen, max_iter=max_iter)

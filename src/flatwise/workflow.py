"""``flatwise.compare``: run the trials, analyse them, show the results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flatwise.report.page import write_page
from flatwise.report.progress import LiveProgress, Reuse
from flatwise.report.terminal import show, terminal, written
from flatwise.stats import Better
from flatwise.study.analysis import analyse, look_of
from flatwise.study.arms import DEFAULT_ARMS, Arm, parse_arm, split_arms, with_controls
from flatwise.study.comparison import Comparison, Subject, direction_of
from flatwise.study.flatness import FlatnessSettings
from flatwise.study.identify import identify, plain_data
from flatwise.study.machine import environment
from flatwise.study.registry import get_task
from flatwise.study.runner import TrainFunction, TrialSpec, lacking_flatness, paired_trials, reused, run
from flatwise.study.store import STORE_NAME, Store
from flatwise.study.subjects import subject_of
from flatwise.study.task import Settings
from flatwise.study.trial import Trial


class CompareError(ValueError):
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
            again. Default: none. A
            mapping, a dataclass, a pydantic model or an argparse namespace of numbers, text, lists, paths, enums, torch
            devices and dtypes, numpy scalars, and of such mappings.
        flatness: measure how flat the loss is around each trial's final model, and add it to the report; ``train``
            must call :meth:`flatwise.Trial.measure_flatness`. :class:`flatwise.FlatnessSettings` say what is measured
            and how much work it may take; ``True`` means the defaults. Trials in ``out`` without flatness, or with
            other settings, are run again, because models are not kept; the training is the same. Default: ``False``.
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
            "training function": identify(train, stored=out is not None),
            **_plain({} if settings is None else settings),
        },
    )
    folder = None if out is None else Path(out)
    return _compare(train, subject, arms, seeds, level, controls, folder, flatness, retry_failed, quiet)


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
    retry_failed: bool = False,
    quiet: bool = False,
) -> Comparison:
    """:func:`compare` for a built-in task.

    Args:
        task_name: name of the task, such as ``"digits-mlp"``.
        arms, seeds, level, controls, out, flatness, retry_failed, quiet: as for :func:`compare`.
        settings: changes to the task's settings, such as ``{"epochs": 10}``.
        data_dir: folder of data files; default: ``FLATWISE_DATA``, else a cache that is downloaded into.

    Raises:
        UnknownTaskError: there is no such task.
        SettingsError: a setting that does not exist or cannot have this value.
        DataError: data are missing or corrupt.
        Exception: as for :func:`compare`.
    """
    task = get_task(task_name)
    chosen: Settings = task.settings.updated(settings or {})
    chosen.check_device()
    data = task.load(data_dir)
    subject = subject_of(task, chosen)

    def train(trial: Trial) -> None:
        task.train(trial, chosen, data)

    with _one_thread():
        return _compare(train, subject, arms, seeds, level, controls, out, flatness, retry_failed, quiet)


def all_failed(comparison: Comparison) -> bool:
    """Whether no arm could be compared because a trial of it, or of vanilla, failed."""
    judged = [arm.vs_vanilla for arm in comparison.arms[1:] if not arm.is_control]
    if not judged:
        return comparison.arms[0].failed > 0
    return all(judgement is None or judgement.verdict == "failed" for judgement in judged)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One CPU thread for the built-in tasks: their tensors are too small for more, and sums do not depend on cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _compare(
    train: TrainFunction,
    subject: Subject,
    arms: str | Sequence[str | Arm],
    seeds: int | Sequence[int],
    level: float,
    controls: bool,
    out: Path | None,
    flatness: bool | FlatnessSettings,
    retry_failed: bool,
    quiet: bool,
) -> Comparison:
    chosen = with_controls(_arms(arms), controls=controls)
    numbers = _seeds(seeds)
    _check_level(level)
    measured = _flatness(flatness)
    console = terminal(stderr=True)
    specs = paired_trials(subject, chosen, numbers)
    if not quiet:
        _warn_if_hopeless(console, len(numbers), sum(not arm.is_control for arm in chosen) - 1, level)
    with (
        Store(None) if out is None else Store.open(out / STORE_NAME) as store,
        LiveProgress(console, shown=not quiet) as progress,
    ):
        if not quiet:
            _say_what_runs_again(console, specs, store, measured)
            _say_what_is_reused(console, specs, store, measured, retry_failed)
        records = list(run(specs, train, store, progress, flatness=measured, retry_failed=retry_failed))
        comparison = analyse(subject, records, chosen, numbers, level=level, flatness=measured, store=store)
        if store.is_writable:
            store.remember_look(subject.family, look_of(specs, chosen, numbers))
    # The page first, because the table's output may be closed early, as by `| head`.
    where = None if out is None else written(lambda: write_page(comparison, out / PAGE_NAME))
    if not quiet:
        show(comparison, terminal())
    if where is not None and (not quiet or where.page is None):
        console.print(where.line, highlight=False, soft_wrap=True, markup=False)
    return comparison


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


def _say_what_runs_again(
    console: Console, specs: list[TrialSpec], store: Store, flatness: FlatnessSettings | None
) -> None:
    again = lacking_flatness(specs, store, flatness)
    if again:
        console.print(
            f"Note: {again} of the finished trials have no flatness measures, or were measured by other settings. "
            f"Models are not kept, so {'it is' if again == 1 else 'they are'} trained again as before, and measured.",
            highlight=False,
        )


def _say_what_is_reused(
    console: Console, specs: list[TrialSpec], store: Store, flatness: FlatnessSettings | None, retry_failed: bool
) -> None:
    reuse = Reuse()
    for record in reused(specs, store, flatness=flatness, retry_failed=retry_failed):
        reuse.found(record)
    if reuse.count:
        console.print(reuse.line(len(specs)), highlight=False)
    elif len(store):
        console.print(
            f"None of the {len(store)} trials in the folder is reused: they have another training function, or other "
            "settings, arms, seeds or versions.",
            highlight=False,
        )
    if reuse.count < len(specs):
        reuse.runs_on(environment())
    if line := reuse.machines_line():
        console.print(line, highlight=False, markup=False)


def _warn_if_hopeless(console: Console, seeds: int, comparisons: int, level: float) -> None:
    """Warn if no difference, however clear, can reach a verdict: no sign-flip p value is below 2/2ⁿ."""
    needed = math.ceil(math.log2(2 * comparisons / level)) if comparisons else 0
    if seeds < needed:
        console.print(
            f"Note: with {seeds} seed{'' if seeds == 1 else 's'} no verdict can be reached at level {level:g} over "
            f"{comparisons} comparison{'' if comparisons == 1 else 's'} with vanilla; {needed} seeds can.",
            highlight=False,
        )

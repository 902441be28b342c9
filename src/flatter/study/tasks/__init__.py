"""The built-in tasks, by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

from flatter.study.data import Classification, DataError, load_digits, load_mnist
from flatter.study.hints import did_you_mean
from flatter.study.tasks.graphs import GRAPH_TASKS
from flatter.study.tasks.images import IMAGE_TASKS
from flatter.study.tasks.mlp import MlpSettings, train_mlp
from flatter.study.tasks.task import Settings, SettingsError, Task
from flatter.study.tasks.text import TEXT_TASKS

__all__ = ["TASKS", "Settings", "SettingsError", "Task", "UnknownTaskError", "get_task"]


class UnknownTaskError(LookupError):
    """There is no task of that name, or it cannot be imported. The message is one line."""


# Table 6 of the LEAP paper; the number counts the layer of inputs too.
MNIST_WIDTHS = {
    3: (784, 100, 10),
    4: (784, 256, 100, 10),
    6: (784, 256, 128, 64, 32, 10),
    8: (784, 256, 128, 64, 64, 32, 32, 10),
    10: (784, 256, 128, 64, 64, 32, 32, 16, 16, 10),
}
# Section IV-A of LRD's paper: two hidden layers of 1000.
FCNET_WIDTHS = (784, 1000, 1000, 10)
DIGITS_WIDTHS = (64, 64, 10)

# Chosen on the validation split over LEAP's grid of rates and weight decays, with momentum 0.9 and 0. On the digits a
# constant rate of 0.1 does as well as this; the falling one leaves room for arms that multiply the rate by 3 or 4.
DIGITS_SETTINGS = MlpSettings(epochs=30, batch_size=32, learning_rate=0.1, weight_decay=5e-3, schedule="cosine")
# A constant rate, as in LEAP's Table 2. Tried on MLP-3, 6 and 10: MLP-4 and 8 have the settings of their neighbours.
# The deep ones spend their first epochs on a plateau, which they leave the later the smaller the rate.
MNIST_RATES = {3: 0.05, 4: 0.05, 6: 0.01, 8: 0.05, 10: 0.05}
MNIST_SETTINGS = MlpSettings(epochs=20, batch_size=128, learning_rate=0.05, weight_decay=1e-4)
# As in LRD's paper, Table I, whose rates for its other optimizers are 0.001 for RMSprop, Adam and AMSGrad and 0.03 for
# RAdam. It names no weight decay for MNIST.
FCNET_SETTINGS = MlpSettings(epochs=100, batch_size=128, learning_rate=0.1)


def _load_digits(data_dir: Path | None) -> Classification:
    if data_dir is not None:
        raise DataError("the digits come with scikit-learn, and no file is read: leave the data folder away")
    return load_digits()


def _digits_mlp() -> Task:
    return Task(
        name="digits-mlp",
        reads_files=False,
        summary="MLP on scikit-learn's 8×8 handwritten digits: no download, about a second per trial",
        settings=DIGITS_SETTINGS,
        load=_load_digits,
        train=partial(train_mlp, widths=DIGITS_WIDTHS),
    )


def _mnist_mlp(layers: int) -> Task:
    return Task(
        name=f"mnist-mlp-{layers}",
        summary=f"the LEAP paper's MLP-{layers} on MNIST: {layers} layers, that of inputs included",
        settings=MNIST_SETTINGS.updated({"learning_rate": MNIST_RATES[layers]}),
        load=load_mnist,
        train=partial(train_mlp, widths=MNIST_WIDTHS[layers]),
    )


def _mnist_fcnet() -> Task:
    return Task(
        name="mnist-fcnet",
        summary="the LRD paper's FCNet on MNIST: two hidden layers of 1000",
        settings=FCNET_SETTINGS,
        load=load_mnist,
        train=partial(train_mlp, widths=FCNET_WIDTHS),
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _digits_mlp(),
        *(_mnist_mlp(layers) for layers in MNIST_WIDTHS),
        _mnist_fcnet(),
        *GRAPH_TASKS,
        *IMAGE_TASKS,
        *TEXT_TASKS,
    )
}


_REMEMBERED: ContextVar[Mapping[str, Task] | None] = ContextVar("remembered", default=None)


@contextmanager
def without_imports(tasks: Mapping[str, Task]) -> Iterator[None]:
    """In the block :func:`get_task` imports nothing: tasks of the user's own are those that a store remembers."""
    token = _REMEMBERED.set(tasks)
    try:
        yield
    finally:
        _REMEMBERED.reset(token)


def get_task(name: str) -> Task:
    """Return the built-in task of that name, or the user's own that ``"module:attribute"`` names.

    Raises:
        UnknownTaskError: there is none; the message has the closest name and all names.
    """
    if name in TASKS:
        return TASKS[name]
    remembered = _REMEMBERED.get()
    if ":" in name and remembered is not None:
        if name not in remembered:
            raise UnknownTaskError(f"nothing of the task '{name}' was run yet, and only `flatter run` imports it")
        return remembered[name]
    if ":" in name:
        return _import_task(name)
    raise UnknownTaskError(f"there is no task '{name}': {did_you_mean(name, TASKS)}The tasks are {', '.join(TASKS)}.")


def _import_task(name: str) -> Task:
    module, _, attribute = name.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:  # as `python -m` does
        sys.path.insert(0, folder)
    if not all(part.isidentifier() for part in [*module.split("."), attribute]):
        raise UnknownTaskError(f"'{name}' names no task: expected module:attribute, as in my_tasks:RIDGE")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UnknownTaskError(
            f"the task '{name}' cannot be imported: no module '{error.name}' is in the current folder or installed"
        ) from None
    except Exception as error:
        raise UnknownTaskError(f"the task '{name}' cannot be imported: {type(error).__name__}: {error}") from None
    _check_unchanged(imported)
    if not hasattr(imported, attribute):
        raise UnknownTaskError(f"the module '{module}' has no '{attribute}', which the task '{name}' names")
    task = getattr(imported, attribute)
    if not isinstance(task, Task):
        raise UnknownTaskError(f"'{name}' is a {type(task).__name__}, not a flatter.Task")
    return replace(task, name=name, is_own=True)


_IMPORTED: dict[str, bytes] = {}  # content of the files of modules with tasks, as they were imported


def _check_unchanged(module: ModuleType) -> None:
    """A trial is known by the source that it is trained by: that must be what this process has imported."""
    path = Path(getattr(module, "__file__", None) or "")
    if path.suffix == ".py":
        content = path.read_bytes()
        if _IMPORTED.setdefault(module.__name__, content) != content:
            raise UnknownTaskError(f"{path.name} was changed after it was imported: start the program again")

"""flatwise: random and peaked learning rates for any PyTorch optimizer, and an honest test of whether they help."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# While the flatwise command imports torch, Ctrl-C ends it without a traceback. Its `main` takes over from here.
if (
    os.path.splitext(os.path.basename((sys.argv or [""])[0]))[0] == "flatwise"
    or sys.orig_argv[1:3] in (["-m", "flatwise"], ["-m", "flatwise.cli"])
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from flatwise import lr_scheduler, optim
from flatwise._attach import Handle, SharedNoiseWarning, handle_of, perturb
from flatwise.distributions import Bernoulli, Constant, Distribution, LogUniform, Mixture, Normal, Uniform
from flatwise.methods import alrao, leap, lr_dropout, ralr, random_lr, random_lr_normal
from flatwise.perturbation import Perturbation, Window
from flatwise.version import __version__

if TYPE_CHECKING:
    from flatwise import flatness
    from flatwise.studies import StudyOutcome, compare, run_study
    from flatwise.study.arms import Arm, Peak
    from flatwise.study.comparison import Comparison
    from flatwise.study.engine import ExecutorChoice
    from flatwise.study.flatness import FlatnessSettings
    from flatwise.study.task import Settings, Task
    from flatwise.study.trial import Trial

__all__ = [
    "Bernoulli",
    "Constant",
    "Distribution",
    "Handle",
    "LogUniform",
    "Mixture",
    "Normal",
    "Perturbation",
    "SharedNoiseWarning",
    "Uniform",
    "Window",
    "__version__",
    "alrao",
    "handle_of",
    "leap",
    "lr_dropout",
    "lr_scheduler",
    "optim",
    "perturb",
    "ralr",
    "random_lr",
    "random_lr_normal",
]

# Imported when first used: they need the packages of the "compare" extra, and the import of flatwise stays quick.
_LAZY = {
    "Arm": "flatwise.study.arms",
    "Comparison": "flatwise.study.comparison",
    "ExecutorChoice": "flatwise.study.engine",
    "FlatnessSettings": "flatwise.study.flatness",
    "Peak": "flatwise.study.arms",
    "Settings": "flatwise.study.task",
    "StudyOutcome": "flatwise.studies",
    "Task": "flatwise.study.task",
    "Trial": "flatwise.study.trial",
    "compare": "flatwise.studies",
    "flatness": "flatwise.flatness",
    "run_study": "flatwise.studies",
}


def _has_extra() -> bool:
    """Whether the packages of the "compare" extra are installed."""
    packages = ("filelock", "jinja2", "optuna", "plotly", "pydantic", "rich", "scipy", "sklearn")
    try:
        return all(importlib.util.find_spec(package) for package in packages)
    except ImportError:
        return False


if TYPE_CHECKING or _has_extra():  # so `from flatwise import *` works without it
    __all__ += [
        "Arm",
        "Comparison",
        "ExecutorChoice",
        "FlatnessSettings",
        "Peak",
        "Settings",
        "StudyOutcome",
        "Task",
        "Trial",
        "compare",
        "flatness",
        "run_study",
    ]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'flatwise' has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("flatwise"):
            raise
        raise ImportError(
            f"flatwise.{name} needs the package {error.name!r}, which is not installed: pip install 'flatwise[compare]'"
        ) from error
    return module if _LAZY[name] == f"flatwise.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

"""flatwise: random and peaked learning rates for any PyTorch optimizer, and an honest test of whether they help."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# Until its `main` takes over, the command is importing: Ctrl-C then ends it without a traceback through torch.
if (
    os.path.splitext(os.path.basename((sys.argv or [""])[0]))[0] == "flatwise"
    or [*sys.orig_argv, "", ""][1:3] in (["-m", "flatwise"], ["-m", "flatwise.cli"])
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
    "Arm",
    "Bernoulli",
    "Comparison",
    "Constant",
    "Distribution",
    "ExecutorChoice",
    "FlatnessSettings",
    "Handle",
    "LogUniform",
    "Mixture",
    "Normal",
    "Peak",
    "Perturbation",
    "Settings",
    "SharedNoiseWarning",
    "StudyOutcome",
    "Task",
    "Trial",
    "Uniform",
    "Window",
    "__version__",
    "alrao",
    "compare",
    "flatness",
    "handle_of",
    "leap",
    "lr_dropout",
    "lr_scheduler",
    "optim",
    "perturb",
    "ralr",
    "random_lr",
    "random_lr_normal",
    "run_study",
]

_NAMES = __all__
if not TYPE_CHECKING:
    del __all__  # at run time it follows from what is installed: `from flatwise import *` works without the extras

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


def __getattr__(name: str) -> Any:
    if name == "__all__":
        # `from flatwise import *` takes what the installed packages allow.
        return [name for name in _NAMES if _can_be_imported(name)]
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
    return sorted({*globals(), *_LAZY, "__all__"})


def _can_be_imported(name: str) -> bool:
    try:
        getattr(sys.modules[__name__], name)
    except ImportError:
        return False
    return True

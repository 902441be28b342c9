"""flatter: random and peaked learning rates for any PyTorch optimizer, and an honest test of whether they help."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

# Until its `main` takes over, the command is importing: Ctrl-C then ends it without a traceback through torch.
if (
    os.path.splitext(os.path.basename((sys.argv or [""])[0]))[0] == "flatter"
    or [*sys.orig_argv, "", ""][1:3] in (["-m", "flatter"], ["-m", "flatter.cli"])
) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))

from flatter import lr_scheduler, optim
from flatter.attach import Handle, SharedNoiseWarning, handle_of, perturb
from flatter.distributions import Bernoulli, Constant, Distribution, LogUniform, Mixture, Normal, Uniform
from flatter.methods import alrao, leap, lr_dropout, ralr, random_lr, random_lr_normal
from flatter.perturbation import Perturbation, Window
from flatter.version import __version__

if TYPE_CHECKING:
    from flatter import flatness
    from flatter.study.arms import Arm, Peak
    from flatter.study.comparison import Comparison
    from flatter.study.flatness import FlatnessSettings
    from flatter.study.tasks.task import Settings, Task
    from flatter.study.trial import Trial
    from flatter.study_workflow import ExecutorChoice, StudyOutcome, run_study
    from flatter.workflow import compare

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
    del __all__  # at run time it follows from what is installed: `from flatter import *` works without the extras

# Imported when first used: they need the packages of the "compare" extra, and the import of flatter stays quick.
_LAZY = {
    "Arm": "flatter.study.arms",
    "Comparison": "flatter.study.comparison",
    "ExecutorChoice": "flatter.study_workflow",
    "FlatnessSettings": "flatter.study.flatness",
    "Peak": "flatter.study.arms",
    "Settings": "flatter.study.tasks.task",
    "StudyOutcome": "flatter.study_workflow",
    "Task": "flatter.study.tasks.task",
    "Trial": "flatter.study.trial",
    "compare": "flatter.workflow",
    "flatness": "flatter.flatness",
    "run_study": "flatter.study_workflow",
}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        # `from flatter import *` takes what the installed packages allow.
        return [name for name in _NAMES if _can_be_imported(name)]
    if name not in _LAZY:
        raise AttributeError(f"module 'flatter' has no attribute {name!r}")
    try:
        module = importlib.import_module(_LAZY[name])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("flatter"):
            raise
        raise ImportError(
            f"flatter.{name} needs the package {error.name!r}, which is not installed: pip install 'flatter[compare]'"
        ) from error
    return module if _LAZY[name] == f"flatter.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__all__"})


def _can_be_imported(name: str) -> bool:
    try:
        getattr(sys.modules[__name__], name)
    except ImportError:
        return False
    return True

"""Where trials run: in this process, in several, or on a cluster."""

from flatter.study.executors.executor import Executor, Lost
from flatter.study.executors.local import LocalExecutor

__all__ = ["Executor", "LocalExecutor", "Lost"]

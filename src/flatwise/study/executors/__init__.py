"""Where trials run: in this process, in processes of this machine, or on a Ray cluster."""

from flatwise.study.executors.executor import Executor, ExecutorError, Lost
from flatwise.study.executors.local import LocalExecutor
from flatwise.study.executors.processes import ProcessExecutor
from flatwise.study.executors.ray import RayExecutor

__all__ = ["Executor", "ExecutorError", "LocalExecutor", "Lost", "ProcessExecutor", "RayExecutor"]

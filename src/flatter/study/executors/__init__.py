"""Where trials run: in this process, in processes of this machine, or on a Ray cluster."""

from flatter.study.executors.executor import Executor, ExecutorError, Lost
from flatter.study.executors.local import LocalExecutor
from flatter.study.executors.processes import ProcessExecutor
from flatter.study.executors.ray import RayExecutor

__all__ = ["Executor", "ExecutorError", "LocalExecutor", "Lost", "ProcessExecutor", "RayExecutor"]

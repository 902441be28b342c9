"""How a job travels to a worker and its result, or the exception that it raised, travels back: as bytes."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flatwise.study.executors.executor import ExecutorError, J, R


class WorkerTraceback(Exception):
    """Cause of an exception that was raised in a worker: where it was raised there, as text."""

    def __str__(self) -> str:
        return f"in the worker:\n{self.args[0]}"


@dataclass(frozen=True)
class _Raised:
    error: Exception
    traceback: str


def pack(work: Callable[[J], R], job: J, dumps: Callable[[Any], bytes] = pickle.dumps) -> bytes:
    """A request: the work and one job.

    Args:
        work: the work.
        job: the job.
        dumps: pickles them.

    Raises:
        ExecutorError: they cannot be pickled.
    """
    try:
        return dumps((work, job))
    except Exception as error:
        raise ExecutorError(
            f"the work and its jobs must be a function of a module and plain data, to be sent to workers: {error}"
        ) from error


def attempt(request: bytes) -> bytes:
    """Does what a request asks for, in the worker; the answer has the result or what was raised."""
    try:
        work, job = pickle.loads(request)
        return pickle.dumps(work(job))
    except Exception as error:
        return pickle.dumps(_Raised(_sendable(error), traceback.format_exc()))


def unpack(answer: bytes) -> Any:
    """The result in an answer.

    Raises:
        Exception: what was raised in the worker; its cause is a :class:`WorkerTraceback`.
    """
    result = pickle.loads(answer)
    if isinstance(result, _Raised):
        raise result.error from WorkerTraceback(result.traceback)
    return result


def _sendable(error: Exception) -> Exception:
    # Exceptions with arguments of their own often pickle well and fail only when they are unpickled.
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ExecutorError(f"{type(error).__name__}: {error}")
    return error

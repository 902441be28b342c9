"""What an executor is: work and jobs in, pairs of job and result out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from typing_extensions import Self

J = TypeVar("J")
R = TypeVar("R")


class ExecutorError(RuntimeError):
    """The executor cannot run what it is given. The message is one line."""


@dataclass(frozen=True)
class Lost:
    """What a job gives whose worker ended before the job did: killed, crashed, or its machine went away.

    Attributes:
        message: one line: how the worker ended, and what to do.
    """

    message: str


class Executor(Protocol):
    """Runs jobs somewhere. A context manager: what it started is gone when the block is left."""

    @property
    def slots(self) -> int:
        """How many jobs can run at once."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(self, work: Callable[[J], R], jobs: Iterable[J]) -> Generator[tuple[J, R | Lost], None, None]:
        """Runs ``work(job)`` for every job and yields each job with what it gave, in the order in which they end.

        A job is taken from ``jobs`` only when there is room for it, after the results that are there were yielded: an
        endless generator may decide on its next job by the results so far. Closing the generator stops the jobs that
        run.

        Args:
            work: a function of a module, so that it can be sent by its name. What can go wrong with a job it should
                return; where it raises, the whole run ends.
            jobs: plain data that can be pickled.

        Yields:
            The job and what ``work`` returned, or :class:`Lost`. A lost job costs no other.

        Raises:
            ExecutorError: see each executor; also, for executors with workers: outside of the ``with`` block, while
                another run goes on, or for work, jobs or results that cannot be pickled.
            Exception: what ``work`` raised; every other job is stopped. From a worker, its cause is the worker's
                traceback as text.
        """

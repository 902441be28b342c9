"""In this process, one job after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable

from typing_extensions import Self

from flatwise.study.executors.executor import J, Lost, R


class LocalExecutor:
    """Runs every job here, with the threads that torch has; nothing is pickled, and no job is ever lost."""

    slots = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, work: Callable[[J], R], jobs: Iterable[J]) -> Generator[tuple[J, R | Lost], None, None]:
        """See :meth:`Executor.run`."""
        for job in jobs:
            yield job, work(job)

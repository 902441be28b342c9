from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from flatter.study.executors.executor import Lost

J = TypeVar("J")
R = TypeVar("R")


class LocalExecutor:
    slots = 1

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(self, *a: object) -> None:
        pass

    def run(self, work: Callable[[J], R], jobs: Iterable[J]) -> Iterator[tuple[J, R | Lost]]:
        for job in jobs:
            yield job, work(job)

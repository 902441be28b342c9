"""What runs jobs, wherever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

J = TypeVar("J")
R = TypeVar("R")


@dataclass(frozen=True)
class Lost:
    message: str


class Executor(Protocol):
    slots: int

    def run(self, work: Callable[[J], R], jobs: Iterable[J]) -> Iterator[tuple[J, R | Lost]]: ...

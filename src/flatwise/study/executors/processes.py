"""In worker processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice
from multiprocessing.connection import wait

from typing_extensions import Self

from flatwise.study.executors.executor import ExecutorError, J, Lost, R
from flatwise.study.executors.messages import pack, unpack
from flatwise.study.executors.worker import Worker, WorkerEnded

_SECONDS_BETWEEN_LOOKS = 1.0  # at workers that have nothing to say


class ProcessExecutor:
    """Runs jobs in processes that start at the first jobs and stay: what they have loaded serves the next job too.

    A worker that is killed or crashes costs the job that it had; another takes its place. No worker outlives this
    process, even if it is killed.

    The number of threads can change the last bits of a result: runs that must agree need the same.

    Args:
        workers: jobs at once, at least 1.
        threads_per_worker: torch threads of each, at least 1; default: the cores that this process may use, shared
            evenly.

    Raises:
        ExecutorError: a number below 1. Later, from ``run``: a worker cannot start.
    """

    # concurrent.futures has such a pool, but all its jobs are lost with one killed worker.

    def __init__(self, workers: int, threads_per_worker: int | None = None) -> None:
        self.slots = _at_least_one("workers", workers)
        if threads_per_worker is None:
            threads_per_worker = max(1, visible_cores() // workers)
        self.threads_per_worker = _at_least_one("threads_per_worker", threads_per_worker)
        self._open = False
        self._running = False
        self._workers: set[Worker] = set()

    def __enter__(self) -> Self:
        self._open = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._open = False
        self._stop(self._workers)

    def run(self, work: Callable[[J], R], jobs: Iterable[J]) -> Generator[tuple[J, R | Lost], None, None]:
        """See :meth:`Executor.run`."""
        if not self._open or self._running:
            raise ExecutorError(
                "run() of this executor goes on already: finish or close it first"
                if self._running
                else "use the executor in a with block: with ProcessExecutor(...) as executor"
            )
        self._running = True
        try:
            yield from self._run(work, iter(jobs))
        except BaseException:  # also GeneratorExit: the generator was closed
            self._stop(self._workers)
            raise
        finally:
            self._running = False

    def _run(self, work: Callable[[J], R], jobs: Iterator[J]) -> Generator[tuple[J, R | Lost], None, None]:
        busy: dict[Worker, J] = {}
        while True:
            for job in islice(jobs, self.slots - len(busy)):
                busy[self._give(pack(work, job), busy)] = job
            if not busy:
                return
            ready = wait([worker.connection for worker in busy], timeout=_SECONDS_BETWEEN_LOOKS)
            for worker in [worker for worker in busy if worker.connection in ready or worker.ended]:
                try:
                    answer = worker.receive()
                except WorkerEnded as ended:
                    self._stop({worker})
                    yield busy.pop(worker), Lost(_explained(str(ended)))
                else:
                    if answer is not None:
                        yield busy.pop(worker), unpack(answer)

    def _give(self, request: bytes, busy: dict[Worker, J]) -> Worker:
        """Gives a request to an idle worker, or to a new one."""
        for worker in self._workers - busy.keys():
            try:
                worker.give(request)
            except WorkerEnded:  # while it was idle: nothing is lost
                self._stop({worker})
            else:
                return worker
        worker = Worker(self.threads_per_worker)
        self._workers.add(worker)
        worker.give(request)
        return worker

    def _stop(self, workers: set[Worker]) -> None:
        stopped = workers & self._workers
        self._workers = self._workers - stopped
        for worker in stopped:
            worker.kill()
        for worker in stopped:
            worker.close()


def visible_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _explained(how: str) -> str:
    hint = "try the job alone in this process to see why"
    if "SIGKILL" in how:
        hint = "if the machine ran out of memory, use fewer workers or smaller batches"
    return f"the worker process {how}; {hint}"


def _at_least_one(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExecutorError(f"{name} must be a whole number, 1 or more; got {value!r}")
    return value

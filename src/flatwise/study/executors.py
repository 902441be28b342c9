"""Where trials run: in this process or in worker processes of this machine. See ray_executor for a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

import torch
from typing_extensions import Self

from flatwise.exceptions import FlatwiseError

J = TypeVar("J")
R = TypeVar("R")


class ExecutorError(FlatwiseError, RuntimeError):
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

    @property
    def in_process(self) -> bool:
        """Whether jobs run in this process: their callbacks reach it."""

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


class LocalExecutor:
    """Runs every job here, with the threads that torch has; nothing is pickled, and no job is ever lost."""

    slots = 1
    in_process = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def run(self, work: Callable[[J], R], jobs: Iterable[J]) -> Generator[tuple[J, R | Lost], None, None]:
        """See :meth:`Executor.run`."""
        for job in jobs:
            yield job, work(job)


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


_READY = b""
_SECONDS_BETWEEN_LOOKS = 1.0  # at the parent, where its end does not show at once
# Read once, when torch, numpy and OpenMP are first loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_environment = threading.Lock()


class WorkerEnded(Exception):
    """The worker process is no more. The message says how it ended."""


class Worker:
    """The main process's handle of a worker process, which starts at once and gets one request at a time.

    Args:
        threads: torch threads, at least 1.

    Attributes:
        connection: becomes readable when :meth:`receive` has something to do.
    """

    def __init__(self, threads: int) -> None:
        context = multiprocessing.get_context(
            "spawn"
        )  # a fork would inherit locked locks, and CUDA does not survive it
        self.connection, theirs = context.Pipe()
        # Not daemonic: work may have processes of its own, such as those of a data loader.
        self._process = context.Process(target=serve, args=(theirs, threads), name="flatwise-worker")
        with _thread_variables(threads), _interrupts_blocked():
            self._process.start()
        theirs.close()
        self._ready = False
        self._request: bytes | None = None

    @property
    def ended(self) -> bool:
        """Whether the process is no more; what it sent before may still be there."""
        return self._process.exitcode is not None

    def give(self, request: bytes) -> None:
        """Sends a request to a worker that has none; one that still starts gets it when it is ready.

        Raises:
            WorkerEnded: the process ended while it was idle.
        """
        if self._ready:
            self._send(request)
        else:
            self._request = request

    def receive(self) -> bytes | None:
        """The answer to the request, or ``None`` if what came is only that the worker has started.

        Raises:
            WorkerEnded: it ended without an answer.
            ExecutorError: it could not even start.
        """
        try:
            if not self.connection.poll():  # a process of the work's own holds the pipe open
                raise EOFError
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            how = self._how_it_ended()
            if not self._ready:
                raise ExecutorError(
                    f"a worker process {how} while it started: see its message above. A program that runs a study "
                    "must do so under `if __name__ == '__main__':`, since every worker imports it"
                ) from None
            raise WorkerEnded(how) from None
        if self._ready:
            return message
        self._ready = True
        request, self._request = self._request, None
        if request is not None:
            self._send(request)
        return None

    def kill(self) -> None:
        """Ends the process, whatever it does; :meth:`close` must follow."""
        self._process.kill()

    def close(self) -> None:
        """Waits for the end of the process and frees what it held here."""
        self.connection.close()
        self._process.join()
        self._process.close()

    def _send(self, request: bytes) -> None:
        try:
            self.connection.send_bytes(request)
        except OSError:
            raise WorkerEnded(self._how_it_ended()) from None

    def _how_it_ended(self) -> str:
        self._process.join(timeout=_SECONDS_BETWEEN_LOOKS)
        self._process.kill()  # it may only have closed its end
        self._process.join()
        code = self._process.exitcode
        assert code is not None
        if code >= 0:
            return f"ended itself with exit code {code}"
        names = {number.value: number.name for number in signal.Signals}
        return f"was ended by signal {-code} ({names.get(-code, 'without a name')})"


def serve(connection: Connection, threads: int) -> None:
    """Answer requests until the main process closes its end. Runs in the worker process."""
    threading.Thread(target=_end_with_parent, daemon=True, name="flatwise-parent").start()
    # Ctrl-C reaches every process of the terminal; only the main process handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _unblock_interrupts()
    torch.set_num_threads(threads)
    connection.send_bytes(_READY)
    while True:
        try:
            request = connection.recv_bytes()
        except (EOFError, OSError):
            return
        connection.send_bytes(attempt(request))


def _end_with_parent() -> None:
    """End this process at once when the main process ends: if killed, that one cannot tell its workers."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Processes that the main process forked hold the pipe behind the sentinel open; then the parent's number tells.
    while not wait([parent.sentinel], timeout=_SECONDS_BETWEEN_LOOKS) and os.getppid() == parent.pid:
        pass
    os._exit(1)


@contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    """The environment that a process started meanwhile gets: torch is imported there before any code of ours."""
    with _environment:
        before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started meanwhile shows no traceback for Ctrl-C before it ignores it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it is started with the first process, and unblocks what was blocked before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unblock_interrupts() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


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

    in_process = False
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

"""One worker process: the driver's end, and what the process does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

import torch

from flatwise.study.executors.executor import ExecutorError
from flatwise.study.executors.messages import attempt

_READY = b""
_SECONDS_BETWEEN_LOOKS = 1.0  # at the parent, where its end does not show at once
# Read once, when torch, numpy and OpenMP are first loaded.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_environment = threading.Lock()


class WorkerEnded(Exception):
    """The worker process is no more. The message says how it ended."""


class Worker:
    """The driver's end. The process starts at once, and is given one request after the other.

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
    """Answers requests until the driver closes its end. This is what the process does."""
    threading.Thread(target=_end_with_parent, daemon=True, name="flatwise-parent").start()
    # Ctrl-C goes to every process of the terminal: the driver alone decides what it means.
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
    """Ends this process, in the middle of whatever it does, when the driver ends: killed, it can tell nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    # Processes that the driver forked hold the pipe behind the sentinel open; then the parent's number tells.
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

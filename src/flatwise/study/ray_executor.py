"""On a Ray cluster: jobs are remote tasks, and only this process has the results."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic

import torch
from typing_extensions import Self

from flatwise.study.executors import ExecutorError, J, Lost, R, attempt, pack, unpack

_QUEUED = 2  # jobs sent beyond those that can run, so that no worker has to wait for the next job
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 30.0
_SECONDS_BETWEEN_LOOKS = 1.0  # at the nodes
_PATIENCE_SECONDS = 60.0  # with a cluster whose nodes for these jobs are all gone
_LOCAL_OBJECT_STORE = 100 * 2**20  # bytes; jobs and results are small


class RayExecutor:
    """Runs every job as a Ray task that asks for its share of a node.

    A job whose worker or node is lost is run again, from its beginning. The number of torch threads of a job is
    ``cpus_per_trial``, rounded down, at least 1.

    Args:
        address: ``"host:port"`` of a running cluster that this machine is a node of, or ``"auto"`` for the one that
            this machine belongs to. Default: a Ray of our own on this machine, which ends with the ``with`` block.
            A connection that the program has made with ``ray.init`` is used, and left as it was.
        cpus_per_trial: CPUs that one job takes, above 0; default 1.
        gpus_per_trial: GPUs that one job takes; 0.25 lets four share one; default 0.
        max_in_flight: jobs sent to the cluster and not ended, at least 1; default: as many as can run, and 2.
        retries: how often a job is run again after it was lost; default 3.

    Raises:
        ExecutorError: a number that makes no sense. On entering the ``with`` block: Ray is not installed, no cluster
            at the address, or no node has what one job takes. From ``run``: there is no such node for a minute,
            or a node that cannot load the work.
    """

    in_process = False

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus_per_trial: float = 1,
        gpus_per_trial: float = 0,
        max_in_flight: int | None = None,
        retries: int = 3,
    ) -> None:
        if not (math.isfinite(cpus_per_trial) and cpus_per_trial > 0):
            raise ExecutorError(f"cpus_per_trial must be above 0; got {cpus_per_trial!r}")
        if not (math.isfinite(gpus_per_trial) and gpus_per_trial >= 0) or (
            gpus_per_trial > 1 and gpus_per_trial != int(gpus_per_trial)
        ):
            raise ExecutorError(
                f"gpus_per_trial must be 0, a fraction of one GPU, or a whole number; got {gpus_per_trial!r}"
            )
        if max_in_flight is not None and max_in_flight < 1:
            raise ExecutorError(f"max_in_flight must be 1 or more; got {max_in_flight!r}")
        if retries < 0:
            raise ExecutorError(f"retries must be 0 or more; got {retries!r}")
        self.address = address
        self.cpus_per_trial = cpus_per_trial
        self.gpus_per_trial = gpus_per_trial
        self.max_in_flight = max_in_flight
        self.retries = retries
        self._ray: Any = None
        self._ours = False
        self._in_flight: dict[Any, _Flight[Any]] = {}
        self._slots = 0
        self._looked = -math.inf

    @property
    def slots(self) -> int:
        """How many jobs the nodes that are alive can run at once; 0 while there are none."""
        now = time.monotonic()
        if now - self._looked > _SECONDS_BETWEEN_LOOKS:
            self._slots = sum(self._fitting(resources) for resources in self._nodes())
            self._looked = now
        return self._slots

    def __enter__(self) -> Self:
        try:
            import ray
        except ImportError as error:
            raise ExecutorError(f"a Ray cluster needs Ray: pip install 'flatwise[cluster]' ({error})") from None
        self._ray = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            _connect(ray, self.address)
        else:
            _check_connection(ray, self.address)
        try:
            self._check_resources()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._cancel()
        if self._ours:
            self._ray.shutdown()
        self._ray = None

    def run(self, work: Callable[[J], R], jobs: Iterable[J]) -> Generator[tuple[J, R | Lost], None, None]:
        """See :meth:`Executor.run`."""
        if self._ray is None or self._in_flight:
            raise ExecutorError(
                "use the executor in a with block: with RayExecutor(...) as executor"
                if self._ray is None
                else "run() of this executor goes on already: finish or close it first"
            )
        try:
            yield from self._run(work, iter(jobs))
        finally:
            self._cancel()

    def _run(self, work: Callable[[J], R], jobs: Iterator[J]) -> Generator[tuple[J, R | Lost], None, None]:
        from ray import cloudpickle, exceptions

        lost = (
            exceptions.WorkerCrashedError,
            exceptions.NodeDiedError,
            exceptions.OutOfMemoryError,
            exceptions.ObjectLostError,  # it was done, but its node died with the result
        )
        # Ray's own retries would repeat a job that runs out of memory for ever: here every loss counts.
        task = self._ray.remote(
            num_cpus=self.cpus_per_trial, num_gpus=self.gpus_per_trial, max_retries=0, name="flatwise trial"
        )(_attempt)
        threads = max(1, int(self.cpus_per_trial))

        while True:
            room = (self.max_in_flight or self.slots + _QUEUED) - len(self._in_flight)
            for job in islice(jobs, max(0, room)):
                # Unlike a worker process, Ray's do not import the program: what it defines itself must travel whole.
                request = pack(work, job, cloudpickle.dumps)
                self._in_flight[task.remote(request, threads)] = _Flight(job, request)
            if not self._in_flight:
                return
            ready = self._wait()
            flight = self._in_flight.pop(ready)
            try:
                answer = self._ray.get(ready)
            except lost as error:
                flight.losses += 1
                if flight.losses > self.retries:
                    yield flight.job, Lost(_explained(error, flight.losses))
                else:
                    self._in_flight[task.remote(flight.request, threads)] = flight
            except exceptions.RayError as error:
                raise ExecutorError(
                    f"a Ray worker could not take a job: {_last_line(error)}. The same versions of Ray, flatwise and "
                    "all that the work imports must be installed on every node"
                ) from error
            else:
                yield flight.job, unpack(answer)

    def _wait(self) -> Any:
        """A task that has ended."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            ready, _ = self._ray.wait(list(self._in_flight), num_returns=1, timeout=_SECONDS_BETWEEN_LOOKS)
            if ready:
                return ready[0]
            if self.slots > 0:
                deadline = time.monotonic() + _PATIENCE_SECONDS
            elif time.monotonic() > deadline:
                self._check_resources()

    def _cancel(self) -> None:
        if self._ray is not None and self._ray.is_initialized():
            for task in self._in_flight:
                self._ray.cancel(task, force=True)
        self._in_flight.clear()

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _fitting(self, resources: Mapping[str, float]) -> int:
        """How many jobs fit on a node."""
        tolerance = 1e-9  # ten times 0.1 CPUs are one
        fitting = int(resources.get("CPU", 0) / self.cpus_per_trial + tolerance)
        if self.gpus_per_trial == 0:
            return fitting
        gpus = resources.get("GPU", 0)
        if self.gpus_per_trial >= 1:
            return min(fitting, int(gpus / self.gpus_per_trial))
        return min(fitting, int(gpus) * int(1 / self.gpus_per_trial + tolerance))  # no job has parts of two GPUs

    def _check_resources(self) -> None:
        nodes = self._nodes()
        if any(self._fitting(resources) for resources in nodes):
            return
        wanted = f"{self.cpus_per_trial:g} CPUs (cpus_per_trial)"
        if self.gpus_per_trial:
            wanted += f" and {self.gpus_per_trial:g} GPUs (gpus_per_trial)"
        there = sorted({f"{r.get('CPU', 0):g} CPUs and {r.get('GPU', 0):g} GPUs" for r in nodes})
        raise ExecutorError(
            f"one trial takes {wanted}, and no node of the cluster has them; the nodes have {'; '.join(there)}: ask "
            "for less, or add a node"
        )


@dataclass
class _Flight(Generic[J]):
    job: J
    request: bytes
    losses: int = 0


def _attempt(request: bytes, threads: int) -> bytes:
    torch.set_num_threads(threads)
    return attempt(request)


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Also an environment variable that the Ray we start takes over: nobody is told that it runs.
    before = os.environ.get("RAY_USAGE_STATS_ENABLED")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        if address is None:
            ray.init("local", include_dashboard=False, object_store_memory=_LOCAL_OBJECT_STORE, **quiet)
        else:
            _check_address(address)
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, ExecutorError):
            raise
        raise ExecutorError(f"cannot use Ray at {address or 'this machine'}: {_last_line(error)}") from error
    finally:
        if before is None:
            del os.environ["RAY_USAGE_STATS_ENABLED"]
        else:
            os.environ["RAY_USAGE_STATS_ENABLED"] = before


def _check_connection(ray: Any, address: str | None) -> None:
    """Checks that the connection that the program has already is the one that is asked for."""
    connected = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", connected):
        raise ExecutorError(
            f"this program is connected to Ray at {connected} already, and cannot use {address} too: give no "
            "address, or call ray.shutdown() first"
        )


def _check_address(address: str) -> None:
    """Asks before Ray does: where no cluster answers, ``ray.init`` waits for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise ExecutorError(
            f"the address of a Ray cluster is host:port, as `ray start --head` prints it, or auto; got {address!r}"
        )
    advice = "start it with `ray start --head`, or correct the address"
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ExecutorError(f"no Ray cluster at {address} ({error}): {advice}") from None
    status = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "status", "--address", address]
    try:
        subprocess.run(status, capture_output=True, check=True, text=True, timeout=_ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        raise ExecutorError(
            f"what listens at {address} did not answer as a Ray cluster in {_ANSWER_SECONDS:g} seconds: {advice}"
        ) from None
    except subprocess.CalledProcessError as error:
        raise ExecutorError(f"no Ray cluster at {address} ({_last_line(error.stderr)}): {advice}") from None


def _explained(error: Exception, losses: int) -> str:
    kind = type(error).__name__
    hint = "the node's Ray logs say more"
    if kind == "OutOfMemoryError":
        hint = "its node ran out of memory: raise cpus_per_trial so that fewer run at once, or use smaller batches"
    return f"the job's worker was lost {losses} time{'s' if losses > 1 else ''} (Ray: {kind}); {hint}"


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

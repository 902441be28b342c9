"""Processes of one gloo process group that stay alive between tests: starting them is what costs."""

import multiprocessing
import os
import pickle
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

PATIENCE = 90  # seconds


class Processes:
    """``world`` processes, started at the first job and again after one that failed."""

    def __init__(self, world: int, directory: Path) -> None:
        self._world = world
        self._directory = directory
        self._started = 0
        self._processes: list[Any] = []
        self._connections: list[Connection] = []

    def run(self, job: Callable[..., Any], *args: Any) -> list[Any]:
        """Runs ``job(*args)``, a function of a module, in every process; returns what each returned, by rank."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send_bytes(pickle.dumps((job, args)))
        answers: dict[int, Any] = {}
        while len(answers) < self._world:
            ready = wait([c for rank, c in enumerate(self._connections) if rank not in answers], timeout=PATIENCE)
            if not ready:
                self.stop()
                raise AssertionError(f"no answer from {job.__name__} in {PATIENCE} seconds")
            for connection in ready:
                rank = self._connections.index(connection)
                try:
                    failed, answers[rank] = pickle.loads(connection.recv_bytes())
                except (EOFError, ConnectionError):
                    failed, answers[rank] = True, "the process died"
                if failed:  # the others may wait for it for ever
                    self.stop()
                    raise AssertionError(f"{job.__name__} failed on rank {rank}:\n{answers[rank]}")
        return [answers[rank] for rank in range(self._world)]

    def stop(self) -> None:
        """Ends the processes."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
            process.close()
        self._processes, self._connections = [], []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._started += 1
        rendezvous = str(self._directory / f"rendezvous-{self._started}")
        for rank in range(self._world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self._world, rendezvous, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)


def _serve(rank: int, world: int, rendezvous: str, connection: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch
    import torch.distributed as dist

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=PATIENCE),
    )
    while True:
        try:
            job, args = pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):  # the tests are over
            return
        try:
            answer = (False, job(*args))
        except BaseException:
            answer = (True, traceback.format_exc())
        connection.send_bytes(pickle.dumps(answer))

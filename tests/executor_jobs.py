"""The work of the executors' tests: workers import it by name."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

PATIENCE = 60  # seconds


def square(job: int) -> tuple[int, torch.Tensor]:
    return job * job, torch.arange(job)


def where(job: int) -> int:
    return os.getpid()


def threads(job: int) -> tuple[int, str | None, str | None]:
    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS"), os.environ.get("MKL_NUM_THREADS")


class OwnError(Exception):
    """Its arguments are not those that it is made of: it is pickled well, and cannot be unpickled."""

    def __init__(self, job: int, what: str) -> None:
        super().__init__(f"{what} of {job}")


def fail(job: int) -> int:
    if job == 1:
        raise ZeroDivisionError("of job 1")
    if job == 2:
        raise OwnError(job, "the fault")
    time.sleep(PATIENCE)
    return job


def not_sendable(job: int) -> object:
    return lambda: job


def die(job: int) -> int:
    """Job 2 is killed from outside, 5 leaves by itself, the others end well."""
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 5:
        sys.exit(7)
    return job * job


def touch_and_sleep(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(PATIENCE)


def first_ends(folder: str) -> None:
    """The first of the jobs ends; the others say who they are and do not."""
    try:
        Path(folder).with_suffix(".first").touch(exist_ok=False)
    except FileExistsError:
        touch_and_sleep(folder)


def meet(job: tuple[str, int, int]) -> int:
    """Waits until as many jobs as given run at once."""
    folder, number, together = job
    Path(folder, str(number)).touch()
    deadline = time.monotonic() + PATIENCE
    while len(list(Path(folder).iterdir())) < together:
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {number} ran alone")
        time.sleep(0.01)
    return number


def die_while_files_last(job: tuple[str, int]) -> int:
    """Takes one of the folder's files with it and is killed, until there are none left."""
    folder, number = job
    for file in Path(folder).iterdir():
        file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def wait_for_file(job: tuple[str, int]) -> int:
    """Leaves a file of its own, and waits until there is a file ``go``."""
    folder, number = job
    Path(folder, f"{number}-{os.getpid()}").touch()
    deadline = time.monotonic() + PATIENCE
    while not Path(folder, "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {number} waited in vain")
        time.sleep(0.01)
    return number * number

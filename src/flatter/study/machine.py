"""What a trial ran on and what it took: the environment, the state of the code, the peak of the memory."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from flatter.version import __version__

_PROCESS = Path("/proc/self")


def versions() -> dict[str, str]:
    """The versions that decide a trial's outcome: they are part of what it is identified by."""
    return {"flatter": __version__, "torch": torch.__version__, "python": platform.python_version()}


@functools.cache
def environment() -> Mapping[str, str]:
    """The rest that may be asked for later: platform, further packages, the GPU where there is one."""
    found = {"platform": platform.platform(), "processor": platform.machine(), "numpy": np.__version__}
    for package in ("numba", "optuna", "ray"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return found


def git_state() -> Mapping[str, str]:
    """Commit of the repository around the current folder, and whether it has changes; empty where there is none."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "changes": "yes" if _git("status", "--porcelain") else "no"} if commit else {}
    except (OSError, subprocess.SubprocessError):
        return {}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def start_memory_count() -> None:
    """Forgets the peaks so far, where the system lets it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        (_PROCESS / "clear_refs").write_text("5")
    except OSError:
        return


def peak_memory() -> dict[str, int]:
    """Bytes at the peak since :func:`start_memory_count`, by kind: ``"resident"`` of this process (Linux), ``"gpu"``.

    A process that has run trials before still holds what they left: the data, torch's caches.
    """
    peaks = {}
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        peaks["resident"] = 1024 * int(found[1])
    if torch.cuda.is_available():
        peaks["gpu"] = torch.cuda.max_memory_allocated()
    return peaks

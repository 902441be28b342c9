"""What a trial ran on and what it took: versions, environment, the state of the code, the peak of the memory."""

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

from flatwise.version import __version__

_PROCESS = Path("/proc/self")


def versions() -> dict[str, str]:
    """The versions that decide a trial's outcome: they are part of what it is identified by."""
    return {"flatwise": __version__, "torch": torch.__version__, "python": platform.python_version()}


@functools.cache
def environment() -> Mapping[str, str]:
    """The rest that may be asked for later: platform, processor, further packages, the GPU where there is one."""
    found = {
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "instructions": _instructions(),
        "numpy": np.__version__,
    }
    found = {name: value for name, value in found.items() if value}
    for package in ("numba", "optuna", "ray"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = str(torch.version.cuda)
    return found


# What decides the last bits of a result: kernels are chosen by these, and round differently.
_KIND = ("processor", "cpu", "cpu_capability", "instructions", "gpu", "cuda")
_VECTOR_INSTRUCTIONS = re.compile(r"sse|ssse|avx|fma|f16c|amx|neon|asimd|sve|sme(?!p)|bf16|i8mm|vsx")


def kind_of_machine(of_record: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """The part of an environment that results may depend on to the bit; ``None`` where it is not known."""
    there = of_record or {}
    return {name: there[name] for name in _KIND if name in there} if "cpu_capability" in there else None


def kind_in_words(kind: Mapping[str, str]) -> str:
    """Processor, torch's CPU capability, GPU."""
    parts = [kind.get("cpu") or kind.get("processor"), kind.get("cpu_capability"), kind.get("gpu")]
    return ", ".join(part for part in parts if part)


def _cpu_model() -> str:
    return _cpu_info("model name", "Model", "cpu model") or platform.processor()


def _instructions() -> str:
    """The vector instructions that the processor has, in alphabetical order; empty where the system does not tell."""
    return " ".join(sorted(each for each in _cpu_info("flags", "Features").split() if _VECTOR_INSTRUCTIONS.match(each)))


def _cpu_info(*names: str) -> str:
    """A field of the first processor in Linux's list; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return ""
    for name in names:
        if found := re.search(rf"^{name}\s*: *(.*)$", text, re.MULTILINE):
            return found[1].strip()
    return ""


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

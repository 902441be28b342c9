"""Everything that is to be known of flatwise on a GPU, in at most ten minutes and on one page.

`make gpu` runs `python benchmarks/gpu.py --out docs/gpu_results.md` on a machine with a CUDA device, Triton, pytest and
the packages of the `test` extra that these tests import (numba, hypothesis, lion-pytorch, schedulefree). Without a CUDA
device it says so and exits with status 2.

Each section runs in a process of its own, so that a crash of the device ends one section only: parity of the kernels
with the reference, the contract of every method and optimizer, mixed precision, graph capture, and the cost of a step
(`benchmarks/gpu_step.py`). The page names every test that failed or was skipped. Exit status: 0 if every section
passed, 1 if not; the page is written in both cases.

`--device cpu` runs the whole program through on the CPU with a few tests of each section, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import flatwise

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 600.0  # seconds, for all sections together
NEEDED = ("triton", "pytest", "numba", "hypothesis", "lion_pytorch", "schedulefree")


@dataclass(frozen=True)
class Section:
    """What one process runs.

    Attributes:
        name: the section's heading.
        claim: what it shows if it passes.
        tests: pytest's arguments; empty for the cost of a step.
        dry: pytest's arguments on the CPU.
    """

    name: str
    claim: str
    tests: tuple[str, ...]
    dry: tuple[str, ...]


SECTIONS = (
    Section(
        "Parity",
        "The Triton kernels draw the reference's factors and do torch's updates.",
        ("tests/noise/test_triton.py", "tests/optim/test_optim_triton.py"),
        ("tests/noise/test_triton.py", "-k", "test_chunks or kernels_cannot_run"),
    ),
    Section(
        "Contract",
        "Every method on every optimizer: a factor of 1 is the plain optimizer, a resumed run is the unbroken one, no "
        "scheduler sees the noise, no random generator is moved, removal leaves nothing.",
        ("tests/contract",),
        ("tests/contract/test_factor_one.py", "tests/contract/test_registry.py", "-k", "SGD or covered"),
    ),
    Section(
        "Mixed precision",
        "Under autocast (bfloat16, float16) and GradScaler, and with 16-bit parameters, a step is the plain one with "
        "the factors; a skipped step uses up no noise.",
        ("tests/attach/test_mixed_precision.py",),
        ("tests/attach/test_mixed_precision.py", "-k", "SGD and leap"),
    ),
    Section(
        "Graph capture",
        "A perturbed step refuses to be captured; stepping outside the graph trains as without one.",
        ("tests/attach/test_graph_capture.py",),
        ("tests/attach/test_graph_capture.py",),
    ),
    Section("Step cost", "Measured by `benchmarks/gpu_step.py`; see there for the method.", (), ()),
)


@dataclass(frozen=True)
class Outcome:
    """What became of a section.

    Attributes:
        section: the section.
        passed: whether its process ended well and ran at least one test.
        seconds: how long it took.
        summary: one line.
        problems: names of the tests that failed or were skipped, with the reason, or the end of the output.
        text: Markdown to print below; of the step cost, its tables.
    """

    section: Section
    passed: bool
    seconds: float
    summary: str
    problems: list[str]
    text: str = ""


def run(section: Section, device: str, seconds: float, rounds: int) -> Outcome:
    """Run a section in a process of its own, for at most so many seconds."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        if section.tests:
            chosen = section.tests if device == "cuda" else section.dry
            command = ["-m", "pytest", "-q", "-p", "no:xdist", f"--junitxml={report}", *chosen]
        else:
            size = "25 M" if device == "cuda" else "dry"
            command = ["benchmarks/gpu_step.py", "--device", device, "--sizes", size, "--rounds", str(rounds)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        paths = [str(ROOT / "src"), *filter(None, [environment.get("PYTHONPATH")])]
        environment |= {"FLATWISE_TEST_DEVICE": device, "PYTHONPATH": os.pathsep.join(paths)}
        try:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=max(seconds, 1.0),
                check=False,
            )
        except subprocess.TimeoutExpired:
            took = time.monotonic() - begun
            return Outcome(section, False, took, f"stopped after {took:.0f} s: out of time", [])
        took = time.monotonic() - begun
        end = (done.stdout + done.stderr).strip().splitlines()[-15:]
        if not section.tests:
            ended = done.returncode == 0
            text = done.stdout if ended else ""
            return Outcome(section, ended, took, "measured" if ended else "failed", [] if ended else end, text)
        return judge(section, done.returncode, report, took, end)


def judge(section: Section, status: int, report: Path, took: float, end: list[str]) -> Outcome:
    """Read pytest's report: what failed, and what was skipped."""
    if not report.exists():  # the process died
        return Outcome(section, False, took, f"ended with status {status}", end)
    cases = list(ElementTree.parse(report).iter("testcase"))
    named = {f"{case.get('classname')}::{case.get('name')}": case for case in cases}
    failed = [
        name for name, case in named.items() if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = {name: case.find("skipped") for name, case in named.items() if case.find("skipped") is not None}
    passed = len(cases) - len(failed) - len(skipped)
    problems = [f"failed: {name}" for name in failed]
    problems += [f"skipped: {name} ({reason.get('message')})" for name, reason in skipped.items()]
    summary = f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped"
    return Outcome(section, status == 0 and passed > 0, took, summary, problems)


def machine(device: str) -> list[str]:
    """What the page says about where it was made."""
    if device == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        what = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
        what += f"compute capability {properties.major}.{properties.minor}, CUDA {torch.version.cuda}"
    else:
        what = f"{platform.processor() or platform.machine()} (a dry run on the CPU: no word about a GPU)"
    triton = importlib.import_module("triton").__version__
    return [
        f"- device: {what}",
        f"- torch {torch.__version__}, Triton {triton}, Python {platform.python_version()}, "
        f"flatwise {flatwise.__version__}",
        f"- {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC, by `benchmarks/gpu.py`",
    ]


def page(outcomes: Sequence[Outcome], device: str) -> str:
    """Return the results as Markdown."""
    lines = [
        "# flatwise on a GPU: results",
        "",
        *machine(device),
        "",
        "| | result | tests | seconds |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {of.section.name} | {'passed' if of.passed else '**failed**'} | {of.summary} | {of.seconds:.0f} |"
        for of in outcomes
    ]
    for of in outcomes:
        lines += ["", f"## {of.section.name}", "", of.section.claim]
        if of.problems:
            lines += ["", "```", *of.problems, "```"]
        if of.text:
            lines += ["", of.text.strip()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all sections and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="where to write the page, Markdown")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for a dry run")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds in all; default {BUDGET:.0f}")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the step cost; default 15")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu: no CUDA device; nothing was run (torch {torch.__version__}). Run this on a machine with a GPU and a "
            "torch that is built for CUDA: make gpu GPU_PYTHON=/path/to/its/python",
            file=sys.stderr,
        )
        return 2
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        print(f"gpu: {sys.executable} lacks {', '.join(missing)}; nothing was run", file=sys.stderr)
        return 2
    deadline = time.monotonic() + given.budget
    outcomes = []
    for section in SECTIONS:
        outcomes.append(run(section, given.device, deadline - time.monotonic(), given.rounds))
        print(f"{section.name}: {outcomes[-1].summary}, {outcomes[-1].seconds:.0f} s", flush=True)
        given.out.write_text(page(outcomes, given.device), encoding="utf-8")
    return 0 if all(of.passed for of in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

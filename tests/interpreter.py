"""Runs a test file again in a process of its own where Triton interprets its kernels."""

import os
import re
import subprocess
import sys


def run_interpreted(file, at_least):
    """All its tests must pass, and at least so many must run."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", file, "-p", "no:xdist", "-p", "no:randomly"],
        env={**environment, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed, run.stdout
    assert int(passed[1]) >= at_least

"""The simulation of the error rates is a program in `benchmarks/`; its test imports it from there."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

"""A step's overhead stays small: `benchmarks/step_calls.py` counts the calls of our functions in one."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import step_calls

MOST = 40


@pytest.mark.parametrize("case", step_calls.CASES)
def test_a_step_makes_few_calls(case):
    calls = step_calls.calls_of(step_calls.CASES[case]())
    assert 10 < len(calls) <= MOST, "\n".join(f"{file}:{line} {name}" for file, line, name in calls)


def test_the_table_names_every_case(capsys):
    assert step_calls.main([]) == 0
    printed = capsys.readouterr().out
    assert all(case in printed for case in step_calls.CASES)

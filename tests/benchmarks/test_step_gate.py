"""The gate on the step's cost: its cases and bounds fit each other, and a step that became slower is named.

That the present steps keep their bounds is not tested here: `make step-cost` measures it.
"""

import sys
import time
from pathlib import Path

import pytest

import flatwise

pytest.importorskip("numba")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import step_gate

COARSE = step_gate.Case("mlp", "SGD", "perturb", "ralr")
QUICK = {"tries": 2, "rounds": 3, "slice_ms": 1.0}


def test_each_case_has_a_bound_with_a_margin():
    bounds = step_gate.read(step_gate.BOUNDS)
    assert list(bounds) == step_gate.CASES
    assert all(bound >= step_gate.MARGIN for bound in bounds.values())
    for case in step_gate.CASES:
        plain, noisy = step_gate.steps(case)
        assert plain.__self__.__class__.__module__.startswith("torch.")
        handle = getattr(noisy.__self__, "handle", None)
        assert (handle is not None) == (case.way == "flatwise.optim")


def test_a_step_that_became_slower_is_above_its_bound(monkeypatch, capsys):
    kept = step_gate.hold({COARSE: 1e6}, **QUICK)
    assert kept == []
    assert "ok" in capsys.readouterr().out

    perturb = flatwise.perturb

    def slow(optimizer, *args, **options):
        handle = perturb(optimizer, *args, **options)
        optimizer.register_step_post_hook(lambda *_: time.sleep(0.005))
        return handle

    monkeypatch.setattr(flatwise, "perturb", slow)
    (sentence,) = step_gate.hold({COARSE: 3.0}, **QUICK)
    assert "SGD, ralr by perturb, mlp" in sentence
    assert "bound 3.00" in sentence


def test_a_busy_moment_is_measured_again(monkeypatch):
    measured = iter([9.0, 1.2])
    monkeypatch.setattr(step_gate, "ratio", lambda *_: next(measured))
    assert step_gate.hold({COARSE: 2.0}, tries=4, rounds=1, slice_ms=1.0) == []
    assert next(measured, None) is None


def test_the_exit_status_and_the_file(monkeypatch, tmp_path, capsys):
    file = tmp_path / "bounds.csv"
    monkeypatch.setattr(step_gate, "ratio", lambda *_: 2.0)
    assert step_gate.main(["--record", "--bounds", str(file), "--tries", "2"]) == 0
    assert set(step_gate.read(file).values()) == {2.0 * step_gate.MARGIN}
    assert step_gate.main(["--bounds", str(file)]) == 0
    monkeypatch.setattr(step_gate, "ratio", lambda *_: 3.1)
    assert step_gate.main(["--bounds", str(file)]) == 1
    assert capsys.readouterr().err.count("3.10 times torch's plain step") == len(step_gate.CASES)
    file.write_text("\n".join(file.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="has other cases"):
        step_gate.main(["--bounds", str(file)])

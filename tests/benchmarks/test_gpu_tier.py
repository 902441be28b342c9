"""The program behind `make gpu`: run through on the CPU; what it says of failures, and without a GPU."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path, capsys):
    page = tmp_path / "results.md"
    assert gpu.main(["--out", str(page)]) == 2
    assert "gpu: no CUDA device; nothing was run" in capsys.readouterr().err
    assert not page.exists()


def test_it_runs_through_on_the_cpu(tmp_path, monkeypatch, capsys):
    """Two of its sections, one of either kind; `make gpu-dry-run`, which CI calls, runs all."""
    monkeypatch.setattr(gpu, "SECTIONS", [of for of in gpu.SECTIONS if of.name in ("Graph capture", "Step cost")])
    page = tmp_path / "results.md"
    status = gpu.main(["--out", str(page), "--device", "cpu", "--rounds", "1"])
    text = page.read_text()
    assert status == 0, text
    for section in gpu.SECTIONS:
        assert f"| {section.name} | passed |" in text
        assert section.claim in text
    assert "a dry run on the CPU: no word about a GPU" in text
    assert "| flatwise.optim LEAP |" in text
    assert "skipped: " in text  # what only a GPU can run is named
    assert "Step cost: measured" in capsys.readouterr().out


def section(tmp_path, code):
    file = tmp_path / "test_made_up.py"
    file.write_text(code)
    arguments = (str(file), "-c", str(tmp_path / "none.ini"))
    (tmp_path / "none.ini").write_text("[pytest]\n")
    return gpu.Section("Made up", "A claim.", arguments, arguments)


@pytest.mark.parametrize(
    ("code", "seconds", "summary", "problem"),
    [
        ("def test_a(): assert 0\ndef test_b(): pass\n", 60, "1 passed, 1 failed, 0 skipped", "failed: .*test_a"),
        ("import os\ndef test_a(): os._exit(3)\n", 60, "ended with status 3", None),
        ("import time\ndef test_a(): time.sleep(60)\n", 1, "out of time", None),
        ("", 60, "0 passed, 0 failed, 0 skipped", None),
    ],
)
def test_a_section_that_fails_says_how(tmp_path, code, seconds, summary, problem):
    outcome = gpu.run(section(tmp_path, code), "cpu", seconds, rounds=1)
    assert not outcome.passed
    assert summary in outcome.summary
    text = gpu.page([outcome], "cpu")
    assert f"| Made up | **failed** | {outcome.summary} |" in text
    if problem:
        assert any(line.startswith("failed: ") and "test_a" in line for line in outcome.problems)


def test_a_skipped_test_is_named(tmp_path):
    code = "import pytest\ndef test_a(): pass\n@pytest.mark.skip(reason='no such device')\ndef test_b(): pass\n"
    outcome = gpu.run(section(tmp_path, code), "cpu", 60, rounds=1)
    assert outcome.passed
    assert outcome.problems == ["skipped: test_made_up::test_b (no such device)"]

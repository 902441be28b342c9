"""A study that is killed again and again ends with the records of one that was not."""

import json
import subprocess
import sys
from pathlib import Path

from flatwise.study.store import Store
from studies import TUNED, outcome

KILLS = 20


def records(path):
    with Store(path, read_only=True) as store:
        return sorted(json.dumps(outcome(record)) for record in store.records())


def test_twenty_kills_change_nothing(tmp_path):
    study_file = tmp_path / "slow.toml"
    study_file.write_text(TUNED.replace("QUICK", "SLOW").replace("seeds = 6", "seeds = 24"))
    script = str(Path(__file__).parents[1] / "kill_again_and_again.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", script, study_file, tmp_path, str(KILLS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    unbroken, broken = records(tmp_path / "unbroken.sqlite"), records(tmp_path / "broken.sqlite")
    assert counts == sorted(counts)
    assert len(counts) == KILLS
    assert len(set(counts)) > KILLS // 2, counts  # the kills fell into the work
    assert counts[-1] < len(unbroken), counts  # and before its end
    assert broken == unbroken

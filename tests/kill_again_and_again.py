"""Runs a study unbroken, then another time with its process killed again and again: python ... STUDY FOLDER KILLS.

The processes are forks of this one, which has imported and compiled all: a kill falls into the work.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from flatwise.study.engine import drive
from flatwise.study.executors import LocalExecutor
from flatwise.study.store import Store
from flatwise.study.study_file import read_study
from flatwise.study.work import Work
from studies import Quiet


def begin(study_file, store):
    process = os.fork()
    if process == 0:
        with Store(store) as opened, LocalExecutor() as executor:
            drive(read_study(study_file), opened, executor, Work(git={}), Quiet())
        os._exit(0)
    return process


def end(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main(study_file, folder, kills):
    torch.set_num_threads(1)
    drive(read_study(study_file), Store(None), LocalExecutor(), Work(git={}), Quiet())  # imports and compiles
    clock = time.monotonic()
    assert end(begin(study_file, folder / "unbroken.sqlite")) == 0
    longest = 1.6 * (time.monotonic() - clock) / kills  # so that the kills spread over four fifths of the study
    when = random.Random(0)
    counts = []
    for _ in range(kills):
        process = begin(study_file, folder / "broken.sqlite")
        time.sleep(when.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        assert end(process) == -signal.SIGKILL
        with Store(folder / "broken.sqlite") as store:  # opens after every kill
            counts.append(sum(1 for _ in store.records()))
    assert end(begin(study_file, folder / "broken.sqlite")) == 0
    print(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

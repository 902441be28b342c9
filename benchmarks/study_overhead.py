"""What a study costs beside its trials: time per trial and the driver's memory, with trials that do next to nothing.

    python benchmarks/study_overhead.py [--trials 1000] [--records 10000]

Every trial is planned, identified, run in this process, recorded with its environment, and committed to a store on
disk. A trial takes one optimizer step; the same steps without a study are timed in turns with it. The memory is this
process's resident size at every tenth of the records.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from flatwise.study.engine import drive
from flatwise.study.executors import LocalExecutor
from flatwise.study.store import Store
from flatwise.study.study_file import parse_study
from flatwise.study.task import Settings, Task
from flatwise.study.work import Callback, Work


@dataclass(frozen=True)
class Nothing:
    """Data of no size."""

    def without_test(self):
        """The same."""
        return self


def train(trial, settings, data):
    """One step of a weight."""
    weight = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=settings.learning_rate)
    scheduler = trial.attach(optimizer, steps_per_epoch=1, epochs=1)
    step(weight, optimizer)
    scheduler.step()
    trial.report(val_error=float(weight.detach().sum()), test_error=float(weight.detach().sum()))


def step(weight, optimizer):
    """The work."""
    weight.grad = torch.ones(4)
    optimizer.step()


TRIVIAL = Task(
    "trivial", "one step", Settings(epochs=1, batch_size=1, learning_rate=0.1), lambda data_dir: Nothing(), train
)
STUDY = """
task = "study_overhead:TRIVIAL"
arms = [{{ method = "vanilla" }}, {{ method = "leap" }}]
final = {{ seeds = {seeds}, controls = false }}
"""


class Meter(Callback):
    """A callback that reads the memory now and then."""

    def __init__(self, every):
        self.every, self.count, self.sizes = every, 0, []

    def on_trial_end(self, spec, record):
        """Reads the resident size."""
        self.count += 1
        if self.count % self.every == 0:
            self.sizes.append(resident())


def resident():
    """MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def run(trials, meter):
    """Seconds of a study of so many trials, from an empty store on disk."""
    study = parse_study(STUDY.format(seeds=trials // 2), name="trivial", source="benchmark")
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "trials.sqlite") as store:
        start = time.perf_counter()
        drive(study, store, LocalExecutor(), Work(git={}), meter)
        return time.perf_counter() - start


def bare(trials):
    """Seconds of the steps alone."""
    start = time.perf_counter()
    for _ in range(trials):
        weight = torch.zeros(4, requires_grad=True)
        step(weight, torch.optim.SGD([weight], lr=0.1))
    return time.perf_counter() - start


def main():
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--records", type=int, default=10_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run(20, Meter(10))  # imports and compiles
    times = [(run(options.trials, Meter(options.trials)), bare(options.trials)) for _ in range(3)]
    print(f"{options.trials} trials: {statistics.median(own for own, _ in times):.1f} s with a study", end="")
    print(f", {statistics.median(own for _, own in times):.2f} s the steps alone (medians of 3 turns)")
    meter = Meter(options.records // 10)
    run(options.records, meter)
    print(f"resident MiB at every tenth of {options.records} records: {', '.join(f'{s:.0f}' for s in meter.sizes)}")


if __name__ == "__main__":
    main()

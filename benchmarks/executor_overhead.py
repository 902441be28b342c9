"""What an executor costs: trivial trials per second in this process, in worker processes, and on Ray.

Run with `python benchmarks/executor_overhead.py`; Ray needs the `cluster` extra and is started on this machine. A
trial's work is a multiplication, so what is measured is the executor alone. The workers are warm: their start is
measured by itself.
"""

from __future__ import annotations

import argparse
import statistics
import time

from flatwise.study.executors import Executor, LocalExecutor, ProcessExecutor
from flatwise.study.ray_executor import RayExecutor


def work(job: int) -> int:
    """Hardly anything."""
    return job * job


def measure(executor: Executor, trials: int, rounds: int) -> tuple[float, float]:
    """Seconds from nothing to the first result, and the median of trials per second over the rounds."""
    start = time.perf_counter()
    with executor:
        list(executor.run(work, [0]))
        first = time.perf_counter() - start
        list(executor.run(work, range(2 * executor.slots)))  # every worker has started
        rates = []
        for _ in range(rounds):
            start = time.perf_counter()
            results = dict(executor.run(work, range(trials)))
            rates.append(trials / (time.perf_counter() - start))
            assert results == {job: job * job for job in range(trials)}
    return first, statistics.median(rates)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--ray-address", default=None, help="default: a Ray of its own on this machine")
    given = parser.parse_args()
    executors: dict[str, Executor] = {
        "in process": LocalExecutor(),
        f"{given.workers} processes": ProcessExecutor(given.workers, threads_per_worker=1),
        "Ray": RayExecutor(given.ray_address),
    }
    print(f"{'executor':<16}{'first result':>14}{'trials per second':>20}")
    for name, executor in executors.items():
        first, rate = measure(executor, given.trials, given.rounds)
        print(f"{name:<16}{first:>12.1f} s{rate:>20,.0f}")


if __name__ == "__main__":
    main()

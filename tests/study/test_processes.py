"""In this process and in worker processes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import executor_jobs as jobs
from flatwise.study.executors import ExecutorError, LocalExecutor, Lost, ProcessExecutor, WorkerTraceback, visible_cores


@pytest.fixture(scope="module")
def two_workers():
    with ProcessExecutor(2, threads_per_worker=1) as executor:
        yield executor


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


@pytest.mark.parametrize("kind", ["local", "processes"])
def test_results_are_those_of_a_loop(kind, two_workers):
    executor = LocalExecutor() if kind == "local" else two_workers
    results = dict(executor.run(jobs.square, range(20)))
    assert sorted(results) == list(range(20))
    for job, (square, counted) in results.items():
        assert square == job * job
        assert torch.equal(counted, torch.arange(job))


@pytest.mark.parametrize("kind", ["local", "processes"])
def test_jobs_are_taken_when_there_is_room_and_after_the_results_so_far(kind, two_workers):
    executor = LocalExecutor() if kind == "local" else two_workers
    taken, ended = [], []

    def endless():
        for job in itertools.count():
            assert len(taken) - len(ended) < executor.slots  # so a choice of the next job knows all results
            taken.append(job)
            yield job

    results = executor.run(jobs.square, endless())
    for job, _ in itertools.islice(results, 10):
        ended.append(job)
    results.close()
    assert len(taken) <= 10 + executor.slots


def test_workers_start_when_there_are_jobs_and_stay():
    with ProcessExecutor(4, threads_per_worker=1) as executor:
        before = set(psutil.Process().children(recursive=True))
        assert list(executor.run(jobs.where, [])) == []
        assert set(psutil.Process().children(recursive=True)) == before
        [(_, first)] = executor.run(jobs.where, [0])
        [(_, second)] = executor.run(jobs.where, [1])
        assert first == second != os.getpid()
    assert gone(first)


def test_threads_of_a_worker(two_workers):
    before = dict(os.environ)
    with ProcessExecutor(1, threads_per_worker=3) as executor:
        assert list(executor.run(jobs.threads, [0])) == [(0, (3, "3", "3"))]
    assert dict(os.environ) == before
    assert ProcessExecutor(1).threads_per_worker == visible_cores()
    assert ProcessExecutor(1000).threads_per_worker == 1


def test_a_killed_worker_costs_its_own_job(two_workers):
    results = dict(two_workers.run(jobs.die, range(10)))
    lost = {job: result for job, result in results.items() if isinstance(result, Lost)}
    assert set(lost) == {2, 5}
    assert "signal 9 (SIGKILL)" in lost[2].message
    assert "memory" in lost[2].message
    assert "exit code 7" in lost[5].message
    assert {job: results[job] for job in results if job not in lost} == {
        job: job * job for job in range(10) if job not in (2, 5)
    }


def test_a_worker_that_was_killed_while_idle_costs_nothing(two_workers):
    list(two_workers.run(jobs.square, range(4)))
    for worker in two_workers._workers:
        worker.kill()
    wait_until(lambda: all(worker.ended for worker in two_workers._workers))
    assert sorted(job for job, result in two_workers.run(jobs.where, range(4)) if isinstance(result, int)) == [
        *range(4)
    ]


@pytest.mark.parametrize(
    ("job", "expected", "message"),
    [(1, ZeroDivisionError, "^of job 1$"), (2, ExecutorError, "^OwnError: the fault of 2$")],
)
def test_what_work_raises_is_raised_here(job, expected, message, two_workers):
    start = time.monotonic()
    with pytest.raises(expected, match=message) as raised:
        list(two_workers.run(jobs.fail, [3, job]))
    assert time.monotonic() - start < jobs.PATIENCE  # the other job was stopped
    assert isinstance(raised.value.__cause__, WorkerTraceback)
    assert "executor_jobs.py" in str(raised.value.__cause__)
    assert dict(two_workers.run(jobs.where, [0]))  # and the executor is as good as new


def test_what_cannot_be_sent(two_workers):
    with pytest.raises(ExecutorError, match="must be a function of a module and plain data"):
        list(two_workers.run(lambda job: job, [0]))
    with pytest.raises(Exception, match="lambda"):
        list(two_workers.run(jobs.not_sendable, [0]))


def test_closed_early(two_workers, tmp_path, tmp_path_factory):
    meeting = str(tmp_path_factory.mktemp("meeting"))
    list(two_workers.run(jobs.meet, [(meeting, number, 2) for number in range(2)]))  # both have started
    results = two_workers.run(jobs.first_ends, [str(tmp_path)] * 2)
    first = next(results)
    assert first[1] is None
    wait_until(lambda: len(list(tmp_path.iterdir())) == 1)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 5
    assert all(gone(int(file.name)) for file in tmp_path.iterdir())


def test_one_run_at_a_time_and_only_within_the_block(two_workers):
    results = two_workers.run(jobs.square, range(3))
    next(results)
    with pytest.raises(ExecutorError, match="goes on already"):
        next(two_workers.run(jobs.square, range(3)))
    results.close()
    with pytest.raises(ExecutorError, match="with block"):
        next(ProcessExecutor(1).run(jobs.square, range(3)))


def test_wrong_numbers():
    with pytest.raises(ExecutorError, match="workers must be a whole number, 1 or more; got 0"):
        ProcessExecutor(0)
    with pytest.raises(ExecutorError, match=r"threads_per_worker must be a whole number, 1 or more; got 0\.5"):
        ProcessExecutor(1, threads_per_worker=0.5)


DRIVER = """
import sys
import executor_jobs
from flatwise.study.executors import ProcessExecutor

if __name__ == "__main__":
    with ProcessExecutor(2, threads_per_worker=1) as executor:
        list(executor.run(executor_jobs.touch_and_sleep, [sys.argv[1]] * 2))
"""


def start_driver(folder: Path, code: str) -> subprocess.Popen:
    script = folder / "driver.py"
    script.write_text(code)
    pids = folder / "pids"
    pids.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parent, *sys.path]))}
    return subprocess.Popen(
        [sys.executable, str(script), str(pids)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_the_driver(number, tmp_path):
    with start_driver(tmp_path, DRIVER) as driver:
        wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == 2, jobs.PATIENCE)
        descendants = psutil.Process(driver.pid).children(recursive=True)
        assert len(descendants) >= 2
        if number == signal.SIGINT:  # the terminal sends it to the workers too; here they get it first
            for file in (tmp_path / "pids").iterdir():
                os.kill(int(file.name), number)
            time.sleep(0.5)
            assert not any(gone(process.pid) for process in descendants)
            os.killpg(driver.pid, number)
        else:
            os.kill(driver.pid, number)
        wait_until(lambda: all(gone(process.pid) for process in descendants), 10)
        errors = driver.stderr.read()
        driver.wait(10)
    if number == signal.SIGINT:
        assert errors.count("KeyboardInterrupt") == 1, errors  # the driver's alone


def test_a_program_without_a_guard_is_told(tmp_path):
    with start_driver(tmp_path, DRIVER.replace('if __name__ == "__main__":', "if True:")) as driver:
        errors = driver.stderr.read()
        assert driver.wait(jobs.PATIENCE) == 1
    assert "ExecutorError: a worker process ended itself with exit code 1 while it started" in errors
    assert "if __name__ == '__main__':" in errors

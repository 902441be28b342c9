"""On a real Ray cluster: a head and further nodes, all on this machine, started once for all tests of this file."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

import executor_jobs as jobs
from flatwise.study.engine import drive
from flatwise.study.executors import ExecutorError, LocalExecutor, Lost, WorkerTraceback
from flatwise.study.ray_executor import RayExecutor, _check_address
from flatwise.study.store import Store
from flatwise.study.work import Work
from studies import TUNED, Quiet, outcome, study

HERE = Path(__file__).parent, Path(__file__).parents[1]  # where nodes find the tests' own modules


@pytest.fixture(scope="module")
def cluster():
    """A head with one CPU, and a node with one CPU and a GPU that is not there."""
    environment = pytest.MonkeyPatch()
    environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
    environment.setenv("RAY_AUTH_MODE", "disabled")  # else Ray keeps a token in the home directory
    # What the nodes have installed: the work is imported there.
    environment.setenv("PYTHONPATH", os.pathsep.join(map(str, [*HERE, *sys.path])))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, **SMALL})
    cluster.add_node(num_cpus=1, num_gpus=1, **SMALL)
    yield cluster
    cluster.shutdown()
    environment.undo()


SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def executor(cluster):
    with RayExecutor(cluster.address) as executor:
        yield executor


def wait_until(condition, seconds: float = jobs.PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def test_results_are_those_of_a_loop(executor):
    assert executor.slots == 2
    results = dict(executor.run(jobs.square, range(20)))
    assert sorted(results) == list(range(20))
    for job, (square, counted) in results.items():
        assert square == job * job
        assert torch.equal(counted, torch.arange(job))


def test_few_jobs_are_taken_ahead(executor):
    taken = []
    results = executor.run(jobs.square, (taken.append(job) or job for job in itertools.count()))
    ended = [job for job, _ in itertools.islice(results, 10)]
    results.close()
    assert len(ended) == 10
    assert len(taken) <= 10 + executor.slots + 2


def test_fractions_of_a_gpu_run_at_once(executor, tmp_path):
    with RayExecutor(cpus_per_trial=0.5, gpus_per_trial=0.5) as halves:  # by the connection that is there
        assert halves.slots == 2
        together = [(str(tmp_path), number, 2) for number in range(2)]
        assert sorted(result for _, result in halves.run(jobs.meet, together)) == [0, 1]
    assert ray.is_initialized()  # which is not its own


def test_work_that_no_module_has(executor):
    summand = 3
    assert dict(executor.run(lambda job: job + summand, range(4))) == {0: 3, 1: 4, 2: 5, 3: 6}


def test_threads_of_a_job(executor):
    with RayExecutor(cpus_per_trial=0.5) as half:
        [(_, (threads, _, _))] = half.run(jobs.threads, [0])
    assert threads == 1


def test_what_work_raises_is_raised_here(executor):
    with pytest.raises(ZeroDivisionError, match="of job 1") as raised:
        list(executor.run(jobs.fail, [3, 1]))
    assert isinstance(raised.value.__cause__, WorkerTraceback)
    assert "executor_jobs.py" in str(raised.value.__cause__)
    assert dict(executor.run(jobs.where, [0]))  # the other job was stopped: its CPU is free


def test_a_job_is_run_again_until_there_are_no_retries_left(executor, tmp_path):
    once, twice = (str(tmp_path / str(deaths)) for deaths in (1, 2))
    for folder, deaths in ((once, 1), (twice, 2)):
        Path(folder).mkdir()
        for number in range(deaths):
            Path(folder, str(number)).touch()
    with RayExecutor(retries=1) as executor:
        results = dict(executor.run(jobs.die_while_files_last, [(once, 5), (twice, 6)]))
    assert results[once, 5] == 25
    assert isinstance(results[twice, 6], Lost)
    assert "lost 2 times (Ray: WorkerCrashedError)" in results[twice, 6].message


DRIVER = """
import sys
import executor_jobs
from flatwise.study.ray_executor import RayExecutor

with RayExecutor(sys.argv[1]) as executor:
    list(executor.run(executor_jobs.touch_and_sleep, [sys.argv[2]] * 2))
"""


def test_no_job_outlives_the_driver(cluster, tmp_path):
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, cluster.address, str(tmp_path)])
    try:
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_until(lambda: not any(psutil.pid_exists(int(file.name)) for file in tmp_path.iterdir()))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpus_per_trial": 1000}, r"one trial takes 1000 CPUs \(cpus_per_trial\), and no node"),
        ({"gpus_per_trial": 2}, r"2 GPUs \(gpus_per_trial\), .* 1 CPUs and 0 GPUs; 1 CPUs and 1 GPUs: ask"),
    ],
)
def test_resources_that_no_node_has(resources, message, executor):
    with pytest.raises(ExecutorError, match=message), RayExecutor(**resources):
        raise AssertionError("it was entered")


def test_no_cluster_at_the_address(monkeypatch):
    monkeypatch.setattr("flatwise.study.ray_executor._ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as listens:  # and says nothing
        address = f"127.0.0.1:{listens.getsockname()[1]}"
        check_refused(address, "did not answer as a Ray cluster in 3 seconds")
    check_refused(address, "Connection refused")
    check_refused("ray://head:10001", "is host:port")


def check_refused(address: str, message: str) -> None:
    start = time.monotonic()
    with pytest.raises(ExecutorError, match=message) as raised:
        _check_address(address)
    assert time.monotonic() - start < 10
    assert address in str(raised.value)
    assert "\n" not in str(raised.value)


def test_another_cluster_than_the_one_that_is_connected(executor):
    with pytest.raises(ExecutorError, match="is connected to Ray at"), RayExecutor("127.0.0.1:1"):
        raise AssertionError("it was entered")


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpus_per_trial": 0},
        {"cpus_per_trial": float("nan")},
        {"gpus_per_trial": -1},
        {"gpus_per_trial": 1.5},
        {"max_in_flight": 0},
        {"retries": -1},
    ],
)
def test_wrong_numbers(wrong):
    [name] = wrong
    with pytest.raises(ExecutorError, match=f"{name} must be"):
        RayExecutor(**wrong)


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'flatwise\[cluster\]'"), RayExecutor():
        raise AssertionError("it was entered")


def test_only_while_in_the_block(executor):
    with pytest.raises(ExecutorError, match="with block"):
        next(RayExecutor().run(jobs.square, [0]))
    results = executor.run(jobs.square, range(4))
    next(results)
    with pytest.raises(ExecutorError, match="goes on already"):
        next(executor.run(jobs.square, range(4)))
    results.close()


def raylet(node) -> int:
    [raylet] = node.all_processes["raylet"]
    return raylet.process.pid


def test_a_node_dies_in_the_middle(cluster, executor, tmp_path):
    """Its jobs are run on the nodes that are left, and every job has its right result.

    The last of the tests: it takes a while until the cluster no longer counts on the node.
    """
    node = cluster.add_node(num_cpus=1, **SMALL)
    wait_until(lambda: executor.slots == 3)
    results = executor.run(jobs.wait_for_file, [(str(tmp_path), number) for number in range(8)])

    def kill_node() -> str:
        """Kills the node, lets all go on once its job's process is gone, and says which job that was."""
        try:
            wait_until(lambda: len(list(tmp_path.iterdir())) == 3)  # each node has a job
            workers = {child.pid for child in psutil.Process(raylet(node)).children()}
            [(number, pid)] = [parts for f in tmp_path.iterdir() if int((parts := f.name.split("-"))[1]) in workers]
            cluster.remove_node(node, allow_graceful=False)
            wait_until(lambda: not psutil.pid_exists(int(pid)))
            return number
        finally:
            (tmp_path / "go").touch()

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_node)
        ended = {job[1]: result for job, result in results}
        number = killing.result()
    assert ended == {number: number * number for number in range(8)}
    assert len(list(tmp_path.glob(f"{number}-*"))) == 2  # it was begun twice


class KillNode(Quiet):
    """Kills a node in the middle of the final runs."""

    def __init__(self, kill):
        super().__init__()
        self._kill = kill

    def on_trial_end(self, spec, record):
        super().on_trial_end(spec, record)
        if len(self.records) == 30:
            self._kill()


def test_a_study_loses_no_trial_with_a_node(cluster, executor):
    """Nor does it repeat one: its records are those of a study in one process, bit for bit."""
    slow = study(TUNED.replace("QUICK", "SLOW"))
    node = cluster.add_node(num_cpus=1, **SMALL)
    wait_until(lambda: executor.slots == 3)
    with Store(None) as here, Store(None) as there:
        whole = Quiet()
        drive(slow, here, LocalExecutor(), Work(git={}), whole)
        callback = KillNode(lambda: cluster.remove_node(node, allow_graceful=False))
        drive(slow, there, executor, Work(git={}), callback)
        assert len(callback.records) == len(whole.records) == 48
        assert sorted(map(str, map(outcome, there.records()))) == sorted(map(str, map(outcome, here.records())))

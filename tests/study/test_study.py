"""A study from its first trial to its results: what is tuned, what is judged, what is run again."""

import json
import math
from dataclasses import replace

import pytest

from flatwise.study.arms import Arm
from flatwise.study.engine import drive
from flatwise.study.executors import LocalExecutor, Lost
from flatwise.study.registry import get_task
from flatwise.study.results import study_results, study_status
from flatwise.study.spec import StudyError
from flatwise.study.store import Store, StoreError
from flatwise.study.subjects import TrialSpec, subject_of
from flatwise.study.work import Callback, Work, run_trial
from studies import TUNED, Quiet, outcome, study


def run(read, store, callback=None, executor=None, **options):
    return drive(read, store, executor or LocalExecutor(), Work(git={}), callback or Quiet(), **options)


@pytest.fixture(scope="module")
def finished():
    store, callback = Store(None), Quiet()
    yield study(), store, callback, run(study(), store, callback)
    store.close()


def test_the_rounds_are_baseline_arms_and_final_runs(finished):
    _, _, callback, (cell,) = finished
    # 2 configurations × 2 seeds; 3 × 3 × 2, of which vanilla's 0.5 and 1 times 0.2 were tried before; 5 arms × 6 seeds.
    assert callback.rounds[0] == (4, 4)
    assert callback.rounds[1] == (14, 18)
    assert callback.rounds[2] == (6 * len(cell.comparison.arms),) * 2
    assert cell.comparison.seeds == (0, 1, 2, 3, 4, 5)


def test_the_choice_is_the_best_mean_on_validation_data(finished):
    _, _, callback, (cell,) = finished
    by_trial = {}
    for record in callback.records:
        if record.spec["metric"] == "val_error":
            at = record.arm, record.spec["settings"]["learning_rate"], str(record.spec["arm"])
            by_trial.setdefault(at, []).append(record.epochs[-1]["val_error"])
    assert all(len(values) == 2 for values in by_trial.values())
    baseline = cell.baseline
    means = [sum(by_trial["vanilla", rate, str(vanilla_dict())]) / 2 for rate in (0.1, 0.2)]
    assert baseline.values == tuple(means)
    assert baseline.choice == {"learning_rate": (0.1, 0.2)[means.index(min(means))]}
    start = baseline.choice["learning_rate"]
    assert [t.arm for t in cell.tuned] == ["vanilla", "leap", "lr_dropout"]
    assert [c["learning_rate"] for c in cell.tuned[0].configurations] == [start * 0.5, start, start * 2]
    assert cell.tuned[0].values[1] == min(means)  # the baseline's choice, not run twice
    for tuned in cell.tuned:
        assert tuned.values[tuned.chosen] == min(tuned.values)


def vanilla_dict():
    return {"perturbations": [], "peak": None}


def test_tuning_never_sees_the_test_set(finished):
    _, _, callback, _ = finished
    for record in callback.records:
        tuning = record.spec["metric"] == "val_error"
        assert all(("test_error" in epoch) is not tuning for epoch in record.epochs)


def test_final_runs_have_the_choice_and_controls_have_their_methods(finished):
    _, _, callback, (cell,) = finished
    choice = {tuned.arm: tuned.choice for tuned in cell.tuned}
    start = cell.baseline.choice["learning_rate"]
    rates, factors = {}, {}
    for record in callback.records:
        if record.spec["metric"] == "test_error":
            rates.setdefault(record.arm, set()).add(record.spec["settings"]["learning_rate"])
            factors[record.arm] = record.spec["arm"]["perturbations"]
    assert rates["vanilla"] == {choice["vanilla"]["learning_rate"]}
    assert rates["leap"] == rates["lr_dropout"] == rates["lr_dropout (control)"] == {start}
    arms = {arm.name: arm for arm in cell.comparison.arms}
    # Vanilla was tuned to another rate, so it is no control of LEAP: the same settings without noise are.
    assert choice["vanilla"]["learning_rate"] != start
    assert arms["leap"].control == "leap (control)"
    assert factors["leap (control)"] == []
    assert rates["leap (control)"] == {start}
    assert str(choice["lr_dropout"]["keep"]) in str(factors["lr_dropout (control)"])


def test_a_finished_study_runs_nothing_again(finished):
    read, store, _, results = finished
    callback = Quiet()
    assert [cell.comparison.arms for cell in run(read, store, callback)] == [cell.comparison.arms for cell in results]
    assert callback.records == []
    assert all(missing == 0 for missing, _ in callback.rounds)
    assert [cell.comparison.arms for cell in study_results(read, store)] == [cell.comparison.arms for cell in results]
    (status,) = study_status(read, store)
    assert (status.stage, status.ended, status.failed) == ("done", status.planned, 0)


def test_more_seeds_run_only_what_is_new(finished):
    _, store, _, (cell,) = finished
    copied = Store(None)
    for record in store.records():
        copied.put(record)
    callback = Quiet()
    run(study(TUNED.replace("seeds = 6", "seeds = 7")), copied, callback)
    assert {record.seed for record in callback.records} == {6}
    assert len(callback.records) == len(cell.comparison.arms)
    copied.close()


def test_the_state_in_the_middle_is_told(finished):
    read, _, callback, _ = finished
    with Store(None) as store:
        (status,) = study_status(read, store)
        assert (status.stage, status.ended, status.planned) == ("tuning", 0, 4)
        stages = []
        for record in callback.records:
            store.put(record)
            (status,) = study_status(read, store)
            assert status.ended == sum(1 for _ in store.records())
            stages.append(status.stage)
        assert stages == sorted(stages, key=["tuning", "final runs", "done"].index)
        assert stages.count("done") == 1
        assert set(stages) == {"tuning", "final runs", "done"}


def test_a_report_in_the_middle_has_the_seeds_that_all_arms_have(finished):
    read, _, callback, (cell,) = finished
    arms = len(cell.comparison.arms)
    with Store(None) as store:
        for record in callback.records[: -2 * arms - 1]:
            store.put(record)
        (partly,) = study_results(read, store)
        assert partly.comparison.seeds == (0, 1, 2)
        assert partly.tuned == cell.tuned
    with Store(None) as store:
        for record in callback.records[:10]:
            store.put(record)
        assert study_results(read, store)[0].comparison is None


FAILING = TUNED.replace("QUICK", "FAILING")


def test_failures_are_outcomes_with_their_message():
    read = study(
        FAILING.replace("baseline.learning_rate = [0.1, 0.2]", "baseline.learning_rate = [0.3, 0.4, 0.5, 0.2]")
    )
    with Store(None) as store:
        callback = Quiet()
        (cell,) = run(read, store, callback)
        assert cell.baseline.choice == {"learning_rate": 0.2}
        assert [math.isnan(value) for value in cell.baseline.values] == [True, True, True, False]
        errors = {r.spec["settings"]["learning_rate"]: r.error for r in callback.records if r.status == "failed"}
        assert errors[0.3] == "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB"
        assert errors[0.4] == "final val_error is nan"
        assert errors[0.5] == "MemoryError: cannot allocate"
        (status,) = study_status(read, store)
        assert status.failed == 6
        again = Quiet()
        run(read, store, again, retry_failed=True)
        assert len(again.records) == 6


def test_where_all_configurations_fail_the_arm_fails():
    read = study(
        FAILING.replace("baseline.learning_rate = [0.1, 0.2]", "baseline.learning_rate = [0.1]").replace(
            'method = "leap"', 'method = "leap"\nsettings.learning_rate = 0.3'
        )
    )
    with Store(None) as store:
        (cell,) = run(read, store)
    arms = {arm.name: arm for arm in cell.comparison.arms}
    assert arms["leap"].vs_vanilla.verdict == "failed"
    assert arms["leap"].failed == 6
    assert arms["vanilla"].failed == 0


class Losing(LocalExecutor):
    """Loses every trial at the rate 0.2."""

    def run(self, work, jobs):
        for job in jobs:
            yield job, Lost("the worker went away") if job.settings["learning_rate"] == 0.2 else work(job)


def test_a_lost_worker_is_an_outcome():
    with Store(None) as store:
        callback = Quiet()
        (cell,) = run(study(), store, callback, Losing())
        assert cell.baseline.choice == {"learning_rate": 0.1}
        lost = [record for record in callback.records if record.status == "failed"]
        assert {record.error for record in lost} == {"the worker went away"}


def test_a_record_says_what_ran(finished):
    _, store, callback, _ = finished
    record = callback.records[0]
    assert record.spec["task"] == "quick_tasks:QUICK"
    assert record.spec["settings"]["epochs"] == 3
    assert "quick" in record.spec["code"] or record.spec["code"].startswith("train")
    assert record.seconds > 0
    assert record.memory["resident"] > 10**7
    assert record.environment["platform"]
    assert set(record.versions) == {"flatwise", "torch", "python"}
    assert store.get(record.key) == record


def test_a_trial_is_what_it_does_not_what_it_is_called(finished):
    _, store, _, _ = finished
    renamed = study(TUNED.replace('method = "leap"', 'method = "leap"\nname = "noise"'))
    callback = Quiet()
    (cell,) = run(renamed, store, callback)
    assert callback.records == []
    assert "noise" in [arm.name for arm in cell.comparison.arms]
    assert {record.arm for record in cell.comparison.records} == {arm.name for arm in cell.comparison.arms}


def test_the_order_of_the_trials_changes_nothing(finished):
    class Backwards(LocalExecutor):
        def run(self, work, jobs):
            return super().run(work, reversed(list(jobs)))

    _, store, _, results = finished
    with Store(None) as other:
        (cell,) = run(study(), other, executor=Backwards())
        assert cell.tuned == results[0].tuned
        assert sorted(map(outcome, other.records()), key=str) == sorted(map(outcome, store.records()), key=str)


def test_other_versions_are_refused():
    work = replace(Work(git={}), versions={"torch": "0.1"})
    with Store(None) as store, pytest.raises(StudyError, match=r"a worker has other versions \(.*torch 2.*0.1"):
        drive(study(), store, LocalExecutor(), work, Quiet())


def test_a_builtin_task_is_not_identified_by_code():
    assert get_task("digits-mlp").name == "digits-mlp"


@pytest.mark.parametrize("same", ["space.learning_rate = [0.1]", "space.epochs = [3.0]"])
def test_two_ways_to_say_vanilla_are_one_trial(same):
    """A value that is the default is no other setting: vanilla is LEAP's control, and nothing runs twice."""
    text = 'task = "quick_tasks:QUICK"\n[[arms]]\nmethod = "leap"\nspace.sigma = [0.5]\n[[arms]]\nmethod = "vanilla"\n'
    with Store(None) as store:
        (cell,) = run(study(text + same), store)
        arms = {arm.name: arm for arm in cell.comparison.arms}
        assert list(arms) == ["vanilla", "leap"]
        assert arms["leap"].control == "vanilla"
        tried = sum(record.spec["metric"] == "val_error" for record in store.records())
        assert len(list(store.records())) == tried + 20


def test_a_specification_is_valid_json(finished):
    _, store, _, _ = finished
    for record in store.records():
        json.dumps(record.spec, allow_nan=False)
        assert json.loads(json.dumps(record.spec)) == record.spec


def test_what_is_no_text_is_kept_as_an_outcome(tmp_path):
    task = get_task("quick_tasks:QUICK")

    def train(trial):
        raise ValueError("bad file '\udcff'")

    spec = TrialSpec(subject_of(task, task.settings), Arm("leap"), 0)
    with Store(tmp_path / "trials.sqlite") as store:
        store.put(run_trial(spec, train, Callback()))
        assert store.get(spec.key).error == "ValueError: bad file '\\udcff'"


def test_a_number_that_sqlite_has_not_is_an_error_of_the_store(finished):
    record = replace(finished[2].records[0], key="x", seed=10**20)
    with Store(None) as store, pytest.raises(StoreError, match="too large"):
        store.put(record)

"""The ledger: from comparisons to verdicts, sentences and tables."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from flatwise import leap, lr_dropout
from flatwise.study.analysis import analyse
from flatwise.study.arms import Arm, with_controls
from flatwise.study.registry import load_study
from flatwise.study.spec import StudySpec
from flatwise.study.store import Record
from flatwise.study.subjects import Subject
from flatwise_papers.replication import LedgerError, build_ledger, ledger_markdown, write_ledger_csv

SEEDS = range(10)
GRAPHS = {"paper": "leap", "table": "3", "dataset": "Cora", "model": "GCN"}  # 25.38 → 22.60
RN = {"paper": "random-noise-lr", "table": "1", "dataset": "CIFAR-10", "schedule": "step_decay"}  # 8.34 → 7.85, best


def study(cells, arm="leap", paper_arm=None, **fields):
    arms = [{"method": "vanilla"}, {"method": arm, "paper": {"arm": paper_arm or arm}}]
    return StudySpec(name="study", title="A study", cells=cells, arms=arms, **fields)


def comparison(means, *, arm=leap(0.05), name="leap", spread=0.3, best_is_lower_by=0.0, unit="%", failed=()):
    """Final errors around these means, the same up to a shift for all arms but for a little of their own."""
    arms = with_controls([Arm("vanilla"), Arm(name, arm)])
    rng = np.random.default_rng(0)
    shared = rng.normal(size=len(SEEDS))
    shared -= shared.mean()
    records = []
    for position, which in enumerate(arms):
        own = np.random.default_rng(position).normal(size=len(SEEDS)) * 0.2
        values = means[which.name] + spread * (shared + own - own.mean())
        for seed, value in zip(SEEDS, values, strict=True):
            best = {"test_error": value - best_is_lower_by, "seconds": 1.0}
            last = {"test_error": math.nan if (which.name, seed) in failed else value, "seconds": 1.0}
            status = "failed" if (which.name, seed) in failed else "finished"
            records.append(Record(f"{which.name} {seed}", "task", which.name, seed, status, (best, last)))
    return analyse(Subject("task", "test_error", unit, "lower", {}), records, arms, SEEDS)


def entry(means, cell=None, **chosen):
    cell = cell or {"task": "cora-gcn", "paper": GRAPHS}
    (only,) = build_ledger(study([cell]), {cell["task"]: comparison(means, **chosen)}).entries
    return only


def test_a_reproduced_claim():
    found = entry({"vanilla": 25.0, "leap": 22.5})
    assert (found.verdict, found.outcome, found.check.status) == ("reproduced", "reproduced", "agrees")
    assert (found.task, found.claim.cell, found.claim.arm) == ("cora-gcn", "cora-gcn", "leap")
    assert (found.baseline.mean, found.baseline.n) == (pytest.approx(25.0), 10)
    assert found.result.mean == pytest.approx(22.5)
    assert found.difference == pytest.approx(-2.5)
    assert found.low < -2.5 < found.high < 0
    assert found.expected == pytest.approx(-25.0 * 2.78 / 25.38)
    assert found.p < 0.05
    assert found.credit == "noise"  # LEAP's mean factor is 1: vanilla is its control
    assert found.seeds_range is None
    assert "leap changes vanilla's 25.00 % by −2.50 [−" in found.explanation
    assert "the paper's relative gain of 11.0 % would be −2.74. The direction is shown (p = 0.002)" in found.explanation


def test_smaller_than_printed_is_said():
    found = entry({"vanilla": 25.0, "leap": 24.5})
    assert found.verdict == "reproduced"
    assert "but the effect is smaller than the paper's" in found.explanation


def test_a_refuted_claim():
    found = entry({"vanilla": 25.0, "leap": 24.98})
    assert (found.verdict, found.credit) == ("not reproduced", None)
    assert "Our interval leaves the paper's out, and no effect is not ruled out (p = " in found.explanation
    worse = entry({"vanilla": 25.0, "leap": 26.0})
    assert worse.verdict == "not reproduced"
    assert "The opposite is shown (p = 0.002)." in worse.explanation


def test_an_open_claim():
    found = entry({"vanilla": 25.0, "leap": 23.5}, spread=15.0)
    assert found.verdict == "inconclusive"
    fewest, most = found.seeds_range
    assert fewest > 10
    assert most is None
    assert f"it takes at least {fewest} seeds to settle it, and may take far more" in found.explanation


def test_another_baseline_comes_first_and_hides_nothing():
    found = entry({"vanilla": 18.0, "leap": 18.0})
    assert (found.verdict, found.outcome, found.check.status) == ("baseline differs", "not reproduced", "better")
    assert found.expected == pytest.approx(-18.0 * 2.78 / 25.38)
    assert (
        "The paper's vanilla was easily beaten: ours has 18.00 %, 7.38 points below its 25.38 %, more than the 2.78 "
        "claimed." in found.explanation
    )
    found = entry({"vanilla": 30.0, "leap": 27.0})
    assert (found.verdict, found.outcome, found.check.status) == ("baseline differs", "reproduced", "worse")
    assert "was not reached: ours has 30.00 %, 4.62 points above" in found.explanation


def test_best_epochs_are_compared_with_best_epochs():
    """RN reports its best epoch. Our last epoch's 9.3 is far from its 8.34; our best one's is not."""
    cell = {"task": "cifar10-resnet20", "paper": RN}
    spec = study([cell], arm="random_lr")
    means = {"vanilla": 9.34, "random_lr": 9.34, "random_lr (control)": 9.34}
    chosen = {"arm": lr_dropout(0.5), "name": "random_lr", "spread": 0.05}
    (last,) = build_ledger(spec, {cell["task"]: comparison(means, **chosen)}).entries
    assert last.check.status == "worse"
    assert "ours has 9.34 % in the best epoch, 1.00 points above" in last.explanation
    (best,) = build_ledger(spec, {cell["task"]: comparison(means, **chosen, best_is_lower_by=1.0)}).entries
    assert best.check.ours.mean == pytest.approx(8.34)
    assert best.check.status == "agrees"
    assert best.baseline.mean == pytest.approx(9.34)  # what is judged is the final epoch


@pytest.mark.parametrize(
    ("arm", "control", "credit", "words"),
    [
        (0.9, 1.5, "noise", "better than its control"),
        (0.9, 0.9, "rate", "the gain is the rate's, not the noise's"),
    ],
)
def test_whose_gain(arm, control, credit, words):
    paper = {"paper": "lr-dropout", "table": "I", "dataset": "MNIST", "optimizer": "SGDM"}
    spec = study([{"task": "mnist-fcnet", "paper": paper}], arm="lr_dropout")
    means = {"vanilla": 2.0, "lr_dropout": arm, "lr_dropout (control)": control}
    made = comparison(means, arm=lr_dropout(0.5), name="lr_dropout", spread=0.05)
    (found,) = build_ledger(spec, {"mnist-fcnet": made}).entries
    assert (found.outcome, found.credit) == ("reproduced", credit)
    assert words in found.explanation


def test_the_jpeg_copy_is_not_comparable():
    cell = {"task": "cifar10-jpeg-resnet18", "paper": {**GRAPHS, "table": "1", "dataset": "CIFAR-10"}}
    cell["paper"] |= {"model": "ResNet-18", "optimizer": "SGD"}
    found = entry({"vanilla": 15.0, "leap": 14.0}, cell)
    assert (found.verdict, found.check.status) == ("reproduced", "not comparable")
    assert "Trained on the JPEG copy of CIFAR-10: the paper's errors are not comparable" in found.explanation


def test_a_paper_that_does_not_show_its_own_gain():
    cell = {"task": "citeseer-gat", "paper": {**GRAPHS, "dataset": "CiteSeer", "model": "GAT"}}
    found = entry({"vanilla": 38.0, "leap": 35.0}, cell)
    assert "The paper's own runs do not show its gain: 2.60 points, 95 % interval [−1.9" in found.explanation


def test_failures():
    found = entry({"vanilla": 25.0, "leap": 22.5}, failed={("leap", 3), ("leap", 4)})
    assert (found.verdict, found.result.n, math.isnan(found.difference)) == ("failed", 8, True)
    assert found.explanation.startswith("2 runs of leap and 0 of vanilla ended without a finite error")
    found = entry({"vanilla": 30.0, "leap": 22.5}, failed={("vanilla", seed) for seed in SEEDS})
    assert (found.verdict, found.baseline, found.check.status) == ("failed", None, "unknown")


def test_what_was_not_run():
    cells = [{"task": "cora-gcn", "paper": GRAPHS}, {"task": "cora-gat", "paper": {**GRAPHS, "model": "GAT"}}]
    ledger = build_ledger(study(cells), {"cora-gcn": comparison({"vanilla": 25.0, "leap": 22.5})})
    assert [found.verdict for found in ledger.entries] == ["reproduced", "not run"]
    other_arm = comparison({"vanilla": 25.0, "other": 22.5}, name="other")
    assert build_ledger(study(cells[:1]), {"cora-gcn": other_arm}).entries[0].verdict == "not run"


def test_results_that_are_no_errors_in_percent_are_refused():
    spec = study([{"task": "cora-gcn", "paper": GRAPHS}])
    made = comparison({"vanilla": 0.25, "leap": 0.22}, unit="")
    with pytest.raises(
        LedgerError, match="cell 'cora-gcn': the papers' errors are in percent, but test_error is in ''"
    ):
        build_ledger(spec, {"cora-gcn": made})
    with pytest.raises(LedgerError, match="study 'study' has no cell 'cora': it has cora-gcn"):
        build_ledger(spec, {"cora": made})


@pytest.fixture(scope="module")
def ledger():
    papers = [{**GRAPHS, "model": model} for model in ("GCN", "GAT", "GIN")]
    cells = [{"task": f"cora-{paper['model'].lower()}", "paper": paper} for paper in papers]
    cells[0]["name"] = "GCN | Cora"
    made = {
        "GCN | Cora": comparison({"vanilla": 25.0, "leap": 22.5}),
        "cora-gat": comparison({"vanilla": 20.0, "leap": 20.0}),
    }
    return build_ledger(study(cells), made)


def test_markdown(ledger):
    text = ledger_markdown(ledger)
    assert text.startswith(
        "1 of 3 claims reproduced; 1 with another baseline than the paper's; 1 not run yet.\n\n| claim | the paper |"
    )
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3
    assert lines[2].startswith("| leap<br>GCN \\| Cora | 25.38 ± 0.75<br>22.60 ± 0.57<br>−11.0 % | 25.00 ± 0.")
    assert "<br>paper's: −2.74 | reproduced<br>" in lines[2]
    assert lines[4].endswith("| — | — | not run |")
    columns = {line.replace("\\|", "").count("|") for line in lines}
    assert columns == {6}
    assert "best epoch" not in text
    assert "100 − accuracy" not in text


def test_csv(ledger, tmp_path):
    path = tmp_path / "ledger.csv"
    write_ledger_csv(ledger, path)
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["reproduced", "baseline differs", "not run"]
    assert [row["outcome"] for row in rows] == ["reproduced", "not reproduced", "not run"]
    first = rows[0]
    assert (first["study"], first["cell"], first["task"], first["arm"]) == ("study", "GCN | Cora", "cora-gcn", "leap")
    assert (first["paper_baseline_mean"], first["paper_baseline_runs"], first["paper_gain"]) == ("25.38", "5", "2.78")
    assert float(first["difference"]) == pytest.approx(-2.5)
    assert float(first["expected"]) == pytest.approx(-25.0 * 2.78 / 25.38, rel=1e-5)
    assert first["baseline_status"] == "agrees"
    assert first["explanation"] == ledger.entries[0].explanation
    assert all(rows[2][name] == "" for name in ("difference", "low", "p", "arm_mean", "baseline_status", "credit"))


def test_accuracies_and_best_epochs_are_named():
    cell = {"task": "cifar10-resnet20", "paper": RN}
    text = ledger_markdown(build_ledger(study([cell], arm="random_lr"), {}))
    assert "its errors are 100 − accuracy" in text
    assert "The paper reports the best epoch, chosen on test data; ours are of the last." in text


def test_a_study_without_papers_has_an_empty_ledger():
    spec = StudySpec(name="own", task="digits-mlp", arms=[{"method": "vanilla"}, {"method": "leap"}])
    ledger = build_ledger(spec, {"digits-mlp": comparison({"vanilla": 2.0, "leap": 2.0})})
    assert ledger.entries == ()
    assert ledger_markdown(ledger).startswith("This study replicates no claim of a paper.")


# The ledger in the documentation.

DATA = Path(__file__).parents[3] / "docs" / "replication_data"


def final_runs(path):
    """The trials on the test set that a study exported: by cell, arm and seed, with their final metrics."""
    cells = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "test_error":
                final = {name[6:]: float(value) for name, value in row.items() if name.startswith("final.") and value}
                record = Record(row["key"], row["task"], row["arm"], int(row["seed"]), row["status"], (final,))
                cells.setdefault(row["task"], {}).setdefault(row["arm"], {})[record.seed] = record
    return cells


def judged_again(found):
    """A cell compared from its exported trials."""
    arms = [Arm("vanilla")]
    for name in found:
        if name != "vanilla" and not name.endswith(" (control)"):
            control = f"{name} (control)"
            arms.append(Arm(name, control=control if control in found else "vanilla"))
            arms += [Arm(control, is_control=True)] if control in found else []
    seeds = sorted(found["vanilla"])
    records = [found[arm.name][seed] for arm in arms for seed in seeds]
    return analyse(Subject("cell", "test_error", "%", "lower", {}), records, arms, seeds)


@pytest.mark.parametrize("name", ["leap-table-2", "leap-table-3"])
def test_the_published_ledger_is_what_the_rules_say_of_the_published_trials(name, tmp_path):
    compared = {cell: judged_again(found) for cell, found in final_runs(DATA / f"{name}-trials.csv").items()}
    published = load_study(name).with_cells(list(compared))
    write_ledger_csv(build_ledger(published, compared), tmp_path / "ledger.csv")
    assert (tmp_path / "ledger.csv").read_text() == (DATA / f"{name}-ledger.csv").read_text()

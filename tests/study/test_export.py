"""A store as tables."""

import csv
import json

import pyarrow.parquet
import pytest

from flatwise.study.engine import drive
from flatwise.study.executors import LocalExecutor
from flatwise.study.export import ExportError, export
from flatwise.study.store import Record, Store
from flatwise.study.work import Work
from studies import Quiet, study


@pytest.fixture(scope="module")
def store():
    with Store(None) as store:
        drive(study(), store, LocalExecutor(), Work(git={"commit": "abc"}), Quiet())
        store.put(Record("old", "t", "a, b", 3, "failed", (), error="line 1\nline 2"))  # of an older schema
        yield store


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_has_every_trial_and_every_epoch(tmp_path, store):
    trials, epochs = export(store, tmp_path / "new" / "folder")
    kept = list(store.records())
    written = rows(trials)
    assert [row["key"] for row in written] == [record.key for record in kept]
    for row, record in zip(written, kept, strict=True):
        assert row["status"] == record.status
        if record.key == "old":
            assert (row["arm"], row["error"], row["final.val_error"]) == ("a, b", "line 1\nline 2", "")
            continue
        assert float(row["final.val_error"]) == record.epochs[-1]["val_error"]
        assert (row["final.test_error"] == "") is (row["metric"] == "val_error")
        assert float(row["setting.learning_rate"]) == record.spec["settings"]["learning_rate"]
        assert json.loads(row["perturbation"]) == record.spec["arm"]["perturbations"]
        assert row["environment.commit"] == "abc"
        assert int(row["memory.resident"]) > 0
    curves = rows(epochs)
    assert len(curves) == 3 * (len(kept) - 1)
    assert [row["epoch"] for row in curves[:3]] == ["1", "2", "3"]
    assert float(curves[2]["val_error"]) == kept[0].epochs[-1]["val_error"]
    assert list((tmp_path / "new" / "folder").iterdir()) != []
    assert sorted(path.name for path in trials.parent.iterdir()) == ["epochs.csv", "trials.csv"]


def test_parquet_has_the_same(tmp_path, store):
    csv_paths, parquet_paths = export(store, tmp_path), export(store, tmp_path, "parquet")
    for csv_path, parquet_path in zip(csv_paths, parquet_paths, strict=True):
        table = pyarrow.parquet.read_table(parquet_path)
        read = rows(csv_path)
        assert table.column_names == list(read[0])
        assert table.num_rows == len(read)
        for name in table.column_names:
            values = ["" if value is None else str(value) for value in table[name].to_pylist()]
            assert values == [row[name] for row in read]
    assert str(pyarrow.parquet.read_schema(parquet_paths[0]).field("final.val_error").type) == "double"
    assert str(pyarrow.parquet.read_schema(parquet_paths[0]).field("seed").type) == "int64"


def test_without_pyarrow_the_extra_is_named(tmp_path, store, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match=r"pip install 'flatwise\[parquet\]'"):
        export(store, tmp_path, "parquet")
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_stay_what_they_are(tmp_path):
    with Store(None) as store:
        store.put(Record("1", "t", "a", 0, "failed", ({"val_error": float("nan")}, {"val_error": float("inf")})))
        _, epochs = export(store, tmp_path)
        assert [row["val_error"] for row in rows(epochs)] == ["nan", "inf"]

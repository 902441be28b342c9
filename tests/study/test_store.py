"""The store: one writer, many readers; refused rather than damaged."""

import math
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

import flatwise
from flatwise.study.store import Record, Store, StoreError


def record(key, **changes):
    fields = {"key": key, "task": "t", "arm": "a", "seed": 0, "status": "finished", "epochs": ({"val_error": 1.0},)}
    return Record(**{**fields, "spec": {"metric": "val_error"}, **changes})


def test_a_record_comes_back_as_it_was(tmp_path):
    kept = [record("1"), record("2", status="failed", error="x", epochs=(), memory={"resident": 5}, seconds=1.5)]
    with Store(tmp_path / "trials.sqlite") as store:
        for each in kept:
            store.put(each)
        assert store.outcome("1") is not None
        assert store.outcome("3") is None
        assert list(store.records()) == kept
    with Store(tmp_path / "trials.sqlite", read_only=True) as store:
        assert store.get("2") == kept[1]
        assert store.get("3") is None


def test_what_people_look_for_has_columns(tmp_path):
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        store.put(record("1", seconds=2.5))
    connection = sqlite3.connect(path)
    found = connection.execute("SELECT task, arm, metric, seed, status, error, seconds FROM trials").fetchall()
    connection.close()
    assert found == [("t", "a", "val_error", 0, "finished", None, 2.5)]


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        store.put(record("1"))
        with pytest.raises(StoreError, match="another flatwise is writing to"):
            Store(path)
        with Store(path, read_only=True) as reader:
            assert reader.outcome("1") is not None
        store.put(record("2"))
    with Store(path) as store:
        assert store.outcome("2") is not None


def test_a_dead_writer_locks_nothing(tmp_path):
    path = tmp_path / "trials.sqlite"
    code = (
        "import os; from pathlib import Path; from flatwise.study.store import Store; "
        f"Store(Path({str(path)!r})); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    with Store(path) as store:
        store.put(record("1"))


def test_what_is_no_store_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "trials.sqlite"
    path.write_bytes(b"important notes" * 100)
    for options in ({}, {"read_only": True}):
        with pytest.raises(StoreError, match=r"cannot use .*: file is not a database"):
            Store(path, **options)
    assert path.read_bytes() == b"important notes" * 100


@pytest.mark.filterwarnings("error::ResourceWarning")
def test_a_store_that_does_not_open_leaves_nothing_open(tmp_path):
    path = tmp_path / "trials.sqlite"
    path.write_bytes(b"important notes" * 100)
    opened = []

    def connect(*given, connect=sqlite3.connect, **options):
        opened.append(connect(*given, **options))
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connect)
        for options in ({}, {"read_only": True}):
            with pytest.raises(StoreError):
                Store(path, **options)
        path.unlink()
        Store(path).close()
        connection = opened.pop()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(StoreError):
            Store(path)
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")
    assert len(opened) == 4


@pytest.fixture
def read_only(monkeypatch):
    """A folder that may be read and not written; root, who may write everywhere, is somebody else meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def close():
            for path in folder.iterdir():
                path.unlink() if path.suffix == ".lock" else path.chmod(0o444)
            folder.chmod(0o555)
            if os.getuid() == 0:
                os.seteuid(65534)

        yield folder, close
        if os.getuid() == 0:
            os.seteuid(0)
        folder.chmod(0o755)


def test_a_store_in_a_read_only_folder_can_be_read(read_only):
    folder, close = read_only
    path = folder / "trials.sqlite"
    with Store(path) as store:
        store.put(record("1"))
        store.put(record("2"))
    close()
    with Store(path, read_only=True) as store:
        assert [each.key for each in store.records()] == ["1", "2"]
    with Store.open(path) as store:
        assert [each.key for each in store.records()] == ["1", "2"]
        with pytest.raises(StoreError, match=r"cannot use .*trials.sqlite as the store.*([Pp]ermission|[Rr]ead-only)"):
            store.check_writable()


def test_a_finished_comparison_in_a_read_only_folder_is_shown_again(read_only, capsys):
    folder, close = read_only
    first = flatwise.compare(quick, ["leap"], 2, out=folder, quiet=True)
    assert (folder / "report.html").is_file()
    (folder / "report.html").unlink()
    close()
    again = flatwise.compare(quick, ["leap"], 2, out=folder)
    assert [arm.mean for arm in again.arms] == [arm.mean for arm in first.arms]
    printed, said = capsys.readouterr()
    assert "Does it help?" in printed
    assert "4 of 4 trials reused" in said
    assert "No report was written: cannot write" in said
    with pytest.raises(StoreError, match="cannot use"):  # before a trial is run for nothing
        flatwise.compare(quick, ["leap"], 3, out=folder, quiet=True)


def quick(trial):
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    trial.attach(optimizer, steps_per_epoch=1, epochs=1)
    weight.grad = torch.ones(1)
    optimizer.step()
    trial.report(test_error=weight.item() + trial.seed)


def test_a_damaged_store_is_refused_where_it_is_damaged(tmp_path):
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        for number in range(200):
            store.put(record(str(number)))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = os.urandom(4096)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="damaged"), Store(path, read_only=True) as store:
        list(store.records())
    assert path.read_bytes() == bytes(content)


def test_a_newer_store_is_refused(tmp_path):
    path = tmp_path / "trials.sqlite"
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="written by a newer flatwise"):
        Store(path)
    with pytest.raises(StoreError, match="written by a newer flatwise"):
        Store(path, read_only=True)


@pytest.mark.parametrize("schema", [1, 4])
def test_a_store_of_an_older_schema_is_refused_and_left_alone(tmp_path, schema):
    path = tmp_path / "trials.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE trials (key TEXT PRIMARY KEY, record TEXT NOT NULL)")
    connection.execute(f"PRAGMA user_version = {schema}")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    for options in ({}, {"read_only": True}):
        with pytest.raises(StoreError, match=f"its schema is {schema}, expected 5. Choose another output folder"):
            Store(path, **options)
    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "trials.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is not a store of this flatwise"):
        Store(path)
    assert path.read_bytes() == before


def test_the_outcome_is_read_without_the_record(tmp_path):
    with Store(tmp_path / "trials.sqlite") as store:
        store.put(record("1"))
        store.put(record("2", status="failed", epochs=({"val_error": 1.0},)))
        store._connection.execute("UPDATE trials SET record = 'no JSON'")
        assert store.keys() == {"1", "2"}
        assert store.outcome("1") == ("finished", 1.0)
        status, value = store.outcome("2")
        assert status == "failed"
        assert math.isnan(value)
        assert store.outcome("3") is None


def test_a_full_disk_loses_nothing(tmp_path):
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        store.put(record("1"))
        size = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {size}")  # SQLite's own full disk
        with pytest.raises(StoreError, match=r"database or disk is full.*The trials before this one are safe"):
            for number in range(2, 2000):
                store.put(record(str(number), error="x" * 1000))
    with Store(path) as store:
        kept = list(store.records())
        assert kept[0] == record("1")
        store.put(record("next"))


def test_a_file_that_may_grow_no_more_loses_nothing(tmp_path):
    """The system's own refusal, met in the middle of a write."""
    path = tmp_path / "trials.sqlite"
    with Store(path) as store:
        store.put(record("1"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with Store(path) as store:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20_000, hard))
            with pytest.raises(StoreError, match="cannot write to"):
                for number in range(2, 2000):
                    store.put(record(str(number), error="x" * 5000))
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    with Store(path) as store:
        assert next(store.records()) == record("1")
        store.put(record("next"))
        assert store.outcome("next") is not None

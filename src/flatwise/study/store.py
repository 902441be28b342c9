"""The records of trials, and their store: one SQLite file, so that a study killed at any moment can resume."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from filelock import FileLock, Timeout

from flatwise.exceptions import FlatwiseError

Status = Literal["finished", "failed"]
Outcome = tuple[Status, float]  # of a trial: its final metric, NaN if it failed
# What flatwise adds to the metrics of an epoch.
OWN_COLUMNS = ("scheduled_lr", "effective_lr", "seconds")


@dataclass(frozen=True, slots=True)
class FlatnessRecord:
    """How flat one trial's final model is.

    Attributes:
        settings: what was asked for: :meth:`flatwise.FlatnessSettings.to_dict`.
        values: by name, each finite: ``loss``, ``gradient_norm``, ``eigenvalue_1`` and so on, ``trace`` and half the
            width of its 95 % interval, ``trace_error``; the mean loss increase at each radius, ``loss_increase_0.1``.
        missing: by name, why there is no value.
        unconverged: names of the values that ``max_iter`` products did not settle: eigenvalues whose residual is not
            within 1 %, or of which a further copy may be missing; the trace if its error bar is more than 10 % of it.
        seconds: what it took.
    """

    settings: Mapping[str, Any]
    values: Mapping[str, float]
    missing: Mapping[str, str]
    unconverged: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """One trial's outcome. A crash or a NaN is an outcome too: it has a record, with the message.

    Attributes:
        key: the hash of the trial's specification; two trials with one key are the same trial.
        task: name of the task.
        arm: name of the arm.
        seed: the seed that the trial shares with the other arms of its pair.
        status: ``"finished"``, or ``"failed"`` when the training function raised or the final metric is not finite.
        epochs: one mapping per reported epoch, in order: the training function's own metrics and flatwise's
            ``scheduled_lr``, ``effective_lr`` (first parameter group, at the epoch's last step) and ``seconds``.
        error: the message of a failed trial, else ``None``.
        traceback: where it was raised; ``None`` where nothing was.
        versions: the versions that the trial ran under, such as ``{"torch": "2.13.0"}``.
        flatness: how flat the final model is; ``None`` where it was not asked for or the training did not get so far.
        spec: all that identifies the trial but for the versions, as plain data; see :class:`TrialSpec`.
        started: when it started, UTC, such as ``"2026-03-01T12:00:00+00:00"``.
        seconds: what it took, evaluation included, loading the data excluded.
        memory: peak bytes by kind: ``"resident"``, ``"gpu"``.
        environment: what it ran on, such as ``{"platform": ..., "commit": ...}``.
    """

    key: str
    task: str
    arm: str
    seed: int
    status: Status
    epochs: tuple[Mapping[str, float], ...]
    error: str | None = None
    versions: Mapping[str, str] | None = None
    flatness: FlatnessRecord | None = None
    spec: Mapping[str, Any] | None = None
    started: str | None = None
    seconds: float | None = None
    memory: Mapping[str, int] | None = None
    environment: Mapping[str, str] | None = None
    traceback: str | None = None

    def same_metrics(self, other: Record) -> bool:
        """Whether all metrics of all epochs are the same to the bit: two runs of one training.

        The time is left out, and so are the learning rates, which follow from the arm and not from the training.
        """
        return self.metrics() == other.metrics()

    def metrics(self) -> list[tuple[tuple[str, float | None], ...]]:
        """What the training function reported, epoch by epoch, in an order that does not depend on its own; a NaN is
        ``None``, so that it equals itself.
        """
        return [
            tuple(
                (name, None if math.isnan(value) else value)
                for name, value in sorted(epoch.items())
                if name not in OWN_COLUMNS
            )
            for epoch in self.epochs
        ]

    def final(self, metric: str) -> float:
        """The final epoch's metric; NaN for a failed trial."""
        return float(self.epochs[-1][metric]) if self.status == "finished" else math.nan

    @property
    def ended(self) -> datetime | None:
        """When the trial ended, UTC; ``None`` of a trial whose worker died."""
        if self.started is None or self.seconds is None:
            return None
        return datetime.fromisoformat(self.started).astimezone(timezone.utc) + timedelta(seconds=self.seconds)


@dataclass(frozen=True, slots=True)
class JudgedArm:
    """An arm that was judged, as a store remembers it.

    Attributes:
        name: what it was called.
        control: the name of its control; ``None`` where it has none.
        is_control: whether it is one.
        identity: a text that two arms share if they do the same.
        keys: of each seed, the key of its trial.
    """

    name: str
    control: str | None
    is_control: bool
    identity: str
    keys: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class JudgedComparison:
    """A comparison that was judged: later ones on the same subject must know of it.

    Attributes:
        seeds: the seeds.
        arms: the arms, without vanilla.
    """

    seeds: tuple[int, ...]
    arms: tuple[JudgedArm, ...]


STORE_NAME = "trials.sqlite"  # in an output folder
SCHEMA = 5  # stores of another schema are refused
_TABLES = (
    "CREATE TABLE trials (key TEXT PRIMARY KEY, record TEXT NOT NULL, task, arm, metric, seed, status, error, final, "
    "started, seconds)",
    "CREATE TABLE tasks (name TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name, key))",
    "CREATE TABLE judged (family TEXT NOT NULL, comparison TEXT NOT NULL, UNIQUE (family, comparison))",
)


class StoreError(FlatwiseError):
    """The store cannot be used. The message is one line; the file was not changed."""


class UnwritableStoreError(StoreError):
    """The store cannot be written to, but may be readable: a read-only folder, a full disk."""


class Store:
    """Records by the key of their trial. Every record is on disk before the next trial starts.

    One program at a time may write to a file; others may read it meanwhile.

    Args:
        path: the SQLite file, created if missing; ``None`` keeps the records in memory.
        read_only: only read: the file must exist, and is not changed. Default: ``False``.

    Raises:
        StoreError: the file cannot be made, read or written, is not a store, is of a newer version, or another
            program is writing to it.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False) -> None:
        self._path = path
        self._unwritable: UnwritableStoreError | None = None
        self._lock = None if path is None or read_only else FileLock(path.with_name(path.name + ".lock"), timeout=0)
        try:
            if path is not None and not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            if self._lock is not None:
                self._lock.acquire()
            self._connection = self._connect(read_only)
        except Timeout:
            raise StoreError(f"another flatwise is writing to {path}: wait for it, or {_ADVICE.lower()}") from None
        except (sqlite3.Error, OSError) as error:
            self._release()
            kind = UnwritableStoreError if isinstance(error, (sqlite3.OperationalError, OSError)) else StoreError
            raise kind(f"cannot use {path} as the store of finished trials: {error}. {_ADVICE}") from None
        except BaseException:
            self._release()
            raise

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open the store for writing, or read-only if it exists but cannot be written to.

        So a finished comparison can be shown from a read-only folder or on a full disk; :meth:`check_writable` raises
        before another trial is run.

        Raises:
            StoreError: as for :class:`Store`.
        """
        try:
            return cls(path)
        except UnwritableStoreError as error:
            try:
                store = cls(path, read_only=True)
            except StoreError:
                raise error from None
            store._unwritable = error
            return store

    @property
    def is_writable(self) -> bool:
        """Whether trials can be kept."""
        return self._unwritable is None

    def check_writable(self) -> None:
        """Checks that trials can be kept, before one is run.

        Raises:
            StoreError: the store was opened read-only, because it cannot be written to.
        """
        if self._unwritable is not None:
            raise self._unwritable

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        if self._path is None:
            return _opened(":memory:", self._set_up)
        where = f"file:{quote(str(self._path))}"
        if not read_only:
            return _opened(where, self._set_up)
        try:
            return _opened(f"{where}?mode=ro", self._check)
        except sqlite3.OperationalError:
            # SQLite's readers write files beside the store. In a read-only folder they cannot, so SQLite is told that
            # the file is immutable. It then ignores the log of a killed program: not if there is one.
            log = self._path.with_name(self._path.name + "-wal")
            if not self._path.is_file() or (log.exists() and log.stat().st_size):
                raise
            return _opened(f"{where}?mode=ro&immutable=1", self._check)

    def _check(self, connection: sqlite3.Connection) -> None:
        """Raise if the file is not a store of this schema."""
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise StoreError(
                f"{self._path} was written by a newer flatwise (schema {version}): update it, or {_ADVICE.lower()}"
            )
        if version < SCHEMA:
            raise StoreError(
                f"{self._path} is not a store of this flatwise: its schema is {version}, expected {SCHEMA}. {_ADVICE}"
            )
        connection.execute("SELECT key FROM trials LIMIT 1")

    def _set_up(self, connection: sqlite3.Connection) -> None:
        """Make the tables of a new file; check those of another."""
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables != (0,) or connection.execute("PRAGMA user_version").fetchone() != (0,):
            self._check(connection)
            return
        connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")  # else Python begins no transaction, and a kill leaves half of it
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def keys(self) -> set[str]:
        """The keys of all trials.

        Raises:
            StoreError: the file is damaged.
        """
        return {key for (key,) in self._rows("SELECT key FROM trials")}

    def outcome(self, key: str) -> Outcome | None:
        """A trial's status and final metric (NaN if it failed), without its record; ``None`` if it has not ended yet.

        Raises:
            StoreError: the file is damaged.
        """
        row = self._read("SELECT status, final FROM trials WHERE key = ?", key)
        return None if row is None else (row[0], math.nan if row[1] is None else float(row[1]))

    def remember_task(self, name: str, key: str, value: Any) -> None:
        """Keep plain data about a user's own task, for commands that do not import it.

        Args:
            name: the task's name.
            key: the data's name; earlier data of that name are replaced.
            value: the data.

        Raises:
            StoreError: it cannot be written.
        """
        text = json.dumps(value)
        known = self._read("SELECT value FROM tasks WHERE name = ? AND key = ?", name, key)
        if known is None or known[0] != text:
            self._write("INSERT OR REPLACE INTO tasks (name, key, value) VALUES (?, ?, ?)", name, key, text)

    def remembered_task(self, name: str) -> dict[str, Any]:
        """The data kept about a user's own task, by key; may be empty.

        Raises:
            StoreError: the file is damaged.
        """
        found = self._rows("SELECT key, value FROM tasks WHERE name = ?", name)
        try:
            return {key: json.loads(value) for key, value in found}
        except ValueError as error:
            raise self._damaged(error) from None

    def get(self, key: str) -> Record | None:
        """The record of a trial, or ``None`` if it has not ended yet.

        Raises:
            StoreError: the file is damaged.
        """
        row = self._read("SELECT record FROM trials WHERE key = ?", key)
        return None if row is None else self._checked(row[0])

    def records(self) -> Iterator[Record]:
        """All records, one after the other, in the order in which they were kept.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            for (text,) in self._connection.execute("SELECT record FROM trials ORDER BY rowid"):
                yield self._checked(text)
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def _read(self, query: str, *values: str) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._connection.execute(query, values).fetchone()
            return row
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from None

    def _checked(self, text: str) -> Record:
        try:
            record = _parse(text)
            if record.status == "finished" and not record.epochs:
                raise ValueError("a finished trial without epochs")
            return record
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> StoreError:
        return StoreError(f"{self._path} is damaged ({error}); nothing was overwritten. {_ADVICE}")

    def put(self, record: Record) -> None:
        """Keeps a record, on disk when this returns.

        Raises:
            StoreError: it cannot be written.
        """
        metric = (record.spec or {}).get("metric")
        columns = {
            "key": record.key,
            "record": json.dumps(asdict(record)),
            "task": record.task,
            "arm": record.arm,
            "metric": metric,
            "seed": record.seed,
            "status": record.status,
            "error": record.error,
            "final": None if metric is None else record.final(metric),  # SQLite keeps NaN as NULL
            "started": record.started,
            "seconds": record.seconds,
        }
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        self._write(f"INSERT OR REPLACE INTO trials ({names}) VALUES ({marks})", *columns.values())

    def _write(self, statement: str, *values: Any) -> None:
        try:
            with self._connection:
                self._connection.execute(statement, values)
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise StoreError(
                f"cannot write to {self._path}: {error}. The trials before this one are safe; free some space or make "
                "the folder writable, and run the same command again"
            ) from None

    def judged(self, family: str) -> list[JudgedComparison]:
        """The comparisons of a family that were judged, the oldest first; see :attr:`Subject.family`.

        Raises:
            StoreError: the file is damaged.
        """
        rows = self._rows("SELECT comparison FROM judged WHERE family = ? ORDER BY rowid", family)
        try:
            return [_parse_judged(text) for (text,) in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(error) from None

    def remember_judged(self, family: str, comparison: JudgedComparison) -> None:
        """Remembers that a comparison was judged. One that is remembered already is left alone.

        Raises:
            StoreError: it cannot be written.
        """
        text = json.dumps(asdict(comparison), sort_keys=True)
        self._write("INSERT OR IGNORE INTO judged (family, comparison) VALUES (?, ?)", family, text)

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _opened(where: str, set_up: Callable[[sqlite3.Connection], object]) -> sqlite3.Connection:
    """A connection that is set up, or closed again."""
    connection = sqlite3.connect(where, timeout=30, uri=where != ":memory:")
    try:
        set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _parse(text: str) -> Record:
    fields = json.loads(text)
    flatness = fields.pop("flatness", None)
    if flatness is not None:
        flatness = FlatnessRecord(**{**flatness, "unconverged": tuple(flatness["unconverged"])})
    return Record(**{**fields, "epochs": tuple(fields["epochs"]), "flatness": flatness})


def _parse_judged(text: str) -> JudgedComparison:
    fields = json.loads(text)
    arms = [
        JudgedArm(**{**arm, "keys": {int(seed): key for seed, key in arm["keys"].items()}}) for arm in fields["arms"]
    ]
    return JudgedComparison(tuple(fields["seeds"]), tuple(arms))


_ADVICE = "Choose another output folder, or move the file away"

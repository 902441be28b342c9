"""The store of finished trials: one SQLite file, so that a comparison killed at any moment can resume."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from flatwise.study.records import FlatnessRecord, JudgedArm, Look, Record

STORE_NAME = "trials.sqlite"  # in an output folder
# 2: a record may have flatness measures. 3: it has its specification, time and memory, and columns to query. 4: a
# failed record may have a traceback; judged comparisons and descriptions of the user's own tasks are kept. Records of
# older schemas are read with these fields missing.
SCHEMA = 4
_COLUMNS = ("task", "arm", "metric", "seed", "status", "error", "started", "seconds")


class StoreError(Exception):
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
            return _opened(f"{where}?mode=ro", self._look)
        except sqlite3.OperationalError:
            # SQLite's readers write files beside the store. In a read-only folder they cannot, so SQLite is told that
            # the file is immutable. It then ignores the log of a killed program: not if there is one.
            log = self._path.with_name(self._path.name + "-wal")
            if not self._path.is_file() or (log.exists() and log.stat().st_size):
                raise
            return _opened(f"{where}?mode=ro&immutable=1", self._look)

    def _schema(self, connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise StoreError(
                f"{self._path} was written by a newer flatwise (schema {version}): update flatwise, or {_ADVICE.lower()}"
            )
        return version

    def _look(self, connection: sqlite3.Connection) -> None:
        """Checks that the file is a store."""
        self._schema(connection)
        connection.execute("SELECT key FROM trials LIMIT 1")

    def _set_up(self, connection: sqlite3.Connection) -> None:
        """Makes the tables, or brings those of an older schema up to date."""
        version = self._schema(connection)
        connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            # Python begins no transaction before these: without one a migration could stop halfway.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS trials (key TEXT PRIMARY KEY, record TEXT NOT NULL)")
            if version < SCHEMA:
                _add_columns(connection)
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS tasks "
                    "(name TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name, key))"
                )
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS looks (family TEXT NOT NULL, look TEXT NOT NULL, UNIQUE (family, look))"
                )
                connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def __contains__(self, key: str) -> bool:
        return self._read("SELECT 1 FROM trials WHERE key = ?", key) is not None

    def __len__(self) -> int:
        row = self._read("SELECT count(*) FROM trials")
        return 0 if row is None else int(row[0])

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
        found = self._rows("tasks", "SELECT key, value FROM tasks WHERE name = ?", name)
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

    def _rows(self, table: str, query: str, *values: str) -> list[tuple[Any, ...]]:
        """All rows; none from a store that is opened only to be read and older than the table."""
        if self._read("SELECT 1 FROM sqlite_master WHERE name = ?", table) is None:
            return []
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
        self._write(
            f"INSERT OR REPLACE INTO trials (key, record, {', '.join(_COLUMNS)}) VALUES (?, ?{', ?' * len(_COLUMNS)})",
            record.key,
            json.dumps(asdict(record)),
            *_columns(record),
        )

    def _write(self, statement: str, *values: Any) -> None:
        try:
            with self._connection:
                self._connection.execute(statement, values)
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            raise StoreError(
                f"cannot write to {self._path}: {error}. The trials before this one are safe; free some space or make "
                "the folder writable, and run the same command again"
            ) from None

    def looks(self, family: str) -> list[Look]:
        """The comparisons of a family that were judged, the oldest first; see :attr:`Subject.family`.

        Raises:
            StoreError: the file is damaged.
        """
        rows = self._rows("looks", "SELECT look FROM looks WHERE family = ? ORDER BY rowid", family)
        try:
            return [_parse_look(text) for (text,) in rows]
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(error) from None

    def remember_look(self, family: str, look: Look) -> None:
        """Remembers that a comparison was judged. One that is remembered already is left alone.

        Raises:
            StoreError: it cannot be written.
        """
        text = json.dumps(asdict(look), sort_keys=True)
        self._write("INSERT OR IGNORE INTO looks (family, look) VALUES (?, ?)", family, text)

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


def _add_columns(connection: sqlite3.Connection) -> None:
    """Brings the trials of a file of schema 0 (new), 1 or 2 to 3."""
    there = {row[1] for row in connection.execute("PRAGMA table_info(trials)")}
    for name in _COLUMNS:
        if name not in there:
            connection.execute(f"ALTER TABLE trials ADD COLUMN {name}")
    for key, text in connection.execute("SELECT key, record FROM trials").fetchall():
        values = _columns(_parse(text))
        assignments = ", ".join(f"{name} = ?" for name in _COLUMNS)
        connection.execute(f"UPDATE trials SET {assignments} WHERE key = ?", (*values, key))


def _parse(text: str) -> Record:
    fields = json.loads(text)
    flatness = fields.pop("flatness", None)
    if flatness is not None:
        flatness = FlatnessRecord(**{**flatness, "unconverged": tuple(flatness["unconverged"])})
    return Record(**{**fields, "epochs": tuple(fields["epochs"]), "flatness": flatness})


def _parse_look(text: str) -> Look:
    fields = json.loads(text)
    arms = [
        JudgedArm(**{**arm, "keys": {int(seed): key for seed, key in arm["keys"].items()}}) for arm in fields["arms"]
    ]
    return Look(tuple(fields["seeds"]), tuple(arms))


def _columns(record: Record) -> list[Any]:
    metric = (record.spec or {}).get("metric")
    return [metric if name == "metric" else getattr(record, name) for name in _COLUMNS]


_ADVICE = "Choose another output folder, or move the file away"

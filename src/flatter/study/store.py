"""Where finished trials are kept: one SQLite file, so that a comparison killed at any moment continues."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import asdict
from pathlib import Path

from flatter.study.records import FlatnessRecord, Record

SCHEMA = 2  # 2: a record may have flatness measures; records of 1 have none and are read as they are


class StoreError(Exception):
    """The store cannot be used. The message is one line; the file was not changed."""


class Store:
    """Records by the key of their trial. Every record is on disk before the next trial starts.

    Args:
        path: the SQLite file, made if it is not there; ``None`` keeps the records in memory.

    Raises:
        StoreError: the file cannot be made or written, is not a store, or is of a newer version.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(":memory:" if path is None else path, timeout=30)
            self._open()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot use {path} as the store of finished trials: {error}. {_ADVICE}") from None

    def _open(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise StoreError(f"{self._path} was written by a newer flatter (schema {version}): update, or {_ADVICE}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        with self._connection:
            self._connection.execute("CREATE TABLE IF NOT EXISTS trials (key TEXT PRIMARY KEY, record TEXT NOT NULL)")
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def get(self, key: str) -> Record | None:
        """The record of a trial, or ``None`` if it has not ended yet.

        Raises:
            StoreError: the file is damaged.
        """
        try:
            row = self._connection.execute("SELECT record FROM trials WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            fields = json.loads(row[0])
            flatness = fields.pop("flatness", None)
            if flatness is not None:
                flatness = FlatnessRecord(**{**flatness, "unconverged": tuple(flatness["unconverged"])})
            record = Record(**{**fields, "epochs": tuple(fields["epochs"]), "flatness": flatness})
            if record.status == "finished" and not record.epochs:
                raise ValueError("a finished trial without epochs")
            return record
        except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self._path} is damaged ({error}); nothing was overwritten. {_ADVICE}") from None

    def put(self, record: Record) -> None:
        """Keeps a record, on disk when this returns.

        Raises:
            StoreError: it cannot be written.
        """
        try:
            with self._connection:
                self._connection.execute(
                    "INSERT OR REPLACE INTO trials VALUES (?, ?)", (record.key, json.dumps(asdict(record)))
                )
        except sqlite3.Error as error:
            raise StoreError(
                f"cannot write to {self._path}: {error}. The trials before this one are safe; free some space or make "
                "the folder writable, and run the same command again"
            ) from None

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


_ADVICE = "Choose another output folder, or move the file away"

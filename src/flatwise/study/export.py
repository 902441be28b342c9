"""A store as tables for other programs: one row per trial, one row per epoch; CSV, or Parquet."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from flatwise.exceptions import FlatwiseError
from flatwise.study.store import Record, Store

Format = Literal["csv", "parquet"]
Row = Mapping[str, Any]
_ROWS_AT_ONCE = 1000


class ExportError(FlatwiseError, RuntimeError):
    """The tables cannot be written as asked. The message is one line."""


def export(store: Store, folder: Path, form: Format = "csv") -> tuple[Path, Path]:
    """Writes ``trials`` and ``epochs`` into a folder, replacing what is there; the store is read one record at a time.

    ``trials`` has one row per trial: ``key``, ``task``, ``metric`` (the validation metric: a tuning trial), ``arm``,
    ``seed``, ``status``, ``error``, ``perturbation`` and ``peak`` (JSON), ``setting.*``, the final epoch's metrics
    ``final.*``, ``started``, ``seconds``, ``memory.*`` (bytes), ``version.*``, ``environment.*``. ``epochs`` has one
    row per epoch: ``key``, ``epoch`` from 1, and what was reported.

    Args:
        store: the store.
        folder: where to; made if it is not there.
        form: ``"csv"`` or ``"parquet"``.

    Returns:
        The paths of the two files.

    Raises:
        ExportError: Parquet without the package pyarrow.
        OSError: the folder cannot be written.
        StoreError: the store is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"trials.{form}", folder / f"epochs.{form}"
    write = _write_csv if form == "csv" else _write_parquet
    for path, rows in zip(paths, (_trials, _epochs), strict=True):
        # Twice through the store: what columns there are is known only at its end.
        columns = _columns(rows(store))
        with written_whole(path) as temporary:
            write(temporary, columns, rows(store))
    return paths


def _trials(store: Store) -> Iterator[Row]:
    for record in store.records():
        spec = record.spec or {}
        arm = spec.get("arm") or {}
        yield {
            "key": record.key,
            "task": record.task,
            "metric": spec.get("metric"),
            "arm": record.arm,
            "seed": record.seed,
            "status": record.status,
            "error": record.error,
            "perturbation": json.dumps(arm.get("perturbations", [])),
            "peak": json.dumps(arm.get("peak")),
            **_named("setting", spec.get("settings")),
            **_named("final", record.epochs[-1] if record.epochs else None),
            "started": record.started,
            "seconds": record.seconds,
            **_named("memory", record.memory),
            **_named("version", record.versions),
            **_named("environment", record.environment),
        }


def _epochs(store: Store) -> Iterator[Row]:
    for record in store.records():
        yield from ({"key": record.key, "epoch": number, **epoch} for number, epoch in _numbered(record))


def _numbered(record: Record) -> Iterable[tuple[int, Row]]:
    return enumerate(record.epochs, start=1)


def _named(prefix: str, values: Row | None) -> dict[str, Any]:
    plain = (str, int, float, bool, type(None))
    return {
        f"{prefix}.{name}": value if isinstance(value, plain) else json.dumps(value)
        for name, value in (values or {}).items()
    }


def _columns(rows: Iterable[Row]) -> dict[str, type]:
    """Every column with its type: a number where all its values are, else text."""
    found: dict[str, type] = {}
    for row in rows:
        for name, value in row.items():
            known = found.setdefault(name, type(None))
            if value is not None and known is not type(value):
                numbers = {known, type(value)} <= {int, float}
                found[name] = type(value) if known is type(None) else float if numbers else str
    return {name: str if kind is type(None) else kind for name, kind in found.items()}


def _write_csv(path: Path, columns: Mapping[str, type], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, columns: Mapping[str, type], rows: Iterable[Row]) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ExportError("Parquet needs pyarrow: pip install 'flatwise[parquet]', or export as CSV") from None

    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, types[kind]) for name, kind in columns.items()])
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for some in _chunks(rows):
            converted = [_converted(row, columns) for row in some]
            writer.write_table(pyarrow.Table.from_pylist(converted, schema=schema))


def _converted(row: Row, columns: Mapping[str, type]) -> dict[str, Any]:
    make: Callable[[type, Any], Any] = lambda kind, value: None if value is None else kind(value)  # noqa: E731
    return {name: make(columns[name], value) for name, value in row.items()}


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to, moved there at the end: a reader never sees half of a file.

    After an error, ``path`` is as it was.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise

"""Read a study file. Every error names the file, the line and the field."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flatwise.study.spec import ArmSpec, CellSpec, FinalSpec, PaperSpec, StudyError, StudySpec, TuningSpec

_PART = r"""(?:"(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"^\s*(\[\[?)\s*({_DOTTED})\s*\]")
_KEY = re.compile(rf"^\s*({_DOTTED})\s*=")


def line_of(text: str, location: Sequence[int | str]) -> int | None:
    """The line, from 1, on which a field is written, or the closest table around it; ``None`` if none is found.

    Args:
        text: valid TOML.
        location: keys and positions in lists, from the outside, such as ``("arms", 1, "space", "sigma")``.
    """
    lines = dict(_fields(text))
    parts: tuple[int | str, ...] = tuple(location)
    while parts:
        for known in (parts, (*parts, 0)):  # a table that was written as a list of tables
            if known in lines:
                return lines[known]
        parts = parts[:-1]
    return None


def _fields(text: str) -> list[tuple[tuple[int | str, ...], int]]:
    """Every header and key with its line. Keys inside a value over several lines are not looked into."""
    found: list[tuple[tuple[int | str, ...], int]] = []
    table: tuple[int | str, ...] = ()
    counts: dict[tuple[int | str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _place(_names(header[2]), counts)
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            found.append((table, number))
        elif key := _KEY.match(line):
            found.append(((*table, *_names(key[1])), number))
    # Of a key and its dotted siblings the first line counts.
    return found[::-1]


def _place(names: tuple[str, ...], counts: dict[tuple[int | str, ...], int]) -> tuple[int | str, ...]:
    """``[arms.space]`` after the second ``[[arms]]`` is ``("arms", 1, "space")``."""
    place: tuple[int | str, ...] = ()
    for index, name in enumerate(names):
        place = (*place, name)
        if index < len(names) - 1 and place in counts:
            place = (*place, counts[place])
    return place


def _names(dotted: str) -> tuple[str, ...]:
    """The parts of a dotted key; quoted ones may have dots and escapes of their own."""
    return tuple(_plain(part) for part in re.findall(_PART, dotted))


def _plain(part: str) -> str:
    if not part.startswith('"'):
        return part.strip("'")
    try:
        return str(json.loads(part))
    except ValueError:  # an escape that TOML has and JSON has not
        return part.strip('"')


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_study(path: Path) -> StudySpec:
    """Reads and checks a study file.

    Args:
        path: a TOML file.

    Raises:
        StudyError: it cannot be read, is not TOML, or does not describe a study.
    """
    return parse_study(read_study_text(path), name=_name_of(path), source=str(path))


def read_study_text(path: Path) -> str:
    """The text of a study file.

    Args:
        path: a TOML file.

    Raises:
        StudyError: it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise StudyError(f"cannot read the study file {path}: {error.strerror}") from None


def parse_study(text: str, *, name: str, source: str) -> StudySpec:
    """Checks the text of a study file.

    Args:
        text: its content.
        name: the study's name where the file gives none.
        source: what messages call the file.

    Raises:
        StudyError: as for :func:`read_study`.
    """
    try:
        content = tomllib.loads(text)
    except ValueError as error:  # a number of thousands of digits is one that is no TOMLDecodeError
        raise StudyError(f"{source} is not valid TOML: {error}") from None
    except RecursionError:
        raise StudyError(f"{source} is not a study: its lists or tables are nested too deeply") from None
    try:
        return StudySpec.model_validate({"name": name, **content})
    except ValidationError as error:
        raise StudyError("; ".join(_problem(source, text, content, each) for each in _own(error.errors()))) from None


def _name_of(path: Path) -> str:
    """The file's name as a study's: nobody wrote it as one, so what a name cannot have is replaced, not refused."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-") or "study"


def _problem(source: str, text: str, content: Mapping[str, Any], details: Any) -> str:
    """One problem as ``studies/x.toml, line 7: tuning.sampler = 'gird': ...``."""
    location = [part for part in details["loc"] if not str(part).startswith("function-")]
    if "cells" not in content and location[:2] == ["cells", 0]:
        location = location[2:]  # `task = "..."` stands for one cell
    line = line_of(text, location or _named_in(str(details["msg"]), content))
    place = source if line is None else f"{source}, line {line}"
    field = ".".join(part if part.isprintable() else repr(part) for part in map(str, location))
    message = str(details["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if details["type"] == "extra_forbidden":
        return f"{place}: there is no field {field}{_hint(location)}"
    if details["type"] == "missing":
        return f"{place}: {field} is missing"
    if details["type"] == "too_short":
        return f"{place}: {field} is empty: give it at least one value"
    value = details["input"]
    shown = f" = {value!r}" if isinstance(value, (str, int, float, bool)) else ""
    return f"{place}: {field}{shown}: {message}" if field else f"{place}: {message}"


def _own(problems: Sequence[Any]) -> list[Any]:
    """The problems that are not others' consequence: a list whose every item is wrong is called empty as well."""
    inner = {tuple(each["loc"][:1]) for each in problems if len(each["loc"]) > 1}
    return [each for each in problems if each["type"] != "too_short" or tuple(each["loc"]) not in inner]


def _named_in(message: str, content: Mapping[str, Any]) -> list[int | str]:
    """Where a message on the whole study points to: an arm that it names, else its first field or table."""
    arms = content.get("arms", [])
    for position, arm in enumerate(arms if isinstance(arms, list) else []):
        if isinstance(arm, dict) and f"arm {arm.get('name', arm.get('method'))!r}" in message:
            return ["arms", position]
    found = re.search(rf"\b({'|'.join(StudySpec.model_fields)}|task)\b((?:\.\w+)*)", message)
    return [] if found is None else [*found[0].split(".")]


_TABLES: dict[str, type[BaseModel]] = {
    "cells": CellSpec,
    "arms": ArmSpec,
    "tuning": TuningSpec,
    "final": FinalSpec,
    "paper": PaperSpec,
}


def _hint(location: Sequence[int | str]) -> str:
    """The closest field of the same table."""
    inner = [part for part in location[:-1] if isinstance(part, str)]
    if inner and inner[-1] not in _TABLES:
        return ""
    fields = list((_TABLES[inner[-1]] if inner else StudySpec).model_fields)
    close = difflib.get_close_matches(str(location[-1]), fields, n=1)
    return f", did you mean {close[0]}?" if close else f"; there are {', '.join(fields)}"

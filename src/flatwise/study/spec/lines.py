"""The line of a field in a TOML file: the parser says what is there, not where."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

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

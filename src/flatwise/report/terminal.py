"""The comparison on the terminal: two tables and a sentence for each method."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flatwise.report.comparison import comparison_table, control_table, has_controls, summary_lines, warnings
from flatwise.report.flatness import flatness_headline, method_lines
from flatwise.study.comparison import Comparison

# What an encoding such as Windows' cp1252 or ASCII lacks of what we print; a minus must not become a question mark.
_PLAIN = dict(zip("−–—‑≈×÷·•′✓", "----~x/|*'v", strict=True)) | {
    "±": "+-",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "σ": "sigma",
    "β": "beta",
    "α": "alpha",
    "…": "...",
    "²": "^2",
    "↓": "down",
    "↑": "up",
}
PLAIN = "flatwise_plain"  # error handler that replaces characters which an encoding lacks


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in missing), error.end


codecs.register_error(PLAIN, _replaced)


class _Replacing:
    """A text file that is written with replacements for what its encoding lacks."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, text: str) -> int:
        encoding = self._file.encoding
        self._file.write(text.encode(encoding, PLAIN).decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def terminal(*, stderr: bool = False) -> Console:
    """The console to print to. Output in an encoding that lacks a character never fails: see :data:`PLAIN`."""
    file = sys.stderr if stderr else sys.stdout
    encoding = getattr(file, "encoding", None)
    if encoding is None or codecs.lookup(encoding).name.startswith("utf"):
        return Console(stderr=stderr)
    return Console(file=_Replacing(file))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Written:
    """The result of writing a page.

    Attributes:
        page: its path; ``None`` if it could not be written.
        line: the same in words, for the terminal.
    """

    page: Path | None
    line: str


def written(write: Callable[[], Path]) -> Written:
    """Write a page. If the disk is full or the folder read-only, say so instead of raising.

    Args:
        write: writes the page and returns its path.
    """
    try:
        page = write()
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return Written(None, f"No report was written: cannot write{where}: {error.strerror or error}. Trials are kept.")
    return Written(page, f"Report: {page}")


def show(comparison: Comparison, console: Console) -> None:
    """Prints a comparison.

    Args:
        comparison: what to print.
        console: where.
    """
    console.print(comparison_table(comparison))
    if has_controls(comparison):
        console.print(control_table(comparison))
    for line in warnings(comparison):
        console.print(f"! {line}", highlight=False, markup=False, style="yellow")
    for line in summary_lines(comparison):
        console.print(f"• {line}", highlight=False, markup=False)
    if comparison.flatness is not None:
        console.print("\nFlatness (lower is flatter; it does not decide whether a method helps)", style="bold")
        console.print(flatness_headline(comparison, comparison.flatness), highlight=False, markup=False)
        for name, line in method_lines(comparison, comparison.flatness):
            console.print(f"• {name}: {line}", highlight=False, markup=False)

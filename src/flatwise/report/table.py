"""Numbers as text, and tables of them: one value for a table, rendered for the terminal, in a page or as Markdown.

The page's renderer is the macro ``table`` in ``templates/macros.html.jinja``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import rich.table
from rich import box
from rich.text import Text

NOTHING = "—"

# How a line of a cell looks on the terminal, by its look; one without a style, such as "note", is plain.
_STYLES = {
    "helps": "bold green",
    "hurts": "bold red",
    "inconclusive": "yellow",
    "skewed": "yellow",
    "does nothing": "dim",
    "not independent": "bold magenta",
    "not comparable": "bold magenta",
    "not tested": "dim",
    "failed": "bold magenta",
    "strong": "bold",
    "dim": "dim",
    "caution": "yellow",
    "alert": "bold magenta",
}


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a cell.

    Attributes:
        text: what it says. A page escapes it, unless it is :class:`markupsafe.Markup`.
        look: how it is shown: by a verdict, which is a badge on a page, or as ``"strong"``, ``"dim"``,
            ``"caution"``, ``"alert"`` or ``"note"``.
    """

    text: str
    look: str = ""


Cell: TypeAlias = tuple[Line, ...]


def cell(*lines: str | tuple[str, str]) -> Cell:
    """A cell of one or more lines, each a text or a text and its look; empty lines are left out."""
    pairs = [("", line) if isinstance(line, str) else (line[1], line[0]) for line in lines]
    return tuple(Line(text, look) for look, text in pairs if text)


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        header: its header, of one or more lines.
        kind: ``"name"`` for the first column, ``"number"`` for aligned numbers, ``"verdict"``, or ``"text"``.
        label: what stands before the cell on a phone, where a row is a block of lines; default: nothing.
    """

    header: str
    kind: Literal["name", "number", "verdict", "text"] = "number"
    label: str = ""


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """How an arm is drawn: a colour, and a plotly dash pattern."""

    color: str
    dash: str


@dataclass(frozen=True, slots=True)
class Row:
    """A row.

    Attributes:
        cells: one per column.
        kind: ``"group"`` for the heading of the rows that follow, else how the row looks: what an arm is, or
            ``"chosen"``.
        style: how the figures draw the arm, if they do.
    """

    cells: tuple[Cell, ...]
    kind: str = ""
    style: ArmStyle | None = None


def row(*cells: str | Cell, kind: str = "", style: ArmStyle | None = None) -> Row:
    """A row of texts and cells."""
    return Row(tuple(cell(each) if isinstance(each, str) else each for each in cells), kind, style)


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        columns, rows: its content.
        title, note: what stands above it and below it.
        spaced: whether the terminal leaves an empty line between rows.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    title: str = ""
    note: str = ""
    spaced: bool = False

    def __rich__(self) -> rich.table.Table:
        """The table for the terminal: readable at 80 columns, with nothing cut off."""
        table = rich.table.Table(
            title=self.title or None,
            title_justify="left",
            title_style="bold",
            caption=self.note or None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            show_edge=False,
            leading=int(self.spaced),
        )
        for index, column in enumerate(self.columns):
            table.add_column(
                Text(column.header),
                justify="right" if column.kind == "number" else "left",
                overflow="fold" if column.kind == "name" else "ellipsis",
                min_width=_width(column.kind, [row.cells[index] for row in self.rows]),
            )
        for index, row in enumerate(self.rows):
            if row.kind == "group" and index:
                table.add_row()
            table.add_row(*map(_text, row.cells))
        return table

    def to_markdown(self) -> str:
        """The table as Markdown, without its title and its note."""
        lines = [[cell(column.header) for column in self.columns], *(row.cells for row in self.rows)]
        header, *body = [f"| {' | '.join(map(_markdown, cells))} |" for cells in lines]
        return "\n".join([header, f"|{'---|' * len(self.columns)}", *body])


def _width(kind: str, cells: Sequence[Cell]) -> int:
    """What the terminal must leave a column: no number breaks, a verdict and a word of a name only if they are long."""
    lines = [part for each in cells for line in each for part in line.text.split("\n")]
    first = [each[0].text for each in cells if each]
    words = [word for text in first for word in text.split()]
    return {
        "number": max(map(len, lines), default=0),
        "name": min(16, max(map(len, words), default=0)),
        "verdict": min(16, max(map(len, ["inconclusive", *first]))),
        "text": 0,
    }[kind]


def _text(cell: Cell) -> Text:
    """A cell for the terminal. Never a ``str``: rich would read ``[red]`` in one as markup."""
    return Text("\n").join(Text(line.text, style=_STYLES.get(line.look, "")) for line in cell)


def _markdown(cell: Cell) -> str:
    return "<br>".join(line.text.replace("|", "\\|").replace("\n", "<br>") for line in cell)


# Numbers as text


def number(value: float, places: int, signed: bool = False) -> str:
    """``value`` with ``places`` decimals and a typographic minus; a dash where it is not finite.

    Args:
        value: the number.
        places: decimals.
        signed: write ``+`` in front of a positive number. A number that rounds to zero never has a sign.
    """
    if not math.isfinite(value):
        return NOTHING
    text = f"{value:{'+' if signed else ''}.{places}f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def number_of(value: float) -> str:
    """``value`` with four digits, where no spread says how many matter; a dash where it is not finite."""
    return f"{value:.4g}".replace("-", "−") if math.isfinite(value) else NOTHING


def mean_and_sd(mean: float, sd: float, places: int) -> str:
    """``"8.71 ± 0.15"``; the mean alone where there is no standard deviation."""
    known = math.isfinite(mean) and math.isfinite(sd)
    return f"{number(mean, places)} ± {number(sd, places)}" if known else number(mean, places)


def interval(low: float, high: float, places: int) -> str:
    """``"−0.61 to −0.23"``; empty where a bound is not finite."""
    bounds = [number(bound, places, signed=True) for bound in (low, high)]
    return "" if NOTHING in bounds else " to ".join(bounds)


def p_value(p: float) -> str:
    """A p value with three decimals, such as ``"0.016"``; ``"<0.001"`` below that, a dash where nothing was tested."""
    if not math.isfinite(p):
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """``"p = 0.016"`` or ``"p <0.001"``."""
    text = p_value(p)
    return f"p {text if text.startswith('<') else f'= {text}'}"


def decimals_of(spreads: Iterable[float]) -> int:
    """Decimals that show a typical standard deviation with two digits: one number for a whole table.

    Returns:
        Between 0 and 8; 2 where no standard deviation is above 0.
    """
    known = sorted(sd for sd in spreads if math.isfinite(sd) and sd > 0)
    if not known:
        return 2
    return min(8, max(0, 1 - math.floor(math.log10(known[len(known) // 2]))))


def with_unit(text: str, unit: str) -> str:
    """``text`` followed by ``unit``, where there is one."""
    return f"{text} {unit}" if unit else text


def labelled(name: str, unit: str, gap: str = " ") -> str:
    """``"test_error (%)"``: a name with its unit in brackets, where there is one."""
    return f"{name}{gap}({unit})" if unit else name


def listing(names: Iterable[str]) -> str:
    """``"a, b and c"``; empty for no name."""
    *head, last = [*names] or [""]
    return f"{', '.join(head)} and {last}" if head else last


def plural(count: int, noun: str) -> str:
    """``"1 cell"``, ``"3 cells"``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

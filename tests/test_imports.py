"""No two files of the source import each other, however far round: a file can be read after those that it imports."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src", ROOT / "papers" / "src"


def modules(sources):
    """Every module's file by its dotted name."""
    found = {}
    for source in sources:
        for file in source.rglob("*.py"):
            name = ".".join(file.relative_to(source).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


def imported(file, known):
    """The modules that a file imports anywhere in it, also for the type checker alone."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module in known:
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield inner if inner in known else node.module


def cycle(sources):
    known = modules(sources)
    try:
        graphlib.TopologicalSorter({name: {*imported(file, known)} for name, file in known.items()}).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_file_imports_itself_in_a_circle():
    assert cycle(SOURCES) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from pack.b import x", True),
        ("from pack import b", True),
        ("def late():\n    import pack.b", True),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack.b import x", True),
        ("import os", False),
    ],
)
def test_a_circle_is_found(tmp_path, text, found):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "a.py").write_text(text)
    (tmp_path / "pack" / "b.py").write_text("import pack.c")
    (tmp_path / "pack" / "c.py").write_text("from pack.a import y")
    assert (cycle([tmp_path]) is not None) == found

"""Both distributions name the packages that they import, and this one has its files inside."""

import ast
import re
import sys
from importlib import resources
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
# Packages whose distribution has another name, and those that always come with another one that is named.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}
COME_WITH = {"llvmlite": "numba", "markupsafe": "jinja2", "pydantic_core": "pydantic", "typing_extensions": "torch"}


def declared(pyproject):
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    return {re.match(r"[\w.-]+", name)[0] for name in wanted} | {project["name"]}


def imported(folder):
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (name.name.partition(".")[0] for name in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield node.module.partition(".")[0]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "papers"], ids=["flatwise", "flatwise-papers"])
def test_what_is_imported_is_a_dependency(folder):
    names = {name for name in imported(folder / "src") if name not in sys.stdlib_module_names}
    needed = {DISTRIBUTIONS.get(name, COME_WITH.get(name, name)).replace("_", "-") for name in names}
    available = declared(folder / "pyproject.toml")
    if folder.name == "papers":
        assert "flatwise" in available
        available |= declared(ROOT / "pyproject.toml")
    assert needed <= available


def test_nothing_is_a_dependency_that_is_not_imported():
    """Of flatwise-papers; flatwise has extras for its tests."""
    names = {DISTRIBUTIONS.get(name, name).replace("_", "-") for name in imported(ROOT / "papers" / "src")}
    assert declared(ROOT / "papers" / "pyproject.toml") <= names


def test_data_files_are_inside_the_package():
    package = resources.files("flatwise_papers")
    for name in ("replication/paper_tables.csv", "replication/templates/ledger.html.jinja", "py.typed"):
        assert package.joinpath(name).is_file(), name
    assert sum(file.name.endswith(".toml") for file in package.joinpath("replication/studies").iterdir()) == 28

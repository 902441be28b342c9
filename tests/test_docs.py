"""Every Python block of the README and the docs is run, page by page, in the order it is read."""

import linecache
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flatwise
from flatwise.study.check import check_study
from flatwise.study.study_file import parse_study

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A block that shows a fragment, or needs several processes, says so in the line before it.
NOT_RUN = "<!-- not run: "


def blocks(page):
    text = page.read_text()
    for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        line_before = text[: match.start()].rstrip().rsplit("\n", 1)[-1]
        if not line_before.startswith(NOT_RUN):
            yield text.count("\n", 0, match.start()) + 1, match[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_of_the_docs_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "docs"}
    for line, code in blocks(page):
        padded = "\n" * line + code  # so that an error names the page's own line
        file = f"{page.name}:{line}"
        # As in a notebook: inspect finds the source of what is defined here.
        linecache.cache[file] = (len(padded), None, padded.splitlines(keepends=True), file)
        exec(compile(padded, file, "exec"), names)


def test_the_readme_is_well_typed(tmp_path):
    """Strictly, as `make test` checks the package just before, whose cache makes it quick."""
    code = "\n".join(code for _, code in blocks(ROOT / "README.md"))
    code = code.replace("def train(trial):", "def train(trial: flatwise.Trial) -> None:")
    code = code.replace("    loss.backward()", "    loss.backward()  # type: ignore[no-untyped-call]")  # torch's own
    (tmp_path / "readme.py").write_text(code)
    options = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, tmp_path / "readme.py"],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_study_files_of_the_docs_are_studies():
    found = [
        block for page in PAGES for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), flags=re.M | re.S)
    ]
    assert found
    for text in found:
        check_study(parse_study(text, name="docs", source="docs"))


def test_the_task_of_the_docs_makes_a_study(tmp_path, monkeypatch):
    """What docs/studies.md says about a task of one's own, done as it says it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (_, code), *_ = blocks(ROOT / "docs" / "studies.md")
    (tmp_path / "my_tasks.py").write_text(code)
    file = tmp_path / "ridge.toml"
    file.write_text(
        'task = "my_tasks:RIDGE"\n'
        '[[arms]]\nmethod = "vanilla"\nspace.learning_rate = [0.05, 0.1]\n'
        '[[arms]]\nmethod = "leap"\nspace.sigma = [0.1, 0.5]\n'
    )
    (cell,) = flatwise.run_study(file, quiet=True).cells
    assert [tuned.configurations for tuned in cell.tuned] == [
        ({"learning_rate": 0.05}, {"learning_rate": 0.1}),
        ({"sigma": 0.1}, {"sigma": 0.5}),
    ]
    assert cell.comparison.arms[0].n == 10
    assert (tmp_path / "runs" / "ridge" / "report.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name} links to {target}#{anchor}"


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

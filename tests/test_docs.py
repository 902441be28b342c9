"""Every Python block of the README and the docs is run, page by page, in the order it is read."""

import linecache
import re
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"

"""The pages in a real browser: nothing complains, every figure is drawn, nothing runs over the edge, links lead on.

Needs Chromium: ``CHROMIUM``, or the first found on the path. Without one the tests are skipped, unless
``FLATWISE_REQUIRE_BROWSER=1``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import report_samples
import study_samples
from browser import Browser, find_browser
from flatwise.report.page import render_cell, write_page, write_study_report
from flatwise_papers.replication.section import LedgerSection

PHONE, DESK = 375, 1280

# Figures without content, elements beyond the right edge that do not scroll in a box of their own, and tiny text.
UNDRAWN = """[...document.querySelectorAll(".plot")].filter(plot => {
  const box = plot.querySelector("svg.main-svg")?.getBoundingClientRect();
  const content = plot.querySelector(".plot-container .scatterlayer .trace path, .plot-container .heatmaplayer image");
  return !box || box.width < 150 || box.height < 80 || !content;
}).map(plot => plot.id)"""
TOO_WIDE = """[...document.querySelectorAll("body *")].filter(element =>
  element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(".scroll, svg, .plot")
).map(element => `${element.tagName}.${element.className}`)"""
TINY = """[...document.querySelectorAll("main *")].filter(element =>
  [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.textContent.trim())
  && parseFloat(getComputedStyle(element).fontSize) < 10
).map(element => `${element.tagName}.${element.className.baseVal ?? element.className}: ${element.textContent}`)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_browser()
    if executable is None:
        message = "no Chromium is on the path: install it (apt-get install chromium), or name it in CHROMIUM"
        if os.environ.get("FLATWISE_REQUIRE_BROWSER") == "1":
            pytest.fail(message)
        pytest.skip(message)
    with Browser(executable) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    study = study_samples.study()
    overview = write_study_report(
        study, study_samples.results(study), folder, [LedgerSection(study_samples.ledger(study))]
    )
    sampled = study_samples.study("tpe")
    waiting = folder / "waiting.html"
    page = render_cell(sampled, study_samples.sampled_result(sampled))
    assert page is not None
    waiting.write_text(page, encoding="utf-8")
    return {
        "overview": overview,
        "cell": folder / "cells" / "digits-mlp.html",
        "waiting cell": waiting,
        "comparison": write_page(report_samples.sample(), folder / "comparison.html"),
    }


def test_a_page_without_its_program_says_so(browser, pages, tmp_path):
    alone = tmp_path / "cell.html"
    alone.write_bytes(pages["cell"].read_bytes())
    browser.open(alone)
    assert browser.evaluate("document.querySelector('.plot').textContent").startswith("This figure needs the file")
    said, browser.complaints[:] = list(browser.complaints), []
    assert said == ["Failed to load resource: net::ERR_FILE_NOT_FOUND"]


@pytest.mark.parametrize("name", ["overview", "cell", "waiting cell", "comparison"])
def test_page_is_drawn_whole_on_a_phone_and_on_a_desk(browser, pages, name):
    browser.resize(PHONE)
    browser.open(pages[name])
    assert browser.evaluate("document.querySelectorAll('.plot').length") > 0
    for width in (PHONE, DESK):  # the open page follows its window
        browser.resize(width)
        assert browser.complaints == []
        assert browser.evaluate("innerWidth") == width  # a phone zooms out of a page that is too wide
        assert browser.evaluate(UNDRAWN) == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate(TOO_WIDE) == []
        assert browser.evaluate(TINY) == []


def test_details_open_without_running_over_the_edge(browser, pages):
    browser.resize(PHONE)
    browser.open(pages["cell"])
    opened = "[...document.querySelectorAll('details')].map(each => each.open = true).length"
    assert browser.evaluate(opened) == 4  # the baseline and three arms
    assert browser.evaluate("document.documentElement.scrollWidth") <= PHONE
    assert browser.evaluate(TOO_WIDE) == []


def test_links_lead_to_the_cells_and_back(browser, pages):
    browser.resize(DESK)
    browser.open(pages["overview"])
    links = "[...document.querySelectorAll('a')].map(link => new URL(link.href).pathname.split('/').pop())"
    targets = set(browser.evaluate(links))
    assert targets == {path.name for path in (pages["overview"].parent / "cells").iterdir()}
    (odd,) = targets - {"digits-mlp.html"}
    browser.click(f"a[href$='{odd}']")
    assert browser.evaluate("location.pathname").endswith(f"/cells/{odd}")
    assert browser.evaluate(UNDRAWN) == []
    browser.click("nav a")
    assert browser.evaluate("location.pathname").endswith("/report.html")
    assert browser.complaints == []


def test_arms_can_be_hidden(browser, pages):
    browser.resize(DESK)
    browser.open(pages["comparison"])
    shown = "document.querySelector('.curves .plot').data.filter(trace => trace.visible !== false).length"
    before = browser.evaluate(shown)
    browser.evaluate("document.querySelector('.legend button[data-arm=leap]').click()")
    assert browser.evaluate(shown) == before - 3  # the mean and the two edges of the band
    browser.evaluate("document.querySelector('.legend [data-all]').click()")
    assert browser.evaluate(shown) == before
    assert browser.complaints == []


def test_what_is_wrong_is_seen(browser, tmp_path):
    """The checks above can fail."""
    browser.resize(PHONE)
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<meta name=viewport content='width=device-width'><main><div class=plot id=empty></div>"
        "<p style='width: 2000px; font-size: 5px'>small</p></main><script>console.error('one'); missing()</script>"
    )
    browser.open(bad)
    said, browser.complaints[:] = list(browser.complaints), []
    assert said[0] == "one"
    assert "missing is not defined" in said[1]
    assert browser.evaluate(UNDRAWN) == ["empty"]
    assert browser.evaluate(TOO_WIDE) == ["P."]
    assert browser.evaluate(TINY) == ["P.: small"]
    assert browser.evaluate("document.documentElement.scrollWidth") > PHONE

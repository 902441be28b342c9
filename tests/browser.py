"""Headless Chromium for tests, spoken to over a pipe in the DevTools protocol: no driver and no package is needed.

Run as a program it takes a picture of a page::

    python tests/browser.py runs/demo/report.html report.png --width 1280
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # as root there is none; the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def find_browser() -> str | None:
    """The browser that ``CHROMIUM`` names, else the first on the path."""
    given = os.environ.get("CHROMIUM")
    return given or next((found for name in _NAMES if (found := shutil.which(name))), None)


class BrowserError(RuntimeError):
    """The browser does not do what it was asked for."""


class Browser:
    """One tab of a headless browser. A context manager.

    Attributes:
        complaints: what the console said that is an error or a warning, and every uncaught exception.
    """

    def __init__(self, executable: str, timeout: float = 30.0) -> None:
        self.complaints: list[str] = []
        self._timeout = timeout
        self._numbers = itertools.count(1)
        self._loaded = False
        self._rest = b""
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        # The browser reads commands from file 3 and answers on file 4.
        self._process = subprocess.Popen(
            [
                *("sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1', "sh"),
                *(executable, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._session: str | None = None
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session = None
            self._ask("Browser.close")
            self._process.wait(timeout=10)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._profile.cleanup()

    def resize(self, width: int, height: int = 900) -> None:
        """A window of so many CSS pixels; below 600 a phone's, which obeys the page's viewport. Figures follow."""
        self._ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        # Plotly waits for 0.1 s without a further change of size.
        self.evaluate("new Promise(done => setTimeout(() => requestAnimationFrame(done), 250))")

    def open(self, path: Path) -> None:
        """Opens a file and waits until it and its figures are there."""
        self._loaded = False
        self._ask("Page.navigate", url=path.resolve().as_uri())
        self._wait_until_loaded()

    def click(self, selector: str) -> None:
        """Clicks a link and waits for the page that it opens."""
        self._loaded = False
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")
        self._wait_until_loaded()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(_exception(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def picture(self, path: Path, *, height: int | None = None) -> None:
        """Saves the whole page as PNG, or its first ``height`` pixels."""
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        area = {"x": 0, "y": 0, "width": size["width"], "height": height or size["height"], "scale": 1}
        answer = self._ask("Page.captureScreenshot", clip=area, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _wait_until_loaded(self) -> None:
        end = time.monotonic() + self._timeout
        while not self._loaded:
            self._take(self._receive(end))
        # Two frames: the figures draw in the first, and follow their boxes' size in the second.
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\0")
        except BrokenPipeError:
            raise BrowserError(f"the browser ended with status {self._process.wait()}") from None
        end = time.monotonic() + self._timeout
        while (answer := self._receive(end)).get("id") != number:
            self._take(answer)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    def _receive(self, end: float) -> dict[str, Any]:
        """The next message, whatever it is."""
        stream = self._process.stdout
        assert stream is not None
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while b"\0" not in self._rest:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise BrowserError(f"the browser did not answer within {self._timeout:g} s")
                piece = os.read(stream.fileno(), 1 << 20)
                if not piece:
                    raise BrowserError(f"the browser ended with status {self._process.wait()}")
                self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(message))

    def _take(self, event: dict[str, Any]) -> None:
        what, content = event.get("method"), event.get("params", {})
        if what == "Page.loadEventFired":
            self._loaded = True
        elif what == "Runtime.exceptionThrown":
            self.complaints.append(_exception(content["exceptionDetails"]))
        elif what == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert"):
            self.complaints.append(" ".join(str(item.get("value", item)) for item in content["args"]))
        elif what == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.complaints.append(content["entry"]["text"])


def _exception(details: dict[str, Any]) -> str:
    return str(details.get("exception", {}).get("description") or details["text"])


def main() -> None:
    """Takes a picture of a page."""
    parser = argparse.ArgumentParser(description="Take a picture of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, help="of the picture; default: the whole page")
    given = parser.parse_args()
    executable = find_browser()
    if executable is None:
        parser.error("no Chromium: install it, or name it in CHROMIUM")
    with Browser(executable) as browser:
        browser.resize(given.width)
        browser.open(given.page)
        browser.picture(given.image, height=given.height)


if __name__ == "__main__":
    main()

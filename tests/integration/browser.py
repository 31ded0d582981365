"""Chromium, driven through its debugging pipe: what a person would do with the mouse, fingers and keys, and see."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from parts import required, stop
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

BROWSER = shutil.which("chromium")
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    # Its own services are not to be looked for.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]
SECONDS = 60
"""Longer than anything here takes, also on a busy machine."""


class Tab:
    """One page; what it writes to the console, and what it asks the network for, is kept."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._buffer = b""
        self._last = 0
        self._session: str | None = None
        self.console: list[str] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Send one command and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], SECONDS)
            assert ready, "the browser does not answer"
            piece = os.read(self._reading, 1 << 20)
            assert piece, "the browser has gone"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.consoleAPICalled":
                self.console.append(str([item.get("value") for item in params["args"]]))
            case "Runtime.exceptionThrown":
                self.console.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.console.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
        return message

    def js(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + SECONDS
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.03)
        return value

    def open(self, address: str, size: tuple[int, int], *, touch: bool = False, dark: bool = False) -> None:
        """Open a page in a window of so many columns and rows and wait until its map is drawn."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=touch
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        # A change of the fragment alone would not load the page again.
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.until(f"location.href !== 'about:blank' && {DRAWN}")

    def rest(self) -> None:
        """Wait until the map is drawn and the address says what it shows."""
        # Longer than the map waits before it notes the address.
        self.js("new Promise((done) => setTimeout(done, 350))")
        self.until(DRAWN)

    def mouse(self, kind: str, x: float, y: float, **params: Any) -> None:
        """Send one event of the mouse."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **params)

    def click(self, x: float, y: float, times: int = 1) -> None:
        """Click with the left button."""
        for count in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                self.mouse(kind, x, y, button="left", clickCount=count)
        self.rest()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the left button, in steps."""
        self.mouse("mousePressed", *start, button="left", clickCount=1)
        for step in range(1, 9):
            x, y = (a + (b - a) * step / 8 for a, b in zip(start, end, strict=True))
            self.mouse("mouseMoved", x, y, button="left", buttons=1)
        self.mouse("mouseReleased", *end, button="left", clickCount=1)
        self.rest()

    def wheel(self, x: float, y: float, down: float) -> None:
        """Turn the wheel."""
        self.mouse("mouseWheel", x, y, deltaX=0, deltaY=down)
        self.rest()

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """Send the places of all fingers."""
        fingers = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=fingers)

    def key(self, key: str) -> None:
        """Press one key."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.rest()

    def picture(self) -> np.ndarray:
        """Return what is seen, ``(rows, columns, 3)``."""
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with MemoryFile(png) as memory, memory.open() as dataset:
                return np.moveaxis(dataset.read([1, 2, 3]), 0, -1)

    def shot(self, path: Path) -> None:
        """Keep what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


DRAWN = "document.readyState === 'complete' && document.querySelector('#map-stage')?.dataset.waiting === 'false'"


@contextmanager
def browsing(folder: Path) -> Iterator[Tab]:
    """Yield an empty tab of a browser without a past."""
    required(BROWSER is not None, "chromium")
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()
    command = [str(BROWSER), *QUIET, f"--user-data-dir={folder / 'profile'}", "--remote-debugging-pipe"]
    # The browser reads from descriptor 3 and writes to 4; a plain sh knows no descriptors of two digits.
    shell = ["bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash", *command]
    log = (folder / "browser.log").open("wb")
    with log:
        process = subprocess.Popen(shell, pass_fds=(to_browser, from_browser), stdout=log, stderr=log)
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Tab(reading, writing)
    finally:
        os.close(writing)
        os.close(reading)
        stop(process)

"""Chromium without a window, driven over its debugging pipe: standard library only, no network."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium_path() -> str | None:
    """The first Chromium on the PATH, or the one that CHROMIUM names."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """``with Browser(profile_folder) as browser``: one page at a time."""

    def __init__(self, profile: Path):
        self.profile = profile

    def __enter__(self) -> "Browser":
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        flags = (
            "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe"
        )
        command = f'exec "$0" {flags} "--user-data-dir={self.profile}" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", command, chromium_path()],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number, self._buffer, self._session = 0, b"", None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **parameters) -> dict:
        """The result of one command of the debugging protocol; events in between are passed over."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._buffer:
                received = os.read(self._in, 1 << 20)
                assert received, "the browser went away"
                self._buffer += received
            head, self._buffer = self._buffer.split(b"\0", 1)
            reply = json.loads(head)
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]

    def open(self, url: str) -> None:
        """Load a page whole."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(url.split('#')[0])})")

    def run(self, expression: str):
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.02)

    def key(self, key: str) -> None:
        """Press and release a key, as a person would."""
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Set the window's size in CSS pixels and the colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


_LEAST_CONTRAST = """(() => {
    const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const pixel = (color) => {
      context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1);
      return [...context.getImageData(0, 0, 1, 1).data];
    };
    const luminance = (color) => pixel(color).slice(0, 3).map((part) => part / 255)
      .map((part) => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
      .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
    const ground = (e) => {
      while (pixel(getComputedStyle(e).backgroundColor)[3] === 0) e = e.parentElement;
      return e;
    };
    const seen = SEEN;
    return seen.flatMap((selector) => [...document.querySelectorAll(selector)].slice(0, 400).map((e) => {
      const [a, b] = [luminance(getComputedStyle(e).color), luminance(getComputedStyle(ground(e)).backgroundColor)];
      return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), selector];
    })).sort((a, b) => a[0] - b[0])[0];
})()"""


def contrast_of(browser: Browser, selectors: Sequence[str]) -> tuple[float, str]:
    """The least contrast (WCAG 2.2) of text and ground among the first elements of each selector, and which it is."""
    return tuple(browser.run(_LEAST_CONTRAST.replace("SEEN", json.dumps(list(selectors)))))


def unnamed_controls(browser: Browser) -> int:
    """How many controls and regions have nothing that a screen reader could call them by."""
    return browser.run(
        """[...document.querySelectorAll('button, select, input, a, summary, [role=region]')].filter((e) =>
        !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length))).length"""
    )

"""A headless Chromium for tests, spoken to over the DevTools protocol: real clicks and keys, no driver to install."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Page:
    """One tab."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._last = 0
        self.complaints: list[str] = []  # errors in its console, breaches of the security policy included

    def do(self, method: str, **parameters: Any) -> Any:
        """Run a command of the protocol."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._last:
                assert "error" not in message, message
                return message["result"]
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.complaints.append(message["params"]["entry"]["text"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(message["params"]["exceptionDetails"]))

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> Any:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < end, f"never true: {expression}\n{self.value('document.body.innerText')}"
            time.sleep(0.02)
        return found

    def open(self, url: str, width: int, height: int = 900, dark: bool = False) -> None:
        """Go to a page, in a window of this size."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.do("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && document.body.dataset.ready === 'yes'")

    def click(self, selector: str) -> None:
        """Press the left button in the middle of an element."""
        self.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        x, y = self.value(f"[{box}.x + {box}.width / 2, {box}.y + {box}.height / 2]")
        for kind in ("mousePressed", "mouseReleased"):
            self.do("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Write where the focus is."""
        self.do("Input.insertText", text=text)

    def press(self, key: str, code: int, modifiers: int = 0) -> None:
        """Press a key: its name, its virtual key code, and 2 for Ctrl."""
        more = {"text": "\r"} if key == "Enter" and not modifiers else {}
        one = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.do("Input.dispatchKeyEvent", type="keyDown", **one, **more)
        self.do("Input.dispatchKeyEvent", type="keyUp", **one)

    def picture(self, file: Path) -> None:
        """Take a screenshot of the whole page."""
        shot = self.do("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A tab in a Chromium of its own; ``folder`` is for its profile. Skips the test where there is none."""
    binary = next((found for name in NAMES if (found := shutil.which(name))), None)
    if binary is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)}")
    client = pytest.importorskip("websockets.sync.client", reason="websockets comes with ray[serve]")
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions", "--mute-audio"]
    more = ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--disable-dev-shm-usage", "about:blank"]
    process = subprocess.Popen([binary, *switches, *more], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = folder / "DevToolsActivePort"
        end = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert process.poll() is None, "the browser ended"
            assert time.monotonic() < end, "the browser did not start"
            time.sleep(0.05)
        port, path = port_file.read_text().split("\n")[:2]
        import httpx

        tabs = httpx.get(f"http://127.0.0.1:{port}/json/list").json()
        address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
        assert path
        with client.connect(address, max_size=None) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log"):
                page.do(f"{domain}.enable")
            yield page
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

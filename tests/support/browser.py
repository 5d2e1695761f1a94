"""A real browser, driven through two pipes by the DevTools protocol: no driver, no port."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BASH = shutil.which("bash")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or BASH is None, reason="no chromium (or bash to start it) on PATH"
)

_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--remote-debugging-pipe"),
]
_KEYS = {
    "Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), "Home": ("Home", 36, ""),
    "ArrowDown": ("ArrowDown", 40, ""), "PageDown": ("PageDown", 34, ""),
    "PageUp": ("PageUp", 33, ""),
}  # fmt: skip


class Browser:
    """One page in a headless Chromium; remembers whatever its console complains of."""

    def __init__(self, profile: Path, *, size=(1280, 1000)):
        ours, theirs = os.pipe(), os.pipe()
        # Above 9, so that neither is one of the two that the browser wants them to be.
        read_end = fcntl.fcntl(ours[0], fcntl.F_DUPFD, 10)
        write_end = fcntl.fcntl(theirs[1], fcntl.F_DUPFD, 10)
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from = ours[1], theirs[0]
        flags = [*_FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
        self.process = subprocess.Popen(
            [BASH, "-c", f'exec "$@" 3<&{read_end} 4>&{write_end}', "bash", CHROMIUM, *flags],
            pass_fds=(read_end, write_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_end)
        os.close(write_end)
        self._number, self._buffer, self.session = 0, b"", None
        self.complaints: list[str] = []
        self._events: list[dict] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, *, timeout=60.0, **params):
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self, deadline):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser is gone"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message)
        return message

    def _note(self, message):
        method, params = message.get("method"), message.get("params", {})
        self._events.append({"method": method, **params})
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", str(details)))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.complaints.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.complaints.append(f"not loaded: {params['errorText']}")

    def open(self, url, *, timeout=60.0):
        """Open a page and wait for its load event; return the seconds that took."""
        self._events.clear()
        start = time.monotonic()
        self.send("Page.navigate", url=url, timeout=timeout)
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._receive(start + timeout)
        return time.monotonic() - start

    def run(self, expression):
        """Value of a JavaScript expression (a promise is waited for)."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression, *, timeout=30.0):
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def press(self, key, *, shift=False):
        """Press a key on the keyboard."""
        code, number, text = _KEYS.get(key) or ("Key" + key.upper(), ord(key.upper()), key)
        values = {
            "key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 * shift
        }  # fmt: skip
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **values)
        self.send("Input.dispatchKeyEvent", type="keyUp", **values)

    def write(self, text):
        """Write text where the cursor is."""
        self.send("Input.insertText", text=text)

    def move(self, x, y):
        """Move the mouse, pixels of the window."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector):
        """Click with the mouse in the middle of an element."""
        box = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2];"
            "})()"
        )
        values = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", **values)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **values)

    def screenshot(self, path: Path):
        """Write what is seen as PNG."""
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def still(self, *, seconds=0.5, timeout=30.0):
        """Wait until what is seen has not changed for a while: moves and fades are over."""
        deadline, before = time.monotonic() + timeout, None
        while (now := self.send("Page.captureScreenshot", format="png")["data"]) != before:
            assert time.monotonic() < deadline, "never still"
            before = now
            time.sleep(seconds)

    def pdf(self):
        """Return what would be printed."""
        return base64.b64decode(
            self.send("Page.printToPDF", timeout=120, printBackground=True)["data"]
        )

    def close(self):
        self.session = None
        with contextlib.suppress(AssertionError, OSError):
            self.send("Browser.close", timeout=5)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._to)
        os.close(self._from)

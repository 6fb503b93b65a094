"""A Chromium without a window, driven over a pipe; nothing has to be downloaded for it."""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 60
KEYS = {
    "Tab": (9, "\t"),
    "Enter": (13, "\r"),
    "ArrowRight": (39, ""),
    "ArrowLeft": (37, ""),
    "ArrowDown": (40, ""),
    " ": (32, " "),
}
CTRL, SHIFT = 2, 8


class Browser:
    """One page. What is asked is Chromium's own protocol: JSON, each message ended by a zero."""

    def __init__(self, reads, writes):
        self._reads, self._writes, self._held = reads, writes, b""
        self._numbers, self._session = itertools.count(1), None
        self.errors = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        told = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = told["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **parameters):
        number = next(self._numbers)
        asked = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            asked["sessionId"] = self._session
        os.write(self._writes, json.dumps(asked).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == number:
                assert "error" not in told, told
                return told["result"]
            wrong = told.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
            self.errors += [told["params"]] if wrong else []

    def _next(self):
        end = time.monotonic() + SECONDS
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._reads], [], [], end - time.monotonic())
            assert ready, "the browser says nothing"
            part = os.read(self._reads, 2**20)
            assert part, "the browser has gone"
            self._held += part
        one, _, self._held = self._held.partition(b"\0")
        return json.loads(one)

    def js(self, expression):
        """What an expression gives, on the page."""
        told = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression):
        end = time.monotonic() + SECONDS
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"it did not come about: {expression}"
            time.sleep(0.05)
        return value

    def press(self, key, modifiers=0):
        code, text = KEYS[key]
        of = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text="" if modifiers else text, **of)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **of)

    def type(self, text):
        self.ask("Input.insertText", text=text)

    def open(self, url, *, width=1100, dark=False):
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.resize(width, 900)
        self.ask("Page.navigate", url=url)
        self.until(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def resize(self, width, height):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)

    def picture(self):
        """All of the page, as PNG."""
        told = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(told["data"])


@contextmanager
def browser(folder):
    """A browser that keeps its files in a folder."""
    pipes = [os.pipe(), os.pipe()]  # what it reads, what it writes
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (pipes[0][0], pipes[1][1])]

    def place():
        os.dup2(theirs[0], 3)
        os.dup2(theirs[1], 4)

    process = subprocess.Popen(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--remote-debugging-pipe",
            f"--user-data-dir={folder}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(3, 4),
        preexec_fn=place,
    )
    for fd in (*theirs, pipes[0][0], pipes[1][1]):
        os.close(fd)
    try:
        yield Browser(pipes[1][0], pipes[0][1])
    finally:
        process.kill()
        process.wait(SECONDS)
        os.close(pipes[1][0])
        os.close(pipes[0][1])

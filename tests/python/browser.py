"""A headless Chromium, spoken to over a pipe in the DevTools protocol: no driver, no library."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome")
# The browser wants its pipes as files 3 and 4.
AS_3_AND_4 = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
KEYS = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    " ": (32, " "),
    **{
        name: (code, "")
        for name, code in (
            ("ArrowLeft", 37),
            ("ArrowUp", 38),
            ("ArrowRight", 39),
            ("ArrowDown", 40),
            ("Home", 36),
            ("End", 35),
        )
    },
}


class Browser:
    """One page. ``said`` collects console messages and errors, ``asked`` what it fetched."""

    def __init__(self, read, write):
        self._read, self._write = read, write
        self._buffer, self._number, self._session = b"", 0, None
        self.said, self.asked = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _receive(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            found = os.read(self._read, 1 << 20)
            if not found:
                raise RuntimeError("the browser has gone")
            self._buffer += found
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        name, told = message.get("method"), message.get("params", {})
        if name in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.said.append(told)
        if name == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        return message

    def send(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(60)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path):
        self.said.clear()
        self.asked.clear()
        self.send("Page.navigate", url=path.as_uri())
        while self.run("document.readyState") != "complete":
            time.sleep(0.02)

    def run(self, script):
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        code, text = KEYS.get(key, (ord(key.upper()[0]), key))
        told = {"key": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **told)
        self.send("Input.dispatchKeyEvent", type="keyUp", **told)

    def size(self, width, height):
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def media(self, kind="", **features):
        told = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items()
        ]
        self.send("Emulation.setEmulatedMedia", media=kind, features=told)

    def picture(self, path):
        found = self.send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def chromium():
    """A browser while the block runs.

    Raises:
        RuntimeError: if none is installed.
    """
    program = next((found for found in map(shutil.which, NAMES) if found), None)
    if program is None:
        raise RuntimeError(
            "[test] expected Chromium, which tests of the report drive; found none "
            "(Debian: apt-get install chromium)"
        )
    to_browser, write = os.pipe()
    read, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = (
            "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-sync "
            "--disable-background-networking --disable-component-update --disable-extensions "
            f"--hide-scrollbars --remote-debugging-pipe --user-data-dir={folder} about:blank"
        )
        pipes = [str(to_browser), str(from_browser)]
        started = subprocess.Popen(
            [sys.executable, "-c", AS_3_AND_4, *pipes, program, *options.split()],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Browser(read, write)
        finally:
            os.close(write)
            os.close(read)
            started.terminate()
            started.wait(20)

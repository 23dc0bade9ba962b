"""A headless Chromium, driven by its DevTools protocol through a pipe: real clicks, keys, drags and downloads."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-pipe",
)
_KEYS = {" ": "Space", "ArrowLeft": "ArrowLeft", "ArrowRight": "ArrowRight", "PageUp": "PageUp", "Enter": "Enter"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def served(command: list[str], folder: Path, port: int, **variables: str) -> Iterator[subprocess.Popen]:
    """Runs a program of Python in a folder, from when it listens on the port until the block ends."""

    def heed_interrupts():  # which a shell's background jobs ignore
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, *command], cwd=folder, env={**os.environ, **variables}, preexec_fn=heed_interrupts
    )
    try:
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert process.poll() is None, f"{command} ended"
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


class Browser:
    """One page of a browser of its own, whose profile and downloads lie in `folder`; a context manager."""

    def __init__(self, folder: Path):
        self.downloads = folder / "downloads"
        self.downloads.mkdir(parents=True)
        reads, self._to = os.pipe()
        self._from, writes = os.pipe()

        def connect():  # Chromium reads from 3 and writes to 4
            high = os.dup(reads), os.dup(writes)
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        command = [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=connect, pass_fds=(3, 4), close_fds=True, **quiet)
        os.close(reads)
        os.close(writes)
        self._buffer, self._count, self._session = b"", 0, None
        (page,) = [one for one in self.call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        target = {"targetId": page["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", **target)["sessionId"]
        self.call("Page.enable")
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        self.resize(900, 700)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **params) -> dict[str, Any]:
        """A command of the protocol, and what it returns; events are passed over, dialogs are confirmed."""
        self._count += 1
        number = self._count
        self._send(number, method, params)
        while True:
            message = self._receive()
            if message.get("method") == "Page.javascriptDialogOpening":
                self._count += 1
                self._send(self._count, "Page.handleJavaScriptDialog", {"accept": True})
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]

    def _send(self, number: int, method: str, params: dict[str, Any]) -> None:
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": number, "method": method, "params": params, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._from, 1 << 20)
            assert read, "the browser ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def run(self, script: str) -> Any:
        """What an expression of JavaScript is worth, awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str, seconds: float = 120) -> None:
        """Until an expression holds; long, for machines with other work to do."""
        until = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < until, f"never became true: {condition}"
            time.sleep(0.05)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int, dark: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def at(self, selector: str, index: int = 0) -> tuple[float, float]:
        """The middle of an element, in pixels, scrolled into sight."""
        found = f"document.querySelectorAll({json.dumps(selector)})[{index}]"
        box = self.run(
            f"(() => {{ {found}.scrollIntoView({{block: 'center'}}); const box = {found}.getBoundingClientRect();"
            " return [box.left + box.width / 2, box.top + box.height / 2]; })()"
        )
        return tuple(box)

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def click(self, selector: str, index: int = 0) -> None:
        self.click_at(*self.at(selector, index))

    def click_at(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def drag(self, selector: str, index: int, by: float) -> None:
        """Move an element so many pixels to the right."""
        x, y = self.at(selector, index)
        self.mouse("mousePressed", x, y)
        for part in (0.5, 1):
            self.mouse("mouseMoved", x + part * by, y)
        self.mouse("mouseReleased", x + by, y)

    def press(self, key: str, control: bool = False) -> None:
        printed = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        shared = {"key": key, "code": _KEYS.get(key, f"Key{key.upper()}"), "modifiers": 2 * control}
        self.call("Input.dispatchKeyEvent", type="keyDown", **shared, **({} if control else printed))
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def downloaded(self, name: str) -> Path:
        """The file of a download, when it is there."""
        file, until = self.downloads / name, time.monotonic() + 120
        while not file.exists():
            assert time.monotonic() < until, f"{name} was not downloaded, but {sorted(self.downloads.iterdir())}"
            time.sleep(0.05)
        return file

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def upload(self, selector: str, file: str) -> None:
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[file])

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Scripts run in the frame inside the page, which is a process of its own."""
        page, until = self._session, time.monotonic() + 120
        while not (found := [x for x in self.call("Target.getTargets")["targetInfos"] if x["type"] == "iframe"]):
            assert time.monotonic() < until, "the page has no frame"
            time.sleep(0.05)
        target = {"targetId": found[-1]["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", **target)["sessionId"]
        yield
        self._session = page

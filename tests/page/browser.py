"""A headless Chromium, driven by its DevTools protocol over a pipe (chromedevtools.github.io/devtools-protocol)."""

from __future__ import annotations

import base64
import json
import os
import queue
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from patience import PATIENCE

Size = tuple[int, int]


class Browser:
    """One Chromium with its profile in a folder of its own; page() opens a tab."""

    def __init__(self, log: Path) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def wire() -> None:  # the browser reads commands from 3 and writes answers to 4
            first, second = os.dup(to_browser), os.dup(from_browser)
            os.dup2(first, 3)
            os.dup2(second, 4)

        line = ["chromium", "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        line += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        line += ["--disable-dev-shm-usage", f"--user-data-dir={self._profile.name}"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(3, 4), preexec_fn=wire
            )
        os.close(to_browser)
        os.close(from_browser)
        self._sent = 0
        self._lock = threading.Lock()
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command."""
        answer: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._lock:
            self._sent += 1
            number = self._sent
            self._answers[number] = answer
            message = {"id": number, "method": method, "params": parameters}
            if session is not None:
                message["sessionId"] = session
            os.write(self._out, json.dumps(message).encode() + b"\0")
        got = answer.get(timeout=PATIENCE)
        assert "error" not in got, f"{method}: {got['error']}"
        result: dict[str, Any] = got["result"]
        return result

    def tab(self, size: Size, dark: bool = False, script: bool = True) -> Tab:
        """A new tab with a window of `size` CSS pixels."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        width, height = size
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Emulation.setScriptExecutionDisabled", value=not script)
        return tab

    def close(self) -> None:
        """End the browser and remove its profile."""
        self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._out)
        self._profile.cleanup()

    def _read(self) -> None:
        rest = b""
        while data := os.read(self._in, 1 << 16):
            *messages, rest = (rest + data).split(b"\0")
            for text in messages:
                message = json.loads(text)
                if "id" in message:
                    self._answers.pop(message["id"]).put(message)
                elif (tab := self._tabs.get(message.get("sessionId", ""))) is not None:
                    tab.events.put(message)
        os.close(self._in)


class Tab:
    """A tab: opens pages, evaluates expressions, takes pictures."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.complaints: list[str] = []
        """Errors and warnings of the console: what the Content-Security-Policy blocks is one."""
        self.asked: list[str] = []
        """Every address that was asked for."""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        """Open an address and wait until the page has loaded."""
        self.call("Page.navigate", url=url)
        while self._take()["method"] != "Page.loadEventFired":
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def picture(self) -> bytes:
        """The page as WebP, also what is below the window."""
        options = {"format": "webp", "quality": 70, "captureBeyondViewport": True}
        return base64.b64decode(self.call("Page.captureScreenshot", **options)["data"])

    def settle(self) -> None:
        """Take the events that have come so far into `complaints` and `asked`."""
        while not self.events.empty():
            self._take()

    def _take(self) -> dict[str, Any]:
        event = self.events.get(timeout=PATIENCE)
        parameters = event["params"]
        if event["method"] == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif event["method"] == "Network.requestWillBeSent":
            self.asked.append(parameters["request"]["url"])
        return event

"""Chromium through its DevTools protocol over a pipe: NUL-separated JSON, standard library only."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
SETTLED = """
new Promise((resolve, reject) => {
  const boxes = [...document.querySelectorAll(".chart")];
  const since = performance.now();
  (function look() {
    if (boxes.every((box) => box.querySelector("svg, canvas") || box.textContent)) resolve(boxes.length);
    else if (performance.now() - since > 20000) reject(new Error("charts not drawn in 20 s"));
    else setTimeout(look, 20);
  })();
})
"""


def find_chromium() -> str | None:
    """The path of a Chromium, None when there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


@contextmanager
def chromium(program: str, profile: Path) -> Iterator[Browser]:
    """A headless Chromium with an empty ``profile`` folder, ended with all its children on the way out."""
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()
    # Above 4, so that placing one of them at 3 or 4 cannot overwrite the other.
    read_from, write_to = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out))
    for end in (theirs_in, theirs_out):
        os.close(end)

    def place_pipes() -> None:
        os.dup2(read_from, 3)
        os.dup2(write_to, 4)

    process = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        preexec_fn=place_pipes,
        pass_fds=(3, 4),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read_from)
    os.close(write_to)
    try:
        yield Browser(ours_in, ours_out)
    finally:
        os.killpg(process.pid, 9)  # its own group: nothing else is in it
        process.wait()
        os.close(ours_in)
        os.close(ours_out)


class Browser:
    """One connection; ``call`` sends a command and waits for its answer, events met on the way are kept."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self.read_from, self.write_to = read_from, write_to
        self.buffer = b""
        self.last = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write_to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.last:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def receive(self, seconds: float = 30) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read_from], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium said nothing for {seconds} s"
            chunk = os.read(self.read_from, 1 << 20)
            assert chunk, "Chromium ended"
            self.buffer += chunk
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, *, width: int, height: int, scheme: str = "light") -> Page:
        """Load ``url`` in a fresh tab and wait until every chart is drawn or has given up."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target, len(self.events), width)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        page.call("Page.navigate", url=url)
        page.wait_for("Page.loadEventFired")
        page.evaluate(SETTLED)
        return page


class Page:
    """One tab: what it logged and fetched since it was opened."""

    def __init__(self, browser: Browser, session: str, target: str, first_event: int, width: int) -> None:
        self.browser, self.session, self.target = browser, session, target
        self.first_event, self.width = first_event, width

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def events(self, method: str) -> list[dict[str, Any]]:
        mine = [event for event in self.browser.events[self.first_event :] if event.get("sessionId") == self.session]
        return [event["params"] for event in mine if event["method"] == method]

    def wait_for(self, method: str) -> None:
        while not self.events(method):
            self.browser.events.append(self.browser.receive())

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Console errors and warnings, uncaught exceptions, and the browser's own log of errors."""
        console = [event for event in self.events("Runtime.consoleAPICalled") if event["type"] in ("error", "warning")]
        found = [str([argument.get("value", argument) for argument in event["args"]]) for event in console]
        found += [str(event["exceptionDetails"]) for event in self.events("Runtime.exceptionThrown")]
        entries = [event["entry"] for event in self.events("Log.entryAdded")]
        return found + [str(entry) for entry in entries if entry["level"] in ("error", "warning")]

    def requests(self) -> list[str]:
        """Every address that was asked for, data: addresses aside."""
        addresses = [event["request"]["url"] for event in self.events("Network.requestWillBeSent")]
        return [address for address in addresses if not address.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": self.width, "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)

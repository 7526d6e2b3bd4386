"""Headless Chromium, spoken to through its DevTools pipe: no driver, no package, no port."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = f"none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)"
_PATIENCE_S = 60.0


def executable() -> str | None:
    """Return the Chromium of this machine."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Chromium:
    """One browser with one page."""

    def __init__(self, path: str, profile: str) -> None:
        (read_there, self._write), (self._read, write_there) = os.pipe(), os.pipe()
        flags = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--disable-dev-shm-usage"),
            *("--hide-scrollbars", "--disable-component-update", "--disable-background-networking", "--no-first-run"),
            f"--user-data-dir={profile}",
        ]
        # the pipe's ends are file descriptors 3 and 4 there, whatever their numbers are here
        line = f'exec 7<&{read_there} 8>&{write_there}; exec 3<&7 4>&8 7<&- 8>&-; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", line, path, *flags],
            pass_fds=(read_there, write_there),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        os.set_blocking(self._read, False)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE_S)
        os.close(self._write)
        os.close(self._read)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:  # Any: as the protocol has it
        """Carry out one command of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def open(self, page: Path, width: int, height: int = 800, *, dark: bool = False) -> None:
        """Show a file in a window of this size."""
        self.events.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.send("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def value(self, script: str) -> Any:  # Any: what JSON holds
        """Return what a JavaScript expression gives on the page; it is ours, and no policy of the page holds for it."""
        return self.send("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {**size, "scale": 1}
        taken = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(taken["data"]))

    def _receive(self) -> dict[str, Any]:
        limit = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._buffer:
            try:
                more = os.read(self._read, 1 << 20)
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise TimeoutError("Chromium does not answer") from None
                time.sleep(0.005)
                continue
            if not more:
                raise RuntimeError("Chromium has gone")
            self._buffer += more
        answer, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(answer)
        return message


@contextmanager
def browser(path: str) -> Iterator[Chromium]:
    """Start a browser with a profile of its own."""
    folder = tempfile.TemporaryDirectory(prefix="bnpass-chromium-", ignore_cleanup_errors=True)
    with folder as profile, Chromium(path, profile) as started:
        yield started

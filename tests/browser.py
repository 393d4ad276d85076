"""A page in a real browser, headless: what stands there, what a click does, and what the page asked of the network."""

import base64
import json
import os
import shutil
import subprocess
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""None where no browser is installed: tests are skipped then."""

STILL = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")


class Tab:
    """One page, spoken to in the language of the browser's own tools, over a pipe."""

    def __init__(self, to: RawIOBase, back: RawIOBase) -> None:
        self._to, self._back = to, back
        self._last, self._rest, self._session = 0, b"", None
        self.asked: list[str] = []
        """Addresses that the page asked for, itself included."""
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    @property
    def asked_elsewhere(self) -> list[str]:
        """Those of the addresses that are not of this machine."""
        return [url for url in self.asked if not url.startswith(("file:", "data:"))]

    def call(self, method: str, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps(message).encode() + b"\0")
        while (said := self._next()).get("id") != self._last:
            self._note(said)
        assert "error" not in said, said
        return said["result"]

    def open(self, page: Path, width: int = 1100, height: int = 900, dark: bool = False) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.as_uri())
        while self._note(self._next()) != "Page.loadEventFired":
            pass

    def run(self, script: str):
        """The value of an expression, in the page; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    @property
    def html(self) -> str:
        """The page as the browser holds it now."""
        return self.run("document.documentElement.outerHTML")

    def picture(self) -> bytes:
        """The whole page, as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip={**size, "scale": 1})
        return base64.b64decode(found["data"])

    def _next(self) -> dict:
        while b"\0" not in self._rest:
            more = self._back.read(1 << 16)
            assert more, "the browser has gone"
            self._rest += more
        said, _, self._rest = self._rest.partition(b"\0")
        return json.loads(said)

    def _note(self, said: dict) -> str:
        method, params = said.get("method", ""), said.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])
        if method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        return method


@contextmanager
def browser(profile: Path):
    """A tab that is not anywhere yet."""
    assert CHROMIUM is not None
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()

    def as_the_browser_expects() -> None:  # it reads from its descriptor 3 and writes to its 4
        read, write = os.dup(theirs_in), os.dup(theirs_out)  # beyond 3 and 4, which the pipes took at the latest
        os.dup2(read, 3)
        os.dup2(write, 4)

    command = [CHROMIUM, *STILL, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    with subprocess.Popen(
        command, pass_fds=(3, 4), preexec_fn=as_the_browser_expects, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs_in)
        os.close(theirs_out)
        with os.fdopen(ours_out, "wb", buffering=0) as to, os.fdopen(ours_in, "rb", buffering=0) as back:
            try:
                yield Tab(to, back)
            finally:
                process.terminate()

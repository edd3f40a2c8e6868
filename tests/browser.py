"""A headless Chromium for tests, spoken to by its DevTools protocol: no driver and no further package are needed."""
import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket  # websocket-client

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = "on Debian or Ubuntu: apt install chromium; elsewhere put chromium or google-chrome on the PATH, or set CHROMIUM"


def find() -> str | None:
    """Path of the browser: what the variable CHROMIUM names, else the first of NAMES that is installed."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("CHROMIUM"), *NAMES)))), None)


def local(url: str, timeout: float = 10):
    """Answer of a server on this machine, past any proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=timeout)


def wait(condition, seconds: float, what: str, every: float = 0.25):
    """The first true value of ``condition()``. TimeoutError, naming ``what``, after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)
    return value


class Browser:
    """One window of a headless Chromium with a profile of its own, which goes with it. Use it in a ``with``.

    ``complaints``: what the console of its pages has said in warnings and errors, and exceptions that nobody caught.
    It has no sandbox, which root and many containers do not allow: it is for pages of this machine only.
    """

    def __init__(self, width: int = 1280, height: int = 900):
        self.profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [find(), "--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={self.profile.name}",
             "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--no-proxy-server", "--hide-scrollbars",
             f"--window-size={width},{height}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.socket, self.ids, self.complaints = None, itertools.count(1), []
        try:
            self._connect()
            for domain in ("Log", "Runtime"):
                self.send(f"{domain}.enable")
            self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # a page without focus ignores much
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        told = Path(self.profile.name, "DevToolsActivePort")

        def port() -> str:
            if self.process.poll() is not None:
                raise RuntimeError(f"the browser stopped with exit status {self.process.returncode}")
            return told.read_text().partition("\n")[0] if told.is_file() else ""

        at = wait(port, 120, "the browser's port")
        page = wait(lambda: next((p for p in json.load(local(f"http://127.0.0.1:{at}/json/list"))
                                  if p["type"] == "page"), None), 120, "a page of the browser")
        self.socket = websocket.create_connection(
            page["webSocketDebuggerUrl"], timeout=120, suppress_origin=True, http_no_proxy=["127.0.0.1"])

    def send(self, method: str, timeout: float = 120, **params) -> dict:
        """One command of the protocol and its answer. RuntimeError if the browser refuses."""
        wanted = next(self.ids)
        self.socket.settimeout(timeout)
        self.socket.send(json.dumps({"id": wanted, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != wanted:
            self._event(answer.get("method"), answer.get("params"))  # or a late answer, which has neither
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _event(self, name: str | None, told: dict | None) -> None:
        if name == "Log.entryAdded" and told["entry"]["level"] in ("warning", "error"):
            self.complaints.append(told["entry"]["text"])
        elif name == "Runtime.consoleAPICalled" and told["type"] in ("warning", "error", "assert"):
            self.complaints.append(" ".join(str(a.get("value", a.get("description"))) for a in told["args"]))
        elif name == "Runtime.exceptionThrown":
            thrown = told["exceptionDetails"]
            self.complaints.append(thrown.get("exception", {}).get("description") or thrown["text"])

    def js(self, expression: str, timeout: float = 120):
        """Value of a JavaScript expression in the page; a promise is waited for. RuntimeError if it throws."""
        answer = self.send("Runtime.evaluate", timeout, expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            thrown = answer["exceptionDetails"]
            raise RuntimeError(thrown.get("exception", {}).get("description") or thrown["text"])
        return answer["result"].get("value")

    def open(self, url: str, seconds: float = 120) -> None:
        self.send("Page.navigate", url=url)
        wait(lambda: self.js("location.href != 'about:blank' && document.readyState == 'complete'"), seconds, url)

    def resize(self, width: int, height: int) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, name: str) -> None:
        """"light" or "dark", as the reader's system would ask for it."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def press(self, key: str) -> None:
        """A key such as ArrowRight, to what has the focus."""
        code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}[key]
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, file=None, **clip) -> bytes:
        """PNG of the window, or of the part x, y, width, height of the page; written to ``file`` too, if given."""
        options = {"clip": clip | {"scale": 1}, "captureBeyondViewport": True} if clip else {}
        image = base64.b64decode(self.send("Page.captureScreenshot", format="png", **options)["data"])
        if file:
            Path(file).write_bytes(image)
        return image

    def close(self) -> None:
        if self.socket:
            self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.profile.cleanup()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self.close()

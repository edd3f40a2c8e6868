"""A headless Chromium for tests, driven by playwright: the system's own browser, none is downloaded."""

import os
import shutil
import time
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = "on Debian or Ubuntu: apt install chromium; elsewhere put chromium or google-chrome on the PATH, or set CHROMIUM"


def find() -> str | None:
    """Path of the browser: what the variable CHROMIUM names, else the first of NAMES that is installed."""
    return next(
        filter(None, map(shutil.which, filter(None, (os.environ.get("CHROMIUM"), *NAMES)))), None
    )


def wait(condition, seconds: float, what: str, every: float = 0.25):
    """The first true value of ``condition()``. TimeoutError, naming ``what``, after ``seconds``."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(every)
    return value


@contextmanager
def window(width: int = 1280, height: int = 900):
    """A page of playwright, in a browser with a profile of its own, and the list of what its console has said in warnings
    and errors and of exceptions that nobody caught; it grows while the page is asked something.

    It has no sandbox, which root and many containers do not allow: it is for pages of this machine only.
    """
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=find(), args=["--no-proxy-server"], timeout=120_000
        )
        page, complaints = chromium.new_page(viewport={"width": width, "height": height}), []
        page.set_default_timeout(120_000)
        page.on(
            "console",
            lambda said: (
                said.type in ("warning", "error", "assert") and complaints.append(said.text)
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        yield page, complaints
        chromium.close()

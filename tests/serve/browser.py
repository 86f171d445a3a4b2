"""Chromium without a window, for tests of the web page: where it is, and why there is none."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The program: $CHROMIUM, or one that is on the path."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def why_not() -> str | None:
    """Why tests marked `browser` cannot run here, in a sentence; None where they can."""
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed (pip install playwright)"
    if chromium() is None:
        return "there is no Chromium (apt-get install chromium, or CHROMIUM=PATH)"
    return None


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Playwright's."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()

"""The browser that the status page is tested in, if there is one on this machine, and how it is started."""

import os
import shutil
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needed = [
    pytest.mark.skipif(BROWSER is None, reason="NO BROWSER: apt-get install chromium, or the status page goes untested"),
    pytest.mark.timeout(180),
]


def headless(folder: Path, *more: str) -> list[str]:
    """The command of a browser without a window, whose profile is in a folder of the test's."""
    assert BROWSER is not None
    return [
        BROWSER,
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        f"--user-data-dir={folder / 'profile'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        *more,
    ]

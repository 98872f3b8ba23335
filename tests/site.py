"""The built site and a browser, for the tests that look at it."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def build(folder: pathlib.Path, code: bool = True) -> pathlib.Path:
    """Build the site with the settings of `make docs`.

    Args:
      folder: Folder of the result.
      code: Whether the pages run. Without it figures are missing, and the build is
        not strict.

    Returns:
      The folder.
    """
    pytest.importorskip("mkdocs", reason="needs the extra docs: make test-all")
    settings = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    if not code:
        settings["DOCS_WITHOUT_CODE"] = "1"
    config = ROOT / "docs" / "mkdocs.yml"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
    command += ["--config-file", str(config), "--site-dir", str(folder)]
    command += [] if code else ["--no-strict"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A Chromium of the system, driven by playwright. Skips where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the extra docs")
    programs = filter(None, map(shutil.which, BROWSERS))
    program = next(programs, None) or pytest.skip(
        "needs a browser: apt-get install chromium"
    )
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()

"""Pages in Chromium, most of them a real ComfyUI's; skipped where either or Playwright is missing.

``FLUXFIT_ARTEFACTS`` names a folder for screenshots, by default one of pytest's. ``CHROMIUM_PATH``
names the browser, by default what the system calls chromium.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.browser.editor import Editor
from tests.host_server import COMFYUI, Server, server, skip_without_host

__all__ = ["server"]

#: A page that was open before, so that it greets nobody, and that draws small letters too.
SETTINGS = {"Comfy.TutorialCompleted": True, "LiteGraph.Canvas.MinFontSizeForLOD": 0}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    hosted = [item for item in items if "server" in getattr(item, "fixturenames", ())]
    skip_without_host(hosted, Path(__file__).parent)


def chromium_path() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    installed = filter(None, map(shutil.which, names))
    return os.environ.get("CHROMIUM_PATH") or next(installed, None)


@contextmanager
def launched(playwright: Any, path: str) -> Iterator[Any]:
    """A browser that is closed at the end."""
    options = ["--disable-gpu"]
    if getattr(os, "geteuid", lambda: 1)() == 0:
        options.append("--no-sandbox")  # Chromium does not start for root with it
    browser = playwright.chromium.launch(executable_path=path, args=options)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A started browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = chromium_path()
    if path is None:
        pytest.skip("there is no Chromium; CHROMIUM_PATH may name one")
    with sync_api.sync_playwright() as playwright, launched(playwright, path) as browser:
        yield browser


@pytest.fixture(scope="session")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots go."""
    named = os.environ.get("FLUXFIT_ARTEFACTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("artefacts")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def prepare(server: Server) -> None:
    """Give a host the settings and the picture that the page is to find."""
    for name, value in SETTINGS.items():
        data = json.dumps(value).encode()
        request = urllib.request.Request(f"{server.address}/settings/{name}", data, method="POST")
        urllib.request.urlopen(request, timeout=30).close()
    example = Path(str(COMFYUI)) / "input" / "example.png"
    shutil.copy(example, server.base / "input")  # as a host without a folder of its own has it


@pytest.fixture(scope="session")
def page_of_all(chromium: Any, server: Server, artefacts: Path) -> Iterator[Editor]:
    """One page for all tests: it takes seconds to load."""
    prepare(server)
    page = chromium.new_page(viewport={"width": 2560, "height": 1440})
    editor = Editor(page, server, artefacts)
    editor.open()
    yield editor
    page.close()


@pytest.fixture
def editor(page_of_all: Editor) -> Editor:
    """The graph editor, with an empty graph and no errors so far."""
    page_of_all.clear()
    return page_of_all

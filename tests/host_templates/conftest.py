"""The host's own FLUX.1 templates; only where ``FLUXFIT_WIDE_MODELS`` names a folder for 16 GB.

The folder gets files of FLUX.1's real widths with random numbers (``wide_models``), once.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.browser.conftest import artefacts, chromium, page_of_all
from tests.host_server import Server, server, skip_without_host
from tests.host_templates.wide_models import write_wide_models

__all__ = ["artefacts", "chromium", "page_of_all", "server"]

WIDE = os.environ.get("FLUXFIT_WIDE_MODELS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    skip_without_host(items, here)
    for item in items:
        if not WIDE and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="FLUXFIT_WIDE_MODELS names no folder"))


@pytest.fixture(scope="session")
def wide_server(server: Server) -> Server:
    """The host with the wide models among its own."""
    folder = Path(str(WIDE))
    write_wide_models(folder)
    for path in sorted(folder.glob("*/*.safetensors")):
        link = server.base / "models" / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return server

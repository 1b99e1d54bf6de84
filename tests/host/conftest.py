"""Tests inside a real ComfyUI; ``tests.host_server`` says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.host_server import server, skip_without_host

__all__ = ["server"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip_without_host(items, Path(__file__).parent)

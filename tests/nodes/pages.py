"""A shipped page to change in tests, and what is asked of it."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from fluxfit.nodes import headless

ROOT = Path(__file__).resolve().parents[2]
FIELDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")


@pytest.fixture
def page() -> dict:
    return json.loads((ROOT / "workflows" / "text_to_image.json").read_text())


def node(page: dict, number: int) -> dict:
    return next(n for n in page["nodes"] if n["id"] == number)


def opened(page: dict) -> headless.Graph:
    graph = headless.parse(copy.deepcopy(page))
    headless.check(graph)
    return graph


def link_of(page: dict, number: int) -> list:
    return next(link for link in page["links"] if link[0] == number)

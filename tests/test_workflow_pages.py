"""What a person sees of the shipped workflows: order, frames, notes; read from their files."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.dev_graphs import descriptions
from tools.layout import Wire, lanes, lay_out
from tools.pages import PAGES, Page
from tools.workflows import api_prompt, ui_workflow

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
NOTE = "MarkdownNote"


def workflow(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text())


def within(node: dict[str, Any], frame: dict[str, Any]) -> bool:
    (x, y), (width, height) = node["pos"], node["size"]
    left, top, wide, high = frame["bounding"]
    return left < x and top < y - 30 and x + width < left + wide and y + height < top + high


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_tool_writes(name: str) -> None:
    graph = descriptions()[name]
    assert workflow(name) == json.loads(json.dumps(ui_workflow(graph, PAGES[name])))
    api = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())
    assert api == json.loads(json.dumps(api_prompt(graph)))


@pytest.mark.parametrize("name", NAMES)
def test_wires_run_from_left_to_right(name: str) -> None:
    data = workflow(name)
    nodes = {node["id"]: node for node in data["nodes"]}
    for _, source, _, target, _, _ in data["links"]:
        assert nodes[source]["pos"][0] + nodes[source]["size"][0] < nodes[target]["pos"][0]


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_in_the_frame_of_its_step(name: str) -> None:
    data = workflow(name)
    for node in data["nodes"]:
        frames = [frame["title"] for frame in data["groups"] if within(node, frame)]
        assert len(frames) == (node["type"] != NOTE), (node["type"], frames)
    bounds = [frame["bounding"] for frame in data["groups"]]
    for (x, _, width, _), (after, *_) in itertools.pairwise(bounds):
        assert x + width < after


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_where_files_go_and_what_to_turn(name: str) -> None:
    (note,) = (node for node in workflow(name)["nodes"] if node["type"] == NOTE)
    (text,) = note["widgets_values"]
    assert text.startswith("## ") and "**Files:**" in text and "**Turn first:**" in text
    assert len(re.sub(r"\]\(.*?\)", "]", text)) < 1000, "what is read, without addresses"
    for node in workflow(name)["nodes"]:
        for model in node["properties"].get("models", ()):
            link = f"[{model['directory']}/{model['name']}]({model['url']})"
            renamed = not model["url"].endswith(f"/{model['name']}")
            assert link in text
            assert not renamed or f"{link}, which is called otherwise" in text


@pytest.mark.parametrize("name", NAMES)
def test_reroutes_lead_from_a_wire_s_end_to_its_start(name: str) -> None:
    data = workflow(name)
    points = {point["id"]: point for point in data["extra"]["reroutes"]}
    for end in data["extra"]["linkExtensions"]:
        number, x = end["parentId"], float("inf")
        while number is not None:
            assert end["id"] in points[number]["linkIds"] and points[number]["pos"][0] < x
            x, number = points[number]["pos"][0], points[number].get("parentId")


def test_lanes_are_shared_by_wires_that_do_not_meet() -> None:
    assert lanes([(0, 2), (1, 4), (3, 5), (5, 6), (6, 6)]) == [0, 1, 0, 1, 0]


def test_a_node_on_no_page_is_named() -> None:
    graph = descriptions()["text_to_image"]
    steps = {"Load": [["policy"], ["loader"]]}
    with pytest.raises(ValueError, match="not in both: decode, negative"):
        lay_out(Page("", steps), graph, dict.fromkeys(graph, (1, 1)), [Wire(1, "", 0, "", 0)])

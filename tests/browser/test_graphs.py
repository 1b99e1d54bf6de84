"""What a workflow file means without the page: the same graph as the page queues.

Over our own workflows and all templates that the host brings, whatever they are about.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fluxfit.nodes import headless
from fluxfit.nodes.headless import Link

from tests.browser.conftest import prepare
from tests.browser.editor import READY
from tests.host_server import ROOT, Server, host_templates

#: The graph of a file as the page queues it; null where an older page cannot.
QUEUED = """async workflow => {
    await app.loadGraphData(workflow)
    try {
        return (await app.graphToPrompt()).output
    } catch (error) {
        return null
    }
}"""
#: Pictures that a page puts in the place of those that it does not have.
REPLACED = {"LoadImage", "LoadImageMask", "LoadImageOutput"}
#: Templates in which the page loses a PrimitiveNode's value on its way into another pack's node.
LOST = ("template_contact_sheet-step_3.app", "templates_graphic_design_recomposer")
#: Types and inputs of nodes by number.
Nodes = Mapping[str, tuple[str, Mapping[str, Any]]]


@pytest.fixture(scope="module")
def page(chromium: Any, server: Server) -> Iterator[Any]:
    """A page of its own: what templates complain of stays on it."""
    prepare(server)
    page = chromium.new_page()
    page.goto(server.address)
    page.wait_for_function(READY, timeout=60_000)
    yield page
    page.close()


def with_links(prompt: dict[str, Any]) -> Nodes:
    """What a page queues, its wires told from values."""

    def value(raw: Any) -> Any:
        wire = isinstance(raw, list) and len(raw) == 2 and isinstance(raw[0], str)
        return Link(raw[0], raw[1]) if wire else raw

    return {
        key: (item["class_type"], {name: value(raw) for name, raw in item["inputs"].items()})
        for key, item in prompt.items()
    }


def shapes(nodes: Nodes) -> dict[str, int]:
    """A number for each node that is the same where its type and all before it are: a page gives
    nodes of subgraphs new numbers where two have the same."""
    known: dict[str, int] = {}

    def shape(key: str) -> int:
        if key not in known:
            kind, inputs = nodes[key]
            wires = sorted(
                (n, shape(v.node), v.slot) for n, v in wires_of(inputs) if v.node in nodes
            )
            known[key] = hash((kind, *wires))
        return known[key]

    return {key: shape(key) for key in nodes}


def wires_of(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Link]]:
    for name, value in inputs.items():
        if isinstance(value, Link):
            yield name, value


def differences(theirs: Nodes, graph: headless.Graph, outputs: Container[str]) -> list[str]:
    """Where our graph is not the page's: nodes with all before them, and values of those that we
    know. What a page queues beside, which no output needs, is left aside."""
    ours = {key: (step.type, step.inputs) for key, step in graph.items()}
    theirs = {  # a page queues what the host has no node for, without its type
        key: (kind or ours.get(key, ("",))[0], inputs) for key, (kind, inputs) in theirs.items()
    }
    our_shapes, their_shapes = shapes(ours), shapes(theirs)
    many, few = Counter(our_shapes.values()), Counter(their_shapes.values())
    wrong = [
        f"node {key} ({ours[key][0]}) is no page's"
        for key, shape in our_shapes.items()
        if many[shape] > few[shape]
    ]
    wrong += [
        f"node {key} ({theirs[key][0]}) is missing"
        for key, shape in their_shapes.items()
        if few[shape] > many[shape] and theirs[key][0] in outputs
    ]
    for key in ours.keys() & theirs.keys():
        kind, inputs = ours[key]
        if our_shapes[key] != their_shapes[key] or kind in REPLACED:
            continue
        known = headless.KNOWN_NODES.get(kind)
        specs = headless.input_specs(known) if known else {}
        for name, shown in theirs[key][1].items():
            if isinstance(shown, Link) or not (name in inputs or name in specs):
                continue
            value = inputs[name] if name in inputs else specs[name][1].get("default", shown)
            if value != shown:
                wrong.append(f"node {key} ({kind}) {name}: the page has {shown!r}, we {value!r}")
    return wrong


def files() -> list[Path]:
    return sorted((ROOT / "workflows").glob("*.json")) + sorted(host_templates().values())


def test_a_file_means_what_the_page_queues(page: Any, server: Server, artefacts: Path):
    compared, wrong = 0, []
    outputs = {k for k, node in server.get("/object_info").items() if node["output_node"]}
    for path in files():
        workflow = json.loads(path.read_text("utf-8-sig"))
        if not isinstance(workflow, dict) or "nodes" not in workflow or path.stem in LOST:
            continue
        try:
            graph = headless.parse(copy.deepcopy(workflow))
        except headless.WorkflowError as error:
            wrong.append(f"{path.stem}: {error}")
            continue
        queued = page.evaluate(QUEUED, workflow)
        if queued is None:
            continue
        compared += 1
        wrong += [
            f"{path.stem}: {text}" for text in differences(with_links(queued), graph, outputs)
        ]
    print(f"{compared} files compared")
    (artefacts / "graphs.txt").write_text("\n".join(wrong))
    assert compared > 20 and not wrong, "\n".join(wrong[:50])

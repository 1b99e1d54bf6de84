"""Workflow files in either of the host's formats: the UI's (``nodes`` and ``links``, see ``page``)
and the API's (one entry a node)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flux_core.files import parse_json, read_json, reading
from flux_core.pictures import is_picture
from flux_core.receipts import read_png_texts

from .graph import KNOWN_NODES, Graph, Link, Step, WorkflowError, input_name, input_specs, node_type
from .page import from_ui

#: Texts of a picture that hold a graph: as it ran, and as the page has it.
GRAPHS = ("prompt", "workflow")


def read_workflow(path: str | Path) -> Graph:
    """Read a file of either format, or a picture that was saved with its workflow.

    Raises ``WorkflowError`` where it is none of these.
    """
    path = Path(path)
    if is_picture(path):
        data = from_picture(path)
    else:  # what a host notes of a run may be NaN; inputs are checked one by one
        data = read_json(path, "a JSON file", WorkflowError, lenient=True)
    with reading(path, "a workflow", WorkflowError):
        return parse(data)


def from_picture(path: Path) -> Any:
    """The workflow inside of a picture: the page's where there is one, for it has more to say."""
    with reading(path, "a picture with a workflow", WorkflowError):
        data = graph_in_texts(read_png_texts(path)[1], first="workflow")
    if data is None:
        raise WorkflowError(f"{path}: is a picture without a workflow in it")
    return data


def graph_in_texts(texts: Mapping[str, str], first: str) -> Any:
    """A picture's graph, of the two that there may be the ``first``: ``workflow``, as the page has
    it, or ``prompt``, as it ran; None where there is none."""
    for key in sorted(GRAPHS, key=lambda key: key != first):
        if key in texts:
            return parse_json(texts[key], lenient=True)
    return None


def parse(data: Any) -> Graph:
    """The graph of either format; raises ``WorkflowError`` where it is neither."""
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        return from_ui(data)
    if isinstance(data, dict) and isinstance(data.get("prompt"), dict):
        data = data["prompt"]
    if (
        isinstance(data, dict)
        and data
        and all(isinstance(v, dict) and "class_type" in v for v in data.values())
    ):
        return from_api(data)
    raise WorkflowError("is neither a workflow (nodes and links) nor an API prompt (class_type)")


def from_api(data: Mapping[str, Any]) -> Graph:
    graph: Graph = {}
    for key, item in data.items():
        kind, given = item["class_type"], item.get("inputs") or {}
        if not isinstance(kind, str) or not isinstance(given, dict):
            raise WorkflowError(f"node {key}: expected class_type and inputs, found {item!r}")
        inputs = {
            input_name(kind, name): (
                Link(str(value[0]), int(value[1])) if is_api_link(value) else value
            )
            for name, value in given.items()
        }
        graph[str(key)] = Step(str(key), node_type(kind), inputs)
    return graph


def to_api(graph: Graph) -> dict[str, Any]:
    """A graph as an API prompt, which ``from_api`` reads."""
    return {
        key: {
            "class_type": step.type,
            "inputs": {
                name: [value.node, value.slot] if isinstance(value, Link) else value
                for name, value in step.inputs.items()
            },
        }
        for key, step in graph.items()
    }


def is_api_link(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str | int)
        and type(value[1]) is int
    )


def set_value(graph: Graph, assignment: str) -> None:
    """Apply ``NODE.INPUT=VALUE``; NODE is a number or a class name that the graph has once."""
    target, equals, value = assignment.partition("=")
    node, dot, name = target.strip().rpartition(".")
    if not (equals and dot):
        raise WorkflowError(f"--set {assignment!r}: expected NODE.INPUT=VALUE")
    steps = [s for s in graph.values() if s.id == node or s.type == node_type(node)]
    if len(steps) != 1:
        by_name = f"{len(steps)} nodes" if steps else "no node"
        raise WorkflowError(f"--set {assignment!r}: {by_name} called {node!r}")
    name = input_name(steps[0].type, name)
    if steps[0].type in KNOWN_NODES and name not in input_specs(KNOWN_NODES[steps[0].type]):
        raise WorkflowError(f"--set {assignment!r}: {steps[0].label} has no input {name!r}")
    steps[0].inputs[name] = value

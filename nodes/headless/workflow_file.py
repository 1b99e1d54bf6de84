"""Workflow files in either of the host's formats: the UI's (``nodes`` and ``links``) and the API's
(one entry a node)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .graph import (
    KNOWN_NODES,
    Graph,
    Link,
    Step,
    WorkflowError,
    input_name,
    input_specs,
    is_widget,
    node_type,
)

#: UI nodes that only annotate, and modes that keep a node from running.
NOTES = ("Note", "MarkdownNote")


MUTED, BYPASSED = 2, 4


def read_workflow(path: str | Path) -> Graph:
    """Read a file of either format; raises ``WorkflowError`` where it is neither."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WorkflowError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WorkflowError(f"{path}: is no JSON file ({error})") from error
    try:
        return parse(data)
    except WorkflowError as error:
        raise WorkflowError(f"{path}: {error}") from error


def parse(data: Any) -> Graph:
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


def from_api(data: dict[str, dict]) -> Graph:
    graph: Graph = {}
    for key, item in data.items():
        inputs = {
            input_name(item["class_type"], name): (
                Link(str(value[0]), int(value[1])) if is_api_link(value) else value
            )
            for name, value in item.get("inputs", {}).items()
        }
        graph[str(key)] = Step(str(key), node_type(item["class_type"]), inputs)
    return graph


def is_api_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[1], int)


def from_ui(data: dict) -> Graph:
    """A UI workflow's graph: notes are left out, muted nodes too, bypassed ones stepped over."""
    items = {
        str(item["id"]): item
        for item in data["nodes"]
        if item.get("type") not in NOTES and item.get("mode", 0) != MUTED
    }
    origins = {link[0]: Link(str(link[1]), int(link[2])) for link in data.get("links", [])}
    graph: Graph = {}
    for key, item in items.items():
        if item.get("mode", 0) == BYPASSED:
            continue
        models = item.get("properties", {}).get("models", [])
        step = Step(key, node_type(item["type"]), models=models)
        wired = {
            slot["name"]: origins[slot["link"]]
            for slot in item.get("inputs", [])
            if slot.get("link") in origins
        }
        node_class = KNOWN_NODES.get(step.type)
        if node_class is not None:
            step.inputs |= widget_values(node_class, item, step.label)
        for name, link in wired.items():
            resolved = step_over(link, items, origins)
            if resolved is not None:
                step.inputs[name] = resolved
        graph[key] = step
    return graph


def widget_values(node_class: type, item: dict, label: str) -> dict[str, Any]:
    """The values of a UI node's widgets by input name."""
    values = item.get("widgets_values", [])
    specs = {n: s for n, s in input_specs(node_class).items() if is_widget(s[0])}
    if isinstance(values, dict):
        values = {input_name(node_class.__name__, name): value for name, value in values.items()}
        return {name: values[name] for name in specs if name in values}
    by_name: dict[str, Any] = {}
    rest = iter(values)
    for name, (_, options) in specs.items():
        try:
            by_name[name] = next(rest)
            if adds_control(name, options):
                next(rest)
        except StopIteration:
            break
    left = [v for v in rest if v not in ("image", None)]  # an upload button is a widget as well
    if left:
        raise WorkflowError(f"{label}: {len(left)} widget values more than it has inputs: {left}")
    return by_name


def adds_control(name: str, options: dict) -> bool:
    """Whether the page puts a widget after this one that says how it changes between runs: after
    seeds unless the node says otherwise."""
    return bool(options.get("control_after_generate", name in ("seed", "noise_seed")))


def step_over(link: Link | None, items: dict[str, dict], origins: dict[int, Link]) -> Link | None:
    """Follow a wire back through bypassed nodes, as the page does: same type in, same type out."""
    while link is not None and link.node in items:
        item = items[link.node]
        if item.get("mode", 0) != BYPASSED:
            return link
        kind = item["outputs"][link.slot]["type"]
        through = [s.get("link") for s in item.get("inputs", []) if s["type"] == kind]
        link = origins.get(through[0]) if through and through[0] is not None else None
    return link


def set_value(graph: Graph, assignment: str) -> None:
    """Apply ``NODE.INPUT=VALUE``; NODE is a number or a class name that the graph has once."""
    target, equals, value = assignment.partition("=")
    node, dot, name = target.strip().partition(".")
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

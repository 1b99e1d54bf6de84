"""Runs a workflow file through the node classes without a host.

Both of the host's formats are read: the UI's (``nodes`` and ``links``) and the API's (one entry a
node). A graph is checked whole before anything runs: unknown nodes, missing inputs, wires of the
wrong type, values out of range and cycles are told by node and input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import NODE_CLASS_MAPPINGS
from .stock_nodes import STOCK

NODES: dict[str, type] = {**STOCK, **NODE_CLASS_MAPPINGS}
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN")
#: UI nodes that only annotate, and modes that keep a node from running.
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4


class WorkflowError(ValueError):
    """A workflow cannot run; the message names the node."""


@dataclass(frozen=True)
class Link:
    """The output of another node."""

    node: str
    slot: int


@dataclass
class Step:
    """One node of a graph: its class name and what goes into each input."""

    id: str
    type: str
    inputs: dict[str, Any] = field(default_factory=dict)
    models: list[dict[str, str]] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"node {self.id} ({self.type})"


Graph = dict[str, Step]


def input_specs(node_class: type) -> dict[str, tuple[Any, dict]]:
    """Every input by name: its type (or list of choices) and options."""
    declared = node_class.INPUT_TYPES()  # type: ignore[attr-defined]
    specs = {**declared.get("required", {}), **declared.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in specs.items()}


def required_names(node_class: type) -> set[str]:
    return set(node_class.INPUT_TYPES().get("required", {}))  # type: ignore[attr-defined]


def is_widget(kind: Any) -> bool:
    """Whether an input is a value in the node and not a wire."""
    return isinstance(kind, list | tuple) or kind in WIDGET_TYPES


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


#: Inputs that were called otherwise, by node; old files keep meaning what they said.
RENAMED = {"OffloadPolicy": {"clip_mode": "clip_l_mode"}}


def input_name(type_: str, name: str) -> str:
    """What an input of a node is called now."""
    return RENAMED.get(type_, {}).get(name, name)


def from_api(data: dict[str, dict]) -> Graph:
    graph: Graph = {}
    for key, item in data.items():
        inputs = {
            input_name(item["class_type"], name): (
                Link(str(value[0]), int(value[1])) if is_api_link(value) else value
            )
            for name, value in item.get("inputs", {}).items()
        }
        graph[str(key)] = Step(str(key), item["class_type"], inputs)
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
        step = Step(key, item["type"], models=models)
        wired = {
            slot["name"]: origins[slot["link"]]
            for slot in item.get("inputs", [])
            if slot.get("link") in origins
        }
        node_class = NODES.get(step.type)
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


def check(graph: Graph) -> list[str]:
    """The order in which to run; raises ``WorkflowError`` for the first thing that is wrong."""
    unknown = sorted({s.type for s in graph.values() if s.type not in NODES})
    if unknown:
        raise WorkflowError(
            f"no such node: {', '.join(unknown)}; without ComfyUI there are "
            f"{', '.join(sorted(NODES))}"
        )
    order = ordered(graph)
    for key in order:
        check_step(graph[key], graph)
    if not any(is_output(s) for s in graph.values()):
        raise WorkflowError("no node writes a result (SaveImage or PreviewImage)")
    return order


def is_output(step: Step) -> bool:
    return bool(getattr(NODES[step.type], "OUTPUT_NODE", False))


def ordered(graph: Graph) -> list[str]:
    """Nodes that an output needs, each after what it needs; raises on a cycle."""
    order: list[str] = []
    open_: list[str] = []

    def visit(key: str) -> None:
        if key in order:
            return
        if key in open_:
            loop = " -> ".join([*open_[open_.index(key) :], key])
            raise WorkflowError(f"the graph has a cycle: {loop}")
        open_.append(key)
        for name, link in links_of(graph[key]):
            if link.node not in graph:
                raise WorkflowError(
                    f"{graph[key].label}: input {name!r} comes from node {link.node}, "
                    "which is not in the graph"
                )
            visit(link.node)
        open_.pop()
        order.append(key)

    for key in graph:
        visit(key)
    return order


def links_of(step: Step) -> Iterator[tuple[str, Link]]:
    for name, value in step.inputs.items():
        if isinstance(value, Link):
            yield name, value


def check_step(step: Step, graph: Graph) -> None:
    node_class = NODES[step.type]
    specs = input_specs(node_class)
    missing = sorted(required_names(node_class) - set(step.inputs))
    if missing:
        raise WorkflowError(f"{step.label}: no value or wire for {', '.join(missing)}")
    for name, value in step.inputs.items():
        if name not in specs:
            continue
        kind, options = specs[name]
        if isinstance(value, Link):
            check_wire(step, name, kind, value, graph)
        elif not is_widget(kind):
            raise WorkflowError(
                f"{step.label}: {name!r} needs a wire of type {kind}, got {value!r}"
            )
        else:
            step.inputs[name] = checked_value(step, name, kind, options, value)


def check_wire(step: Step, name: str, kind: Any, link: Link, graph: Graph) -> None:
    source = graph[link.node]
    outputs = NODES[source.type].RETURN_TYPES  # type: ignore[attr-defined]
    if link.slot >= len(outputs):
        raise WorkflowError(f"{source.label} has no output {link.slot}")
    wanted = "COMBO" if isinstance(kind, list | tuple) else kind
    if outputs[link.slot] != wanted:
        raise WorkflowError(
            f"{step.label}: {name!r} takes {wanted}, but {source.label} gives {outputs[link.slot]}"
        )


def checked_value(step: Step, name: str, kind: Any, options: dict, value: Any) -> Any:
    """The value in its widget's type; raises where it is no such value or out of range."""
    where = f"{step.label}: {name!r}"
    if isinstance(kind, list | tuple):
        if value not in kind:
            raise WorkflowError(f"{where} is {value!r}, {help_for(step, value, kind)}")
        return value
    types = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": truth}
    try:
        converted = types[kind](value)
    except (TypeError, ValueError, KeyError):
        raise WorkflowError(f"{where} is {value!r}, expected {kind}") from None
    low, high, step_size = (options.get(k) for k in ("min", "max", "step"))
    if (low is not None and converted < low) or (high is not None and converted > high):
        raise WorkflowError(f"{where} is {converted}, expected {low} to {high}")
    if kind == "INT" and step_size and step_size > 1 and (converted - (low or 0)) % step_size:
        raise WorkflowError(f"{where} is {converted}, expected a multiple of {step_size}")
    return converted


def truth(value: Any) -> bool:
    """A switch, from a file or typed on the command line; raises ``KeyError`` for other words."""
    return value if isinstance(value, bool) else {"true": True, "false": False}[value.lower()]


def help_for(step: Step, value: Any, choices: Any) -> str:
    """What to do about a value that is no choice: where its file is to be had, or what there is."""
    for model in step.models:
        if model.get("name") == value:
            return f"a file to get from {model['url']} into models/{model['directory']}"
    return f"expected one of {', '.join(map(str, choices)) or 'nothing: the folder is empty'}"


def set_value(graph: Graph, assignment: str) -> None:
    """Apply ``NODE.INPUT=VALUE``; NODE is a number or a class name that the graph has once."""
    target, equals, value = assignment.partition("=")
    node, dot, name = target.strip().partition(".")
    if not (equals and dot):
        raise WorkflowError(f"--set {assignment!r}: expected NODE.INPUT=VALUE")
    steps = [s for s in graph.values() if s.id == node or s.type == node]
    if len(steps) != 1:
        by_name = f"{len(steps)} nodes" if steps else "no node"
        raise WorkflowError(f"--set {assignment!r}: {by_name} called {node!r}")
    name = input_name(steps[0].type, name)
    if steps[0].type in NODES and name not in input_specs(NODES[steps[0].type]):
        raise WorkflowError(f"--set {assignment!r}: {steps[0].label} has no input {name!r}")
    steps[0].inputs[name] = value


def run(graph: Graph, on_node: Callable[[Step], None] | None = None) -> dict[str, Any]:
    """Run a graph; returns each node's outputs (for output nodes what they show) by its number."""
    order = check(graph)
    results: dict[str, Any] = {}
    with torch.inference_mode():  # as the host does
        for key in order:
            step = graph[key]
            if on_node is not None:
                on_node(step)
            kwargs = {
                name: results[value.node][value.slot] if isinstance(value, Link) else value
                for name, value in step.inputs.items()
                if name in input_specs(NODES[step.type])
            }
            node = NODES[step.type]()
            converted = getattr(node, NODES[step.type].FUNCTION)(**kwargs)  # type: ignore[attr-defined]
            results[key] = (
                converted.get("result", converted) if isinstance(converted, dict) else converted
            )
    return results


def saved_images(results: dict[str, Any]) -> list[str]:
    """Paths that the output nodes wrote."""
    shown = [r["ui"]["images"] for r in results.values() if isinstance(r, dict) and "ui" in r]
    return [path for images in shown for path in images]

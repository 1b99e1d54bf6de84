"""A graph is checked whole before anything runs: unknown nodes, missing inputs, wires of the wrong
type, values out of range and cycles are told by node and input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .graph import (
    KNOWN_NODES,
    Graph,
    Link,
    Step,
    WorkflowError,
    input_specs,
    is_widget,
    required_names,
)


def check(graph: Graph) -> list[str]:
    """The order in which to run; raises ``WorkflowError`` for the first thing that is wrong."""
    unknown = sorted({s.type for s in graph.values() if s.type not in KNOWN_NODES})
    if unknown:
        raise WorkflowError(
            f"no such node: {', '.join(unknown)}; without ComfyUI there are "
            f"{', '.join(sorted(KNOWN_NODES))}"
        )
    order = ordered(graph)
    for key in order:
        check_step(graph[key], graph)
    if not any(is_output(s) for s in graph.values()):
        raise WorkflowError("no node writes a result (SaveImage or PreviewImage)")
    return order


def is_output(step: Step) -> bool:
    return bool(getattr(KNOWN_NODES[step.type], "OUTPUT_NODE", False))


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
    node_class = KNOWN_NODES[step.type]
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
    outputs = KNOWN_NODES[source.type].RETURN_TYPES  # type: ignore[attr-defined]
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

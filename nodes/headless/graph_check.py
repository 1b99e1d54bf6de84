"""What outputs need of a graph is checked whole before anything runs: unknown nodes, missing
inputs, wires of the wrong type, values out of range and cycles are told by node and input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flux_core.bounds import brief, is_unicode

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

#: What a widget without a default holds.
EMPTY = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}
#: Letters of a text; a prompt of a page has thousands.
LONGEST_TEXT = 1_000_000
#: What is wrong with half an emoji.
NO_UNICODE = "which is no Unicode: it has half a character (a lone surrogate)"


def check(graph: Graph, ends: Sequence[str] | None = None) -> list[str]:
    """The order in which to run what the outputs need, or the nodes ``ends``; raises
    ``WorkflowError`` for the first thing that is wrong with it.

    What none of them needs is left alone, whatever it is, as the host leaves it.
    """
    order = ordered(graph) if ends is None else ordered_from(graph, ends)
    unknown = [graph[key] for key in order if graph[key].type not in KNOWN_NODES]
    if unknown:
        names = ", ".join(f"{step.type!r} (node {step.id})" for step in unknown[:5])
        raise WorkflowError(
            f"there is no {names} without ComfyUI: open this workflow there, where FluxFit's nodes "
            "and all others run"
        )
    if not order:
        raise WorkflowError("no node writes a result (SaveImage or PreviewImage)")
    for key in order:
        check_step(graph[key], graph)
    return order


def left_out(graph: Graph, order: Sequence[str]) -> list[Step]:
    """Nodes that are unknown here and that nothing needs: what they would show is not shown."""
    needed = set(order)
    return [s for key, s in graph.items() if key not in needed and s.type not in KNOWN_NODES]


def is_output(step: Step) -> bool:
    return bool(getattr(KNOWN_NODES.get(step.type), "OUTPUT_NODE", False))


def ordered(graph: Graph) -> list[str]:
    """Nodes that an output needs, each after what it needs; raises on a cycle."""
    return ordered_from(graph, [key for key, step in graph.items() if is_output(step)])


def ordered_from(graph: Graph, ends: Sequence[str]) -> list[str]:
    """Some nodes and all above them, each after what it needs; raises on a cycle."""
    order: dict[str, None] = {}
    for output in ends:
        waiting: dict[str, Iterator[tuple[str, Link]]] = {output: links_of(graph[output])}
        while waiting:
            key = next(reversed(waiting))
            name, link = next(waiting[key], ("", None))
            if link is None or key in order:
                del waiting[key]
                order.setdefault(key)
            elif link.node not in graph:
                raise WorkflowError(
                    f"{graph[key].label}: input {name!r} comes from node {link.node}, "
                    "which is not in the graph"
                )
            elif link.node in waiting:
                keys = list(waiting)
                loop = " -> ".join([*keys[keys.index(link.node) :], link.node])
                raise WorkflowError(f"the graph has a cycle: {loop}")
            elif link.node not in order:
                waiting[link.node] = links_of(graph[link.node])
    return list(order)


def awake(graph: Graph, order: Sequence[str]) -> list[str]:
    """Of the nodes that outputs need those that run: what comes into a lazy input runs only where
    its node asks for it, and none of ours does."""
    lazy = {
        (key, name)
        for key in order
        for name, (_, options) in input_specs(KNOWN_NODES[graph[key].type]).items()
        if options.get("lazy")
    }
    needed: set[str] = set()
    for key in reversed(order):
        if key in needed or is_output(graph[key]):
            needed.add(key)
            needed |= {link.node for name, link in links_of(graph[key]) if (key, name) not in lazy}
    return [key for key in order if key in needed]


def links_of(step: Step) -> Iterator[tuple[str, Link]]:
    for name, value in step.inputs.items():
        if isinstance(value, Link):
            yield name, value


def check_step(step: Step, graph: Graph) -> None:
    node_class = KNOWN_NODES[step.type]
    specs = input_specs(node_class)
    for name in required_names(node_class) - set(step.inputs):
        default = default_of(*specs[name])
        if default is not None:
            step.inputs[name] = default
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


def default_of(kind: Any, options: dict) -> Any:
    """What a page puts into a widget that a file says nothing of; None for a wire."""
    if not is_widget(kind):
        return None
    if "default" in options:
        return options["default"]
    return next(iter(kind), None) if isinstance(kind, list | tuple) else EMPTY.get(kind)


def check_wire(step: Step, name: str, kind: Any, link: Link, graph: Graph) -> None:
    source = graph[link.node]
    outputs = KNOWN_NODES[source.type].RETURN_TYPES  # type: ignore[attr-defined]
    if not 0 <= link.slot < len(outputs):
        raise WorkflowError(f"{source.label} has no output {link.slot}")
    wanted = "COMBO" if isinstance(kind, list | tuple) else kind
    if outputs[link.slot] != wanted and "*" not in (wanted, outputs[link.slot]):
        raise WorkflowError(
            f"{step.label}: {name!r} takes {wanted}, but {source.label} gives {outputs[link.slot]}"
        )


def checked_value(step: Step, name: str, kind: Any, options: dict, value: Any) -> Any:
    """The value in its widget's type; raises where it is no such value or out of range."""
    where = f"{step.label}: {name!r}"
    if isinstance(kind, list | tuple):
        if value not in kind:
            words = f"{where} is {value!r}, {help_for(step, value, kind)}"
            if options.get("folders"):  # a file that is not there
                raise WorkflowError(words) from FileNotFoundError(str(value))
            raise WorkflowError(words)
        return value
    types: dict[Any, Callable[[Any], Any]] = {
        "INT": int,
        "FLOAT": float,
        "STRING": str,
        "BOOLEAN": truth,
    }
    try:
        converted = types[kind](value)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        raise WorkflowError(f"{where} is {value!r}, expected {kind}") from None
    if isinstance(converted, str):
        if len(converted) > LONGEST_TEXT:
            raise WorkflowError(f"{where} is longer than {LONGEST_TEXT} letters")
        if not is_unicode(converted):
            raise WorkflowError(f"{where} is {brief(converted)}, {NO_UNICODE}")
        return converted
    if isinstance(converted, float) and not math.isfinite(converted):
        raise WorkflowError(f"{where} is {converted}, expected a number")
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

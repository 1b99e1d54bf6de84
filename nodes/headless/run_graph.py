"""Running a checked graph, one node after another."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from .graph import KNOWN_NODES, Graph, Link, Step, WorkflowError, input_specs
from .graph_check import check, left_out
from .workflow_file import to_api

log = logging.getLogger("fluxfit")


def run(graph: Graph, on_node: Callable[[Step], None] | None = None) -> dict[str, Any]:
    """Run a graph; returns each node's outputs (for output nodes what they show) by its number.

    What a node refuses is a ``WorkflowError`` that names the node.
    """
    order = check(graph)
    for step in left_out(graph, order):
        log.warning("%s runs in ComfyUI alone, and nothing here needs it: left out", step.label)
    results: dict[str, Any] = {}
    with torch.inference_mode():  # as the host does
        for key in order:
            step = graph[key]
            if on_node is not None:
                on_node(step)
            kwargs = {
                name: results[value.node][value.slot] if isinstance(value, Link) else value
                for name, value in step.inputs.items()
                if name in input_specs(KNOWN_NODES[step.type])
            }
            kwargs |= hidden_inputs(KNOWN_NODES[step.type], graph)
            node = KNOWN_NODES[step.type]()
            try:
                converted = getattr(node, KNOWN_NODES[step.type].FUNCTION)(**kwargs)  # type: ignore[attr-defined]
            except ValueError as error:
                raise WorkflowError(f"{step.label}: {error}") from error
            results[key] = (
                converted.get("result", converted) if isinstance(converted, dict) else converted
            )
    return results


def hidden_inputs(node_class: type, graph: Graph) -> dict[str, Any]:
    """What a node asks for that no wire brings: of the host's hidden inputs, the prompt."""
    hidden = node_class.INPUT_TYPES().get("hidden", {})  # type: ignore[attr-defined]
    return {name: to_api(graph) for name, kind in hidden.items() if kind == "PROMPT"}


def saved_images(results: dict[str, Any]) -> list[str]:
    """Paths that the output nodes wrote."""
    shown = [r["ui"]["images"] for r in results.values() if isinstance(r, dict) and "ui" in r]
    return [path for images in shown for path in images]

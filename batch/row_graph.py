"""The graph above one input, again for every row of a table: only what a row changes is copied.

Graphs are prompts as the host has them: a dict of ``{"class_type": ..., "inputs": ...}`` by node, a
wire being ``[node, slot]``. Two rows that ask a node for the same share one copy of it, and nodes
that no row changes stay the one that they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from flux_core.errors import ConfigError

from ..nodes.headless import Graph, from_api, to_api
from ..nodes.headless.graph_check import ordered_from

Prompt = dict[str, dict[str, Any]]
#: The node that draws what comes into it for every row.
NODE = "FluxFitBatch"
#: Digits of the hash that a copy is called by.
DIGITS = 16
#: The input that a copy has which failed before.
AGAIN = "fluxfit_tried"


def is_wire(value: Any) -> bool:
    """Whether an input comes from a node."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def wires(node: Mapping[str, Any]) -> Iterator[str]:
    """The nodes that a node's inputs come from."""
    return (value[0] for value in node["inputs"].values() if is_wire(value))


def above(prompt: Mapping[str, Any], key: str) -> list[str]:
    """A node and all that it needs, each after what it needs; raises ``WorkflowError`` for a cycle
    and for a wire from nowhere."""
    return ordered_from(from_api(prompt), [key])


def graph_to_draw(prompt: Mapping[str, Any], batch: str) -> Prompt:
    """What draws the pictures of a batch's node, with a node that saves them in its place."""
    wire = prompt[batch]["inputs"].get("images")
    if not is_wire(wire):
        raise ConfigError("no wire comes into images: connect the pictures that are to be drawn")
    needed = above(prompt, wire[0])
    if batch in needed:
        raise ConfigError("its own pictures come into it")
    graph = {key: {name: prompt[key][name] for name in ("class_type", "inputs")} for key in needed}
    saving = {"images": wire, "filename_prefix": "batch"}
    return graph | {batch: {"class_type": "SaveImage", "inputs": saving}}


def graph_of_rows(graph: Graph) -> Graph:
    """A workflow as rows draw it: where a FluxFitBatch stands, what comes into it is saved.

    Raises ``ConfigError`` where there are several of them.
    """
    nodes = [key for key, step in graph.items() if step.type == NODE]
    if len(nodes) > 1:
        raise ConfigError(f"nodes {' and '.join(nodes)} are both {NODE}: a batch has one of them")
    return from_api(graph_to_draw(to_api(graph), nodes[0])) if nodes else graph


class RowGraph:
    """Copies of what rows change, gathered over rows.

    Args:
        prompt: the graph that draws, with a saving node ``batch``.
        prefix: what copies' names begin with.
        class_of: what a copy's class is called, by that of the original.
        faults: how often copies failed before. The host keeps what a node gave, a failed one's
            too, so that such a copy has another input, which its node does not know.
    """

    def __init__(
        self,
        prompt: Prompt,
        batch: str,
        prefix: str,
        class_of: Callable[[str], str] = str,
        faults: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.prompt, self.batch, self.prefix = prompt, batch, prefix
        self.class_of, self.faults = class_of, faults
        self.order = above(prompt, batch)[:-1]
        self.copies: Prompt = {}

    def add(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, str]]:
        """Copies for one row; the wire that its pictures come from, and its copies by the nodes
        that they are of.

        Args:
            values: by ``NODE.INPUT``.
        """
        changed: dict[str, dict[str, Any]] = {}
        for target, value in values.items():
            node, _, name = target.rpartition(".")
            changed.setdefault(node, {})[name] = value
        names: dict[str, str] = {}
        for key in self.order:
            node = self.prompt[key]
            if key in changed or any(source in names for source in wires(node)):
                names[key] = self.copy(node, changed.get(key, {}), names)
        return self.wire(self.prompt[self.batch]["inputs"]["images"], names), names

    def copy(
        self, node: Mapping[str, Any], values: Mapping[str, Any], names: Mapping[str, str]
    ) -> str:
        """A copy of a node with other values; the same one for the same values."""
        inputs = {name: self.wire(value, names) for name, value in node["inputs"].items()}
        copied = {"class_type": self.class_of(node["class_type"]), "inputs": inputs | dict(values)}
        text = json.dumps(copied, sort_keys=True)
        name = self.prefix + hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
        if name in self.faults:
            copied["inputs"][AGAIN] = self.faults[name]
        self.copies.setdefault(name, copied)
        return name

    @staticmethod
    def wire(value: Any, names: Mapping[str, str]) -> Any:
        """A value, from the copy of where it came from, if there is one."""
        return [names.get(value[0], value[0]), value[1]] if is_wire(value) else value

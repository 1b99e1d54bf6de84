"""Which input of which node a column is, and what its cells may hold.

A column is called ``NODE.INPUT`` (NODE a number, or a class that the graph has once), or by an
input's name alone where one node of the graph has it as a widget, or by a name that a mapping
gives to one of these. What a mapping gives to nothing is left out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_core.bounds import brief, is_unicode
from flux_core.errors import ConfigError
from flux_core.files import read_json

from ..nodes.headless.graph import (
    KNOWN_NODES,
    Graph,
    Link,
    Step,
    input_name,
    input_specs,
    is_widget,
    node_type,
)
from ..nodes.headless.graph_check import checked_value, links_of, ordered_from
from ..nodes.headless.run_graph import saving_nodes
from ..nodes.wires import FLUX_CONTROL, FLUX_IP_ADAPTER, FLUX_MODEL, FLUX_TEXT_ENCODERS
from .grid_text import add_mapping

#: What has to be done again where a column's value changes, the dearest first: weights are read,
#: models are changed, prompts are read, pictures are drawn.
WEIGHTS, MODELS, PROMPTS, PICTURES = range(4)
MODEL_WIRES = {
    *("MODEL", "CLIP", "VAE", "CONTROL_NET", "CLIP_VISION", "STYLE_MODEL"),
    *(FLUX_MODEL, FLUX_TEXT_ENCODERS, FLUX_CONTROL, FLUX_IP_ADAPTER),
}
MOST_NAMED = 8
#: How alike two names are of which one may stand for the other, 1 being the same.
NEAR = 0.7


class ColumnError(ConfigError):
    """A column is no input of the graph; the message names it, and what comes nearest."""


@dataclass(frozen=True)
class Column:
    """One input that rows set."""

    name: str
    step: Step
    input: str
    kind: Any
    options: dict[str, Any]
    #: Choices by what a text writes them as; none where it is a number or a text.
    choices: dict[str, Any]
    rank: int

    @property
    def target(self) -> str:
        return f"{self.step.id}.{self.input}"

    @property
    def is_text(self) -> bool:
        """Whether people write what they like into it."""
        return self.kind == "STRING"

    def value(self, cell: Any) -> Any:
        """A cell as the node takes it; raises ``ValueError`` for what it does not."""
        if self.choices:
            known = self.choices.get(cell) if isinstance(cell, str) else self.choices.get(str(cell))
            if known is not None:
                return known
        elif isinstance(cell, bool) and self.kind != "BOOLEAN":
            raise ValueError(f"{self.name!r} is {cell}, expected {self.kind}")
        elif isinstance(cell, float) and self.kind == "INT" and not cell.is_integer():
            raise ValueError(f"{self.name!r} is {cell}, expected a whole number")
        elif not isinstance(cell, str | int | float):
            raise ValueError(f"{self.name!r} is {brief(cell)}, expected {self.kind}")
        return checked_value(self.step, self.input, self.kind, self.options, cell)


class Columns:
    """The columns of a table over a graph, found as their names come up.

    Args:
        graph: what the rows change.
        mapping: inputs by names that a person declares; an empty one leaves a column out.
    """

    def __init__(self, graph: Graph, mapping: Mapping[str, str]) -> None:
        self.graph, self.mapping = graph, mapping
        keys = ordered_from(graph, saving_nodes(graph))
        self.needed = [graph[key] for key in keys if graph[key].type in KNOWN_NODES]
        self.by_name: dict[str, Column | None] = {}

    def __iter__(self) -> Iterator[Column]:
        """Those that set something, in the order in which they came up."""
        return (column for column in self.by_name.values() if column is not None)

    def find(self, name: str, source: str) -> Column | None:
        """The column of that name, None where it is left out.

        Raises ``ColumnError`` beginning with ``source``, a file or an argument, where there is no
        such input, where several have the name, or where another column sets the same.
        """
        if name not in self.by_name:
            if not is_unicode(name):
                raise ColumnError(f"{source}: the name of column {brief(name)} is no Unicode")
            target = self.mapping.get(name, name)
            column = self.column(name, target, source) if target else None
            twin = next((c for c in self if column and c.target == column.target), None)
            if twin is not None and column is not None:
                raise ColumnError(
                    f"{source}: columns {twin.name!r} and {name!r} both set "
                    f"{column.input!r} of {column.step.label}"
                )
            self.by_name[name] = column
        return self.by_name[name]

    def check_mapping(self, known: Container[str] | None, source: str) -> None:
        """Raise ``ColumnError`` for a name that is mapped to no input, or that is no column.

        Args:
            known: names of all columns; None where rows bring their own.
            source: where these come from, for the message.
        """
        for name, target in self.mapping.items():
            if target:
                self.column(name, target, "mapping")
            if known is not None and name not in known:
                raise ColumnError(f"mapping {name}={target}: no column of that name in {source}")

    def column(self, name: str, target: str, source: str) -> Column:
        node, dot, bare = target.rpartition(".")
        places = self.of_node(node, bare) if dot else self.called(bare)
        where = f"{source}: column {name!r}" + (f" ({target})" if target != name else "")
        if not places:
            raise ColumnError(f"{where} is no input of the workflow{self.nearest(target)}")
        if len(places) > 1:
            names = ", ".join(f"{s.id}.{i} ({s.type})" for s, i in places[:MOST_NAMED])
            raise ColumnError(
                f"{where} is an input of {len(places)} nodes: {names}; name one, or give the name "
                f"to one: --map {bare}={places[0][0].id}.{places[0][1]}"
            )
        ((step, input),) = places
        kind, options = input_specs(KNOWN_NODES[step.type])[input]
        choices = {str(c): c for c in kind} if isinstance(kind, list | tuple) else {}
        return Column(name, step, input, kind, options, choices, rank(self.graph, step))

    def of_node(self, node: str, name: str) -> list[tuple[Step, str]]:
        """The input of the node of that number or class, if it has it."""
        steps = [s for s in self.needed if s.id == node]
        steps = steps or [s for s in self.needed if s.type == node_type(node)]
        return [(s, input_name(s.type, name)) for s in steps if input_name(s.type, name) in own(s)]

    def called(self, name: str) -> list[tuple[Step, str]]:
        """Inputs of that name which no wire brings."""
        return [
            (s, renamed)
            for s in self.needed
            if (renamed := input_name(s.type, name)) in own(s)
            and not isinstance(s.inputs.get(renamed), Link)
        ]

    def nearest(self, target: str) -> str:
        """What was meant, perhaps."""
        names = {f"{s.id}.{name}" for s in self.needed for name in own(s)}
        names |= {f"{s.type}.{name}" for s in self.needed for name in own(s)}
        names |= {name for s in self.needed for name in own(s)}
        names |= {name for name, mapped in self.mapping.items() if mapped}
        folded = {name.lower(): name for name in names}
        match = difflib.get_close_matches(target.lower(), folded, n=1, cutoff=NEAR)
        return f": {folded[match[0]]!r} comes nearest" if match else ""

    def groups(self, values: Mapping[str, Any]) -> tuple[bytes, ...]:
        """What tells rows apart by what they change: weights, then models, then prompts."""
        digest = hashlib.blake2b(digest_size=8)
        digests = []
        for level in (WEIGHTS, MODELS, PROMPTS):
            for column in self:
                if column.rank == level and column.target in values:
                    text = json.dumps([column.target, values[column.target]])
                    digest.update(text.encode())
            digests.append(digest.digest())
        return tuple(digests)


def own(step: Step) -> dict[str, Any]:
    """Inputs of a node that hold a value."""
    specs = input_specs(KNOWN_NODES[step.type])
    return {name: spec for name, spec in specs.items() if is_widget(spec[0])}


def rank(graph: Graph, step: Step) -> int:
    """The dearest thing that has to be done again where a value of this node changes."""
    below = {step.id}
    grown = True
    while grown:
        grown = False
        for other in graph.values():
            if other.id not in below and any(link.node in below for _, link in links_of(other)):
                below.add(other.id)
                grown = True
    return min(own_rank(graph, graph[key]) for key in below)


def own_rank(graph: Graph, step: Step) -> int:
    """What kind of thing a node makes."""
    makes = set(getattr(KNOWN_NODES.get(step.type), "RETURN_TYPES", ()))
    if makes & MODEL_WIRES:
        takes = {
            getattr(KNOWN_NODES.get(graph[link.node].type), "RETURN_TYPES", ())[link.slot]
            for _, link in links_of(step)
            if link.node in graph
        }
        return MODELS if takes & MODEL_WIRES else WEIGHTS
    return PROMPTS if "CONDITIONING" in makes else PICTURES


def read_mapping(arguments: Iterable[str]) -> dict[str, str]:
    """``NAME=NODE.INPUT`` each, or JSON files of an object with such names.

    Raises ``ConfigError`` for what is neither.
    """
    mapping: dict[str, str] = {}
    for argument in arguments:
        name, equals, target = argument.partition("=")
        pairs = {name: target}
        if not equals:
            pairs = read_json(Path(argument), "a mapping of columns")
            if not isinstance(pairs, dict) or not all(isinstance(t, str) for t in pairs.values()):
                raise ConfigError(f'{argument}: expected an object of "NAME": "NODE.INPUT"')
        for name, target in pairs.items():
            add_mapping(mapping, name, target)
    return mapping

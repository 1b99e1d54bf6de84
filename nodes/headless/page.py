"""Workflows as the page saves them, brought to one flat graph.

The page has what a graph has not: notes, reroutes, nodes that only hold a number, nodes that are
muted or bypassed, and subgraphs, whose insides stand in ``definitions`` once for all instances.
Everything is resolved as the page does before it queues a graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
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

#: Nodes that only annotate, that only pass a wire on, and that only hold a value.
NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE, SET, GET = "Reroute", "PrimitiveNode", "SetNode", "GetNode"
VIRTUAL = (*NOTES, REROUTE, PRIMITIVE, SET, GET)
MUTED, BYPASSED = 2, 4
#: Where a subgraph's wires come in and go out.
INSIDE, OUTSIDE = "-10", "-20"
#: The node of a widget that is an instance's own.
OWN = "-1"
#: Subgraphs in subgraphs, and nodes of a whole workflow.
DEEPEST, MOST_NODES = 32, 20_000
#: Fields of a link, in the order in which older pages list them.
LINK_FIELDS = ("id", "origin_id", "origin_slot", "target_id", "target_slot")


@dataclass(frozen=True)
class Value:
    """What stands in a node in the place of a wire."""

    value: Any


#: What an input reads; None where nothing comes in.
Origin = Link | Value | None


@dataclass
class PageNode:
    """One node of the flat page: what it reads by slot, and the types of its slots."""

    id: str
    type: str
    mode: int
    widgets: Any
    properties: Mapping[str, Any]
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"node {self.id} ({self.type})"


class Page:
    """A page's nodes, flat, and where the outputs of subgraphs come from."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.nodes: dict[str, PageNode] = {}
        self.aliases: dict[Link, Origin] = {}
        self.added = 0
        definitions = mapping(data.get("definitions"), "definitions")
        subgraphs = listing(definitions.get("subgraphs"), "definitions.subgraphs")
        self.subgraphs = {str(s.get("id")): s for s in mappings(subgraphs, "a subgraph")}
        self.add(data, "", {}, ())

    def add(
        self,
        scope: Mapping[str, Any],
        prefix: str,
        outer: Mapping[int, Origin],
        above: tuple[str, ...],
    ) -> dict[int, Origin]:
        """Add a page or the inside of a subgraph; gives what its outputs come from, by slot.

        ``outer`` is what comes in, by slot; ``above`` are the subgraphs around.
        """
        links = read_links(scope)

        def origin(number: Any) -> Origin:
            link = links.get(str(number))
            if link is None:
                return None
            node, slot = str(link["origin_id"]), whole(link["origin_slot"], "a link's slot")
            return outer.get(slot) if node == INSIDE else Link(prefix + node, slot)

        for item in mappings(listing(scope.get("nodes"), "nodes"), "a node"):
            node = page_node(item, prefix, origin)
            if node.id in self.nodes:
                raise WorkflowError(f"two nodes have the number {node.id}")
            self.nodes[node.id] = node
            self.added += 1
            if self.added > MOST_NODES:
                raise WorkflowError(f"has more than {MOST_NODES} nodes with those in subgraphs")
            subgraph = self.subgraphs.get(node.type)
            if subgraph is not None and node.mode not in (MUTED, BYPASSED):
                self.open_subgraph(node, subgraph, above)
        ends = [link for link in links.values() if str(link["target_id"]) == OUTSIDE]
        return {whole(end["target_slot"], "a link's slot"): origin(end["id"]) for end in ends}

    def open_subgraph(
        self, node: PageNode, subgraph: Mapping[str, Any], above: tuple[str, ...]
    ) -> None:
        """Put the inside of a subgraph in the place of an instance."""
        if node.type in above or len(above) >= DEEPEST:
            raise WorkflowError(f"{node.label}: the subgraph holds itself, or too many others")
        outer = dict(enumerate(subgraph_inputs(node, subgraph)))
        inner = self.add(subgraph, f"{node.id}:", outer, (*above, node.type))
        for (target, name), value in proxied(node).items():
            inside = self.nodes.get(f"{node.id}:{target}")
            if inside is not None:
                set_origin(inside, name, Value(value))
        del self.nodes[node.id]
        for slot in range(len(node.outputs)):
            self.aliases[Link(node.id, slot)] = inner.get(slot)

    def resolve(self, origin: Origin) -> Origin:
        """Follow a wire back through what only passes it on; None where it ends in nothing."""
        passed = set[Link]()
        while isinstance(origin, Link):
            before = self.before(origin)
            if before == origin:
                break
            if origin in passed:
                raise WorkflowError(f"node {origin.node}: its wires run in a ring")
            passed.add(origin)
            origin = before
        self.aliases |= dict.fromkeys(passed, origin)  # the next wire need not go the whole way
        return origin

    def before(self, link: Link) -> Origin:
        """What a node passes on as an output; the output itself where the node computes it."""
        if link in self.aliases:
            return self.aliases[link]
        node = self.nodes.get(link.node)
        if node is None or not (node.mode in (MUTED, BYPASSED) or node.type in VIRTUAL):
            return link
        origin = passed_on(node, link.slot)
        if node.type == GET and node.mode not in (MUTED, BYPASSED):
            origin = self.named_wires.get(wire_name(node))
        if origin == link:
            raise WorkflowError(f"{node.label}: its wires run in a ring")
        return origin

    @cached_property
    def named_wires(self) -> dict[tuple[str, str], Origin]:
        """What Set nodes read, by the subgraph that they stand in and the name that they give."""
        setters = [node for node in self.nodes.values() if node.type == SET]
        return {
            wire_name(node): node.origins[0] if node.origins else None for node in reversed(setters)
        }

    def graph(self) -> Graph:
        """All nodes that compute, with what goes into each input."""
        graph: Graph = {}
        for key, node in self.nodes.items():
            if node.type in VIRTUAL or node.mode in (MUTED, BYPASSED):
                continue
            models = [m for m in listing(node.properties.get("models"), "models") if is_model(m)]
            step = Step(key, node_type(node.type), models=models)
            node_class = KNOWN_NODES.get(step.type)
            if node_class is not None:
                step.inputs |= widget_values(node_class, node.widgets, step.label)
            for name, origin in zip(node.names, node.origins, strict=True):
                resolved = self.resolve(origin)
                if resolved is not None:
                    value = resolved.value if isinstance(resolved, Value) else resolved
                    step.inputs[input_name(step.type, name)] = value
            graph[key] = step
        return graph


def wire_name(node: PageNode) -> tuple[str, str]:
    """What a Set or Get node calls its wire, and the subgraph in which the name counts."""
    return node.id.rpartition(":")[0], repr(listing(node.widgets, "widgets_values")[:1])


def from_ui(data: Mapping[str, Any]) -> Graph:
    """A page's graph; raises ``WorkflowError`` for what is malformed, naming the node."""
    return Page(data).graph()


def page_node(item: Mapping[str, Any], prefix: str, origin: Any) -> PageNode:
    """A node as its item says."""
    if not isinstance(item.get("type"), str) or not isinstance(item.get("id"), int | str):
        raise WorkflowError(f"a node has id {item.get('id')!r} and type {item.get('type')!r}")
    node = PageNode(
        f"{prefix}{item['id']}",
        item["type"],
        whole(item.get("mode") or 0, "a node's mode"),
        item.get("widgets_values"),
        mapping(item.get("properties"), f"node {item['id']}: properties"),
    )
    for slot in mappings(listing(item.get("inputs"), f"{node.label}: inputs"), node.label):
        widget = mapping(slot.get("widget"), f"{node.label}: a widget")
        node.names.append(str(widget.get("name") or slot.get("name", "")))
        node.kinds.append(str(slot.get("type", "*")))
        node.origins.append(origin(slot.get("link")))
    for slot in mappings(listing(item.get("outputs"), f"{node.label}: outputs"), node.label):
        node.outputs.append(str(slot.get("type", "*")))
    return node


def set_origin(node: PageNode, name: str, origin: Origin) -> None:
    """Let an input of a node, which may be a widget without a slot, read something."""
    if name in node.names:
        node.origins[node.names.index(name)] = origin
        return
    node.names.append(name)
    node.kinds.append("*")
    node.origins.append(origin)


def subgraph_inputs(node: PageNode, subgraph: Mapping[str, Any]) -> Iterator[Origin]:
    """What comes into a subgraph, by slot: the instance's wire, or the value that it shows.

    Newer pages keep the values of inputs that are widgets inside in the instance, in the order of
    the inputs; older ones in the nodes inside, which then keep what they have.
    """
    own = own_values(node)
    inputs = list(mappings(listing(subgraph.get("inputs"), "inputs"), "an input"))
    widgets = links_of_widgets(subgraph)
    shown = [slot for slot in inputs if is_shown(slot, widgets)]
    values = widgets_of(node)
    kept = dict(zip(map(id, shown), values, strict=False)) if len(values) == len(shown) else {}
    for slot in inputs:
        name = str(slot.get("name", ""))
        wire = node.origins[node.names.index(name)] if name in node.names else None
        if wire is None and name in own:
            wire = Value(own[name])
        elif wire is None and not own and kept.get(id(slot)) is not None:
            wire = Value(kept[id(slot)])
        yield wire


def links_of_widgets(subgraph: Mapping[str, Any]) -> dict[str, bool]:
    """Links inside a subgraph, and whether what they go into is a widget."""
    links: dict[str, bool] = {}
    for item in mappings(listing(subgraph.get("nodes"), "nodes"), "a node"):
        for inner in mappings(listing(item.get("inputs"), "inputs"), "an input"):
            if inner.get("link") is not None:
                links.setdefault(str(inner["link"]), bool(inner.get("widget")))
    return links


def is_shown(slot: Mapping[str, Any], widgets: Mapping[str, bool]) -> bool:
    """Whether an input of a subgraph goes into a widget inside."""
    numbers = [str(number) for number in listing(slot.get("linkIds"), "linkIds")]
    return next((widgets[number] for number in numbers if number in widgets), False)


def own_values(node: PageNode) -> dict[str, Any]:
    """Values that an instance keeps for its own inputs, by name, where it says which they are."""
    pairs = proxies_of(node)
    if len(pairs) != len(widgets_of(node)):  # those of nodes inside are not kept here
        pairs = [pair for pair in pairs if pair[0] == OWN]
    return {name: value for (owner, name), value in shown_by(node, pairs).items() if owner == OWN}


def proxied(node: PageNode) -> dict[tuple[str, str], Any]:
    """Values that an instance keeps for widgets inside: by node and widget."""
    return shown_by(node, proxies_of(node))


def shown_by(node: PageNode, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """The values of an instance by node and widget, where it has one for each."""
    values = widgets_of(node)
    if len(pairs) != len(values):
        return {}
    return {pair: v for pair, v in zip(pairs, values, strict=True) if v is not None}


def proxies_of(node: PageNode) -> list[tuple[str, str]]:
    """Nodes and widgets that an instance shows, in the order of its values."""
    proxies = listing(node.properties.get("proxyWidgets"), f"{node.label}: proxyWidgets")
    pairs = (p if isinstance(p, list) and len(p) >= 2 else ("", "") for p in proxies)
    return [(str(owner), str(name)) for owner, name, *_ in pairs]


def widgets_of(node: PageNode) -> list[Any]:
    return node.widgets if isinstance(node.widgets, list) else []


def passed_on(node: PageNode, slot: int) -> Origin:
    """What a node that computes nothing has as an output; None where it passes nothing on."""
    if node.mode == MUTED or node.type in NOTES:
        return None
    if node.mode == BYPASSED:
        return through(node, slot)
    if node.type == PRIMITIVE:
        values = listing(node.widgets, f"{node.label}: widgets_values")
        return Value(values[0]) if values else None
    return node.origins[0] if node.origins else None


def through(node: PageNode, slot: int) -> Origin:
    """What the output of a bypassed node stands for: the input of its own place if that is of its
    type, else the first that is."""
    kind = node.outputs[slot] if slot < len(node.outputs) else "*"
    if slot < len(node.kinds) and (node.kinds[slot] == kind or "*" in (kind, node.kinds[slot])):
        return node.origins[slot]
    for wanted in (kind, "*"):
        if wanted in node.kinds:
            return node.origins[node.kinds.index(wanted)]
    return None


def read_links(scope: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Links by number, whether a page lists their fields or names them."""
    links: dict[str, Mapping[str, Any]] = {}
    for item in listing(scope.get("links"), "links"):
        if item is None:
            continue
        fields = dict(zip(LINK_FIELDS, item, strict=False)) if isinstance(item, list) else item
        if not isinstance(fields, Mapping) or any(name not in fields for name in LINK_FIELDS):
            raise WorkflowError(f"a link is {item!r}, expected {', '.join(LINK_FIELDS)}")
        links[str(fields["id"])] = fields
    return links


def widget_values(node_class: type, values: Any, label: str) -> dict[str, Any]:
    """The values of a node's widgets by input name; those that a file is too old for are left."""
    specs = {n: s for n, s in input_specs(node_class).items() if is_widget(s[0])}
    if isinstance(values, Mapping):
        values = {input_name(node_class.__name__, str(name)): v for name, v in values.items()}
        return {name: values[name] for name in specs if values.get(name) is not None}
    by_name: dict[str, Any] = {}
    rest = iter(listing(values, f"{label}: widgets_values"))
    for name, (_, options) in specs.items():
        try:
            value = next(rest)
            if adds_control(name, options):
                next(rest, None)
        except StopIteration:
            break
        if value is not None:
            by_name[name] = value
    # a button to upload with is a widget too, of which pages keep this and that
    left = [v for v in rest if v not in ("image", None, "") and not isinstance(v, Mapping)]
    if left:
        raise WorkflowError(f"{label}: {len(left)} widget values more than it has inputs: {left}")
    return by_name


def adds_control(name: str, options: dict) -> bool:
    """Whether the page puts a widget after this one that says how it changes between runs: after
    seeds unless the node says otherwise."""
    return bool(options.get("control_after_generate", name in ("seed", "noise_seed")))


def listing(value: Any, what: str) -> list:
    """A list, empty where a page has null; raises ``WorkflowError`` for anything else."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise WorkflowError(f"{what} is {value!r}, expected a list")
    return value


def mapping(value: Any, what: str) -> Mapping[str, Any]:
    """Names and values, none where a page has null; raises ``WorkflowError`` for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise WorkflowError(f"{what} is {value!r}, expected names and values")
    return value


def mappings(values: list, what: str) -> Iterator[Mapping[str, Any]]:
    return (mapping(value, what) for value in values)


def whole(value: Any, what: str) -> int:
    """A number that counts; raises ``WorkflowError`` for anything else."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise WorkflowError(f"{what} is {value!r}, expected a whole number")
    return value


def is_model(item: Any) -> bool:
    """Whether a note about a model's file says what it is called and where it is to be had."""
    names = ("name", "url", "directory")
    return isinstance(item, Mapping) and all(isinstance(item.get(name), str) for name in names)

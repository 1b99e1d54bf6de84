"""The host's own nodes and other packs' for as long as a batch is planned inside of the host.

The headless runner knows our nodes and stands in for the host's that FLUX graphs commonly have. In
the host any node may stand in a graph: what is needed of it here are its inputs and outputs, to
find columns, to check their values, and to name jobs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..nodes import NODE_CLASS_MAPPINGS, host_execution
from ..nodes.headless.graph import KNOWN_NODES, WIDGET_TYPES
from .row_graph import is_wire

NO_OPTIONS: dict[str, Any] = {}
#: What takes and gives any wire, which the host has checked; and what holds any other value.
ANY, TEXT = ("*", NO_OPTIONS), ("STRING", NO_OPTIONS)


@contextmanager
def host_nodes_known(prompt: Mapping[str, Any]) -> Iterator[None]:
    """Inside, ``KNOWN_NODES`` has every node of a prompt, with the choices that the host has."""
    before = dict(KNOWN_NODES)
    classes = host_execution.node_classes()
    for node in prompt.values():
        name = node["class_type"]
        if name in classes and name not in NODE_CLASS_MAPPINGS:
            KNOWN_NODES[name] = described(classes[name], before.get(name), node["inputs"])
    try:
        yield
    finally:
        KNOWN_NODES.clear()
        KNOWN_NODES.update(before)


def described(node_class: Any, stand_in: Any, inputs: Mapping[str, Any]) -> type:
    """A class that says of a node what is asked here, and runs nothing.

    Where a stand-in is known its inputs alone count, so that a job has the same name here and in
    the headless runner; its choices are the host's too.
    """
    theirs = declared(node_class)
    if stand_in is None:
        specs = {name: plain_spec(spec, inputs.get(name)) for name, spec in theirs.items()}
    else:
        specs = {name: widened(spec, theirs.get(name)) for name, spec in declared(stand_in).items()}
    body = {
        "INPUT_TYPES": classmethod(lambda cls: {"optional": specs}),
        "RETURN_TYPES": tuple(node_class.RETURN_TYPES),
        "OUTPUT_NODE": bool(getattr(node_class, "OUTPUT_NODE", False)),
    }
    return type(node_class.__name__, (), body)


def declared(node_class: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every input of a class: type or choices, and options."""
    types = node_class.INPUT_TYPES()
    given = {**types.get("required", {}), **types.get("optional", {})}
    return {
        name: (spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {})
        for name, spec in given.items()
    }


def choices_of(spec: tuple[Any, dict[str, Any]]) -> list[Any] | None:
    """What one may choose among, in both of the host's ways to say it; None for other inputs."""
    kind, options = spec
    if isinstance(kind, list | tuple):
        return list(kind)
    return list(options.get("options", ())) if kind == "COMBO" else None


def plain_spec(spec: tuple[Any, dict[str, Any]], value: Any) -> tuple[Any, dict[str, Any]]:
    """An input as the headless runner reads it; a value of a kind of its own is a text."""
    choices = choices_of(spec)
    if choices is not None:
        return choices, spec[1]
    if is_wire(value):
        return ANY
    return spec if spec[0] in WIDGET_TYPES else TEXT


def widened(
    spec: tuple[Any, dict[str, Any]], theirs: tuple[Any, dict[str, Any]] | None
) -> tuple[Any, dict[str, Any]]:
    """A stand-in's input with the host's choices beside its own."""
    more = None if theirs is None else choices_of(theirs)
    mine = choices_of(spec)
    if mine is None or more is None:
        return spec
    return list(dict.fromkeys([*mine, *more])), spec[1]

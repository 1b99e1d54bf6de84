"""Calling nodes as a graph does."""

from __future__ import annotations

from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless


def node(name: str, /):
    return NODE_CLASS_MAPPINGS[name]()


def defaults(name: str, /, **given):
    specs = headless.input_specs(NODE_CLASS_MAPPINGS[name])
    values = {
        key: options.get("default", kind[0] if isinstance(kind, list) and kind else None)
        for key, (kind, options) in specs.items()
        if headless.is_widget(kind)
    }
    return values | given

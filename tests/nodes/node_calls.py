"""Calling nodes as a graph does."""

from __future__ import annotations

import torch
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


SETTINGS = {
    "seed": 5,
    "steps": 3,
    "cfg": 1.0,
    "sampler": "euler",
    "scheduler": "simple",
    "shift": "resolution",
    "denoise": 1.0,
}


def empty(channels=16, side=64, batch=1):
    return {"samples": torch.zeros(batch, channels, side // 8, side // 8)}


def sample(loaded, positive, latent, **options):
    node = NODE_CLASS_MAPPINGS["FluxSampler"]()
    out = node.sample(loaded[0], positive, latent, **{**SETTINGS, **options})
    return out["result"]

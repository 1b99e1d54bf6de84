"""Pictures of the pocket model under a policy."""

from __future__ import annotations

from functools import lru_cache

import torch

from flux_core import (
    Control,
    FluxControlNet,
    FluxPipeline,
    OffloadPolicy,
    load_controlnet,
)
from flux_core.pocket import pocket_file

SETTINGS = {"width": 64, "height": 64, "steps": 3, "negative_prompt": "white", "cfg": 2.0}


@lru_cache(2)
def pocket_parts(precision: str) -> tuple[FluxPipeline, FluxControlNet]:
    """The pocket model and its ControlNet, opened once; runs leave them as they are."""
    net = load_controlnet(pocket_file("controlnet", "_upscaler"), precision=precision)
    return FluxPipeline.from_pocket(precision=precision), net


def pocket_picture(
    precision: str, policy: OffloadPolicy, controls: bool = False, **options
) -> torch.Tensor:
    """A picture (1, H, W, 3), drawn twice: with its text encoded, and with what is known of it."""
    opened, net = pocket_parts(precision)
    opened.text_encoders.encodings.clear()
    pipeline = FluxPipeline(opened.transformer, opened.text_encoders, opened.vae, policy=policy)
    nets = ()
    if controls:
        cond = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        nets = (Control(net, cond, end=0.4),)
    first = pipeline("a red circle on blue", **SETTINGS | options, controls=nets).images
    second = pipeline("a red circle on blue", **SETTINGS | options, controls=nets).images
    assert torch.equal(first, second)
    return first

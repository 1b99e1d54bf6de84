"""Pictures of the pocket model under a policy."""

from __future__ import annotations

import torch

from flux_core import (
    Control,
    FluxPipeline,
    OffloadPolicy,
    load_controlnet,
)
from flux_core.pocket import pocket_file

SETTINGS = {"width": 64, "height": 64, "steps": 3, "negative_prompt": "white", "cfg": 2.0}


def pocket_picture(
    precision: str, policy: OffloadPolicy, controls: bool = False, **options
) -> torch.Tensor:
    pipeline = FluxPipeline.from_pocket(precision=precision, policy=policy)
    nets = ()
    if controls:
        net = load_controlnet(pocket_file("controlnet", "_upscaler"), precision=precision)
        cond = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        nets = (Control(net, cond, end=0.6),)
    first = pipeline("a red circle on blue", **SETTINGS | options, controls=nets).images
    second = pipeline("a red circle on blue", **SETTINGS | options, controls=nets).images
    assert torch.equal(first, second)
    return first

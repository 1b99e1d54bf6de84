"""What only a card can show."""

from __future__ import annotations

import pytest
import torch

from flux_core import FluxPipeline, OffloadPolicy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SETTINGS = {"width": 64, "height": 64, "steps": 4, "negative_prompt": "white", "cfg": 2.0}


@pytest.mark.parametrize("precision", ["bf16", "fp8_e4m3fn", "fp8_scaled"])
def test_policies_give_the_same_picture_to_the_bit(precision):
    drawn = [
        FluxPipeline.from_pocket(precision=precision, policy=OffloadPolicy(mode), device="cuda")(
            "a red circle on blue", **SETTINGS
        ).images
        for mode in ("none", "component")
    ]
    assert torch.equal(*drawn)


def test_component_leaves_nothing_on_the_card():
    pipeline = FluxPipeline.from_pocket(policy=OffloadPolicy("component"), device="cuda")
    pipeline("a red circle on blue", **SETTINGS)
    held = torch.cuda.memory_allocated()
    pipeline("a green star on white", **SETTINGS)
    assert torch.cuda.memory_allocated() == held
    parts = (pipeline.transformer, pipeline.text_encoders, pipeline.vae)
    assert {p.device.type for part in parts for p in part.parameters()} == {"cpu"}

"""Prompts that are known already."""

from __future__ import annotations

import torch

from flux_core import (
    FluxPipeline,
    OffloadPolicy,
    quantize,
)
from tests.flux_core.offload.pocket_pictures import SETTINGS


def test_a_prompt_that_is_known_loads_no_encoder():
    pipeline = FluxPipeline.from_pocket(policy=OffloadPolicy("component"))
    first = pipeline("a red circle", **SETTINGS)
    again = pipeline("a red circle", **SETTINGS)
    assert "text encoders" in first.report.parts and "text encoders" not in again.report.parts
    assert torch.equal(first.images, again.images)
    both = pipeline(["a red circle", "a blue star"], batch_size=2, **SETTINGS)
    assert "text encoders" in both.report.parts
    encoders = pipeline.text_encoders
    assert encoders.cached("a red circle") is not None
    assert encoders.cached("a red circle", "another for CLIP") is None
    assert encoders.cached("a red circle", t5_length=8) is None
    quantize(encoders.t5, "int8")
    quantize(encoders.clip_l, "int8")
    assert encoders.cached("a red circle") is None, "the encoders are others now"

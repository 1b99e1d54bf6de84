"""Prompts that are known already."""

from __future__ import annotations

import gc
import weakref

import torch
from safetensors.torch import load_file, save_file

from flux_core import (
    FluxPipeline,
    OffloadPolicy,
    load_lora,
    quantize,
)
from tests.flux_core.offload.pocket_pictures import SETTINGS
from tests.wild.faults import small_lora


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


def test_a_lora_without_text_layers_encodes_nothing_again_and_none_is_kept_alive(tmp_path):
    pipeline = FluxPipeline.from_pocket(policy=OffloadPolicy("component"))
    pipeline("a red circle", **SETTINGS)
    path = small_lora(tmp_path / "both.safetensors", pipeline)
    tensors = load_file(path)
    save_file({k: t for k, t in tensors.items() if k.startswith("transformer.")}, tmp_path / "one")
    for strength in (0.5, 0.6):
        drawn = pipeline("a red circle", loras=[(tmp_path / "one", strength)], **SETTINGS)
        assert "text encoders" not in drawn.report.parts
    lora = load_lora(path)
    for strength in (0.5, 0.6):
        drawn = pipeline("a red circle", loras=[(lora, strength)], **SETTINGS)
        assert "text encoders" in drawn.report.parts
    drawn = pipeline("a red circle", loras=[(lora, 0.6)], **SETTINGS)
    assert "text encoders" not in drawn.report.parts
    opened = []
    for _ in range(4):
        lora = load_lora(path)
        opened.append(weakref.ref(lora))
        pipeline("a red circle", loras=[(lora, 0.5)], **SETTINGS)
    del lora
    gc.collect()
    alive = [reference() is not None for reference in opened]
    assert alive == [False, False, False, True]  # a model keeps the branches of its last LoRAs

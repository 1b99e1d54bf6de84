"""Runs with LoRAs that count here and there, now and then."""

from __future__ import annotations

import torch
from torch import Tensor

from flux_core import (
    Conditioning,
    FluxTransformer,
    OffloadPolicy,
)
from flux_core.lora import Lora, LoraRegion, LoraUse
from flux_core.offload import OffloadRunner
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw
from tests import tiny_models
from tests.flux_core.lora.lora_files import pair
from tests.flux_core.lora.lora_kinds import every_kind

CPU = torch.device("cpu")

POLICIES = (
    OffloadPolicy("none"),
    OffloadPolicy("component", separate_memory=True),
    OffloadPolicy("stream", separate_memory=True),
    OffloadPolicy("stream", separate_memory=True, slots=3),
    OffloadPolicy("auto", separate_memory=True, vram_budget=16_000_000),
)


def prompt(seed: int = 0, text: int = 5) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, text, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
    )


def request(model: FluxTransformer, loras=(), size=(1, 16, 4, 6), **options) -> DrawRequest:
    settings = {"steps": 4, "seed": 3} | {
        k: options.pop(k)
        for k in ("steps", "sampler", "sigmas", "cfg", "batch_index")
        if k in options
    }
    options = {"positive": prompt()} | options
    return DrawRequest(
        model, latents=torch.zeros(size), settings=SamplingSettings(**settings), loras=loras,
        **options,
    )  # fmt: skip


def drawn(*requests: DrawRequest, policy: OffloadPolicy = POLICIES[0]) -> Tensor:
    return draw(OffloadRunner(policy, CPU), requests)[0]


#: A mask whose upper half counts.
EDGE = torch.tensor([[1.0], [0.0]])


def low_rank(model: FluxTransformer, size: float = 1.0) -> Lora:
    """A LoRA of rank 16 on every layer of the blocks."""
    layers = {}
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and "_blocks" in name:
            down, up = pair((layer.out_features, layer.in_features), 16)
            layers["transformer", name] = {"down": down, "up": size * up}
    return Lora("low", layers, {key: (key[1],) for key in layers})


def stack_of_all(model: FluxTransformer) -> list[LoraUse]:
    """LoRAs with schedules and regions of every form, and one without."""
    mask = torch.zeros(1, 8, 12)
    mask[:, :, 5:] = 1
    region = LoraRegion(mask, 0.5, 0.25)
    return [
        LoraUse(every_kind(model), 0.3, "double: 0.5, else: 1", "0:1, 0.6:0.2, 1:1", region),
        LoraUse(every_kind(model, 31), 0.2, schedule="step 0:0, 0.4:1"),
        LoraUse(every_kind(model, 62), 0.2, region=1 - mask),
        LoraUse(every_kind(model, 93), 0.1),
    ]

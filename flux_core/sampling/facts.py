"""What a picture's receipt says of how its latents were drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..lora import LoraStack, LoraUse, lora_uses
from ..models.families import family_of
from ..models.transformer import FluxTransformer
from ..record import ReadFrom, read_from
from .conditioning import Conditioning, Control
from .settings import SamplingSettings


def of_latents(transformer: FluxTransformer, latents: Tensor, sigmas: Tensor) -> dict[str, Any]:
    """Model, size in pixels and sigmas (steps + 1,) of a run over latents (B, 16, h, w)."""
    family = family_of(transformer)
    height, width = (family.vae.compression * side for side in latents.shape[-2:])
    return {
        "model": read_from(transformer),
        "family": family.name,
        "width": width,
        "height": height,
        "batch": len(latents),
        "steps": max(0, len(sigmas) - 1),
        "sigmas": [round(sigma, 6) for sigma in sigmas.tolist()],
    }


def of_settings(settings: SamplingSettings) -> dict[str, Any]:
    """Seed, sampler and guidance of a run; its schedule where that has no sigmas of its own."""
    of_schedule = settings.sigmas is None
    return {
        "batch_index": None if settings.batch_index is None else list(settings.batch_index),
        "seed": settings.seed,
        "sampler": settings.sampler,
        "scheduler": settings.scheduler if of_schedule else None,
        "shift": settings.shift,
        "denoise": settings.denoise if of_schedule else None,
        "cfg": settings.cfg,
    }


def of_prompts(prompts: Sequence[Conditioning]) -> dict[str, Any]:
    """The distilled guidance of some prompts, the first one's; no word of what they say."""
    return {"guidance": next((p.guidance for p in prompts if p.guidance is not None), None)}


def of_loras(loras: LoraStack) -> list[dict[str, Any]] | None:
    """Each LoRA's file and how much it counts; None where there is none."""
    return [of_lora(use) for use in lora_uses(loras)] or None


def of_lora(use: LoraUse) -> dict[str, Any]:
    facts: dict[str, Any] = {"lora": read_lora(use), "strength": use.strength}
    # of what stands beside the strength the graph has the words
    return facts | {name: True for name in ("blocks", "schedule", "region") if getattr(use, name)}


def read_lora(use: LoraUse) -> ReadFrom:
    """The file of a LoRA as it was when it was opened."""
    return ReadFrom(Path(use.lora.path), stamp=use.lora.stamp)


def of_controls(controls: Sequence[Control]) -> list[dict[str, Any]] | None:
    """Each ControlNet's file, strength and span; None where there is none."""
    return [
        {
            "model": read_from(control.net),
            "strength": control.strength,
            "start": control.start,
            "end": control.end,
        }
        for control in controls
    ] or None

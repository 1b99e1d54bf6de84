"""What a run of the host's sampling reads, counted of its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from flux_core.models.geometry import FLUX1_TOKENS, TokenGeometry
from flux_core.offload import Work
from flux_core.sampling.latents import image_tokens

from .. import host
from ..conditioning import REGIONS_KEY
from .patches import has_patches

#: Of wrappers that are ours.
KEY = "fluxfit"


def takes_all(options: Mapping[str, Any]) -> bool:
    """Whether other code may compare the prompts of one step, so that they are drawn at once:
    patches, wrappers that are not ours (caches), a function around the model."""
    inner = options.get("transformer_options", {})
    wrappers = [key for by_key in inner.get("wrappers", {}).values() for key in by_key]
    return (
        has_patches(inner)
        or "model_function_wrapper" in options
        or any(key != KEY for key in wrappers)
    )


def refuse_regions(prompts: Sequence[Mapping[str, Any]]) -> None:
    """Raise ``ValueError`` where a prompt, of those that the host's samplers draw, has regions."""
    if any(prompt.get(REGIONS_KEY) is not None for prompt in prompts):
        raise ValueError(
            "FLUX Regional Prompts draw with FluxSampler's own samplers: put FluxSampler in the "
            "place of this one, without sampler_object and guider; stock samplers draw "
            "ConditioningSetArea and ConditioningSetMask"
        )


def text_count(prompt: Mapping[str, Any]) -> int:
    """Text tokens of one of the host's prompts."""
    context = prompt.get("cross_attn")
    return 512 if context is None else int(context.shape[1])


def reference_count(
    prompts: Sequence[Mapping[str, Any]],
    method: str = "",
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> int:
    """The most tokens that reference latents of a prompt take, of those that a method places where
    one is named."""
    counts = [
        sum(
            image_tokens(*latent.shape[-2:], geometry=geometry)
            for latent in prompt.get("reference_latents") or ()
        )
        for prompt in prompts
        if method in ("", prompt.get("reference_latents_method"))
    ]
    return max(counts, default=0)


def other_models(conds: Mapping[str, Any], options: Mapping[str, Any]) -> list[Any]:
    """Patchers of what the host brings to the device beside the transformer: ControlNets."""
    helpers = host.comfy("comfy.sampler_helpers")
    assert helpers is not None
    models, _ = helpers.get_additional_models(conds, torch.float32)
    return [*models, *helpers.get_additional_models_from_model_options(options)]


def work_beside(work: Work, others: Sequence[Any]) -> Work:
    """A run's work with room for other models."""
    room = sum(int(other.model_size()) for other in others)
    return replace(work, activations=work.activations + room)

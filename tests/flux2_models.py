"""Tiny random models with FLUX.2's shape, ours and diffusers'."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from flux_core.models.families import FLUX2_DEV, FLUX2_KLEIN, Family
from flux_core.models.flux2 import Flux2Config, Flux2Transformer
from flux_core.sampling.latents import image_ids, image_tokens, text_ids
from tests.tiny_models import HEAD, HEADS, HIDDEN, randomise

CONTEXT = 48
TOKENS = FLUX2_DEV.tokens
DEV = Flux2Config(context_in_dim=CONTEXT, hidden_size=HIDDEN, depth=2, depth_single_blocks=3)
#: Public models: their family, double and single blocks, and whether they read guidance.
MEMBERS: dict[str, tuple[Family, int, int, bool]] = {
    "FLUX.2 dev": (FLUX2_DEV, 8, 48, True),
    "FLUX.2 klein 4B": (FLUX2_KLEIN, 5, 20, False),
    "FLUX.2 klein 9B": (FLUX2_KLEIN, 8, 24, False),
    "FLUX.2 klein base": (FLUX2_KLEIN, 5, 20, False),
}


def transformer(config: Flux2Config = DEV, seed: int = 0) -> Flux2Transformer:
    """Ours, of random float32 numbers."""
    model = cast(Flux2Transformer, randomise(Flux2Transformer(config), seed))
    model.requires_grad_(False)
    return model


def diffusers_model(guidance: bool = True, double: int = 2, single: int = 3) -> Any:
    """diffusers', of random float32 numbers."""
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=HEAD,
        num_attention_heads=HEADS,
        joint_attention_dim=CONTEXT,
        guidance_embeds=guidance,
    )
    return cast(nn.Module, randomise(model)).requires_grad_(False)


def inputs(batch: int = 2, height: int = 4, width: int = 3, text: int = 5) -> dict[str, Tensor]:
    """Arguments of a transformer's forward, float32."""
    generator = torch.Generator().manual_seed(7)
    tokens = image_tokens(height, width, geometry=TOKENS)
    return {
        "img": torch.randn(batch, tokens, 128, generator=generator),
        "img_ids": image_ids(height, width, geometry=TOKENS),
        "txt": torch.randn(batch, text, CONTEXT, generator=generator),
        "txt_ids": text_ids(text, TOKENS),
        "timesteps": torch.linspace(0.3, 0.9, batch),
        "guidance": torch.full((batch,), 4.0),
    }


def to_diffusers(kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same arguments under diffusers' names."""
    names = {"img": "hidden_states", "txt": "encoder_hidden_states", "timesteps": "timestep"}
    return {names.get(name, name): value for name, value in kwargs.items()}

"""What the transformer and its ControlNets are called with, for drawing and for training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .latents import pack, text_ids


def model_inputs(
    latents: Tensor,
    img_ids: Tensor,
    context: Tensor,
    pooled: Tensor | None,
    timesteps: Tensor,
    guidance: Tensor | None,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> dict[str, Any]:
    """The arguments of ``FluxTransformer.forward``, all on the device of the latents.

    Args:
        latents: (B, C, h, w), noisy and standardised, with what else the model reads beside them.
        img_ids: positions of their tokens, (L, axes).
        context: (B, N, D).
        pooled: (B, P); None where the family reads none.
        timesteps, guidance: (B,).
        geometry: of the family whose latents they are.
    """
    return {
        "img": pack(latents, geometry),
        "img_ids": img_ids,
        "txt": context,
        "txt_ids": text_ids(context.shape[1], geometry).to(latents.device),
        "timesteps": timesteps,
        "y": pooled,
        "guidance": guidance,
    }

"""What models with a wider input read beside the noisy latents.

    Canny, Depth, control LoRAs   128 = 4 (16 noisy + 16 of a picture)
    Fill                          384 = 4 (16 noisy + 16 of a picture + 64 of a mask)
    Flex.2                        196 = 4 (16 noisy + 16 of a picture + 1 of a mask + 16 of control)

A mask's 8x8 pixels over one latent become 64 channels. Flex.2 reads the picture where the mask
keeps it, as zeros elsewhere, and zeros where there is no picture or no control, all of them of
standardised latents (github.com/ostris/ai-toolkit).
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..models.config import VAEConfig
from ..models.families import family_of
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from ..models.transformer import FluxTransformer
from .latents import CONSTANTS, expand, standardise

CHANNELS, SIDE = CONSTANTS.z_channels, CONSTANTS.compression
#: Extra channels of a latent, by what they are.
PICTURE, PICTURE_AND_MASK = CHANNELS, CHANNELS + SIDE * SIDE
MASKED_AND_CONTROL = CHANNELS + 1 + CHANNELS
#: What is said of a control picture elsewhere.
NO_CONTROL = (
    "a control picture is read by Flex.2 alone: for Canny and Depth models and control LoRAs it is "
    "the condition, and others have ControlNets"
)
KNOWN = (0, PICTURE, MASKED_AND_CONTROL, PICTURE_AND_MASK)


def extra_channels(
    in_channels: int, geometry: TokenGeometry = FLUX1_TOKENS, vae: VAEConfig = CONSTANTS
) -> int:
    """Channels of a latent that a model reads beside the noisy ones, for packed ``in_channels``.

    Raises ``ValueError`` for a width that no known model has.
    """
    latents, channels = geometry.patch**2, vae.latent_channels
    # what stands beside the noise was trained for FLUX.1's latents alone
    known = KNOWN if channels == CHANNELS else (0,)
    extra = in_channels // latents - channels
    if in_channels % latents or extra not in known:
        widths = ", ".join(str(latents * (channels + n)) for n in known)
        raise ValueError(
            f"this transformer reads {in_channels} packed channels, known are {widths}"
        )
    return extra


def channels_beside(transformer: FluxTransformer) -> int:
    """``extra_channels`` of a transformer, with what a control LoRA widens."""
    family = family_of(transformer)
    return extra_channels(transformer.reads, family.tokens, family.vae)


def extra_latents(
    extra: int,
    picture: Tensor | None,
    mask: Tensor | None,
    batch: int,
    height: int,
    width: int,
    vae: VAEConfig = CONSTANTS,
    control: Tensor | None = None,
    strength: float = 1.0,
) -> Tensor | None:
    """What to put beside noisy latents, (batch, extra, height, width); None where it is nothing.

    Args:
        extra: channels, as ``extra_channels`` has them.
        picture: raw latents (1 or B, 16, h, w) of any size; none is all zeros.
        mask: (1 or B, 1, H, W) in [0, 1] of any size, 1 where to paint; none is everywhere.
        vae: whose latents these are.
        control: raw latents as ``picture``, for models that read both; multiplied by ``strength``.
    """
    if not extra:
        return None

    def read(raw: Tensor | None) -> Tensor:
        latents = torch.zeros(1, CHANNELS, height, width) if raw is None else raw.float()
        if latents.shape[-2:] != (height, width):
            latents = F.interpolate(latents, (height, width), mode="bilinear")
        return standardise(expand(latents, batch), vae)

    latents = read(picture)
    if extra == PICTURE:
        return latents
    if extra == MASKED_AND_CONTROL:
        where = torch.ones(1, 1, height, width) if mask is None else mask.float()
        where = F.interpolate(where.mean(1, keepdim=True), (height, width), mode="bilinear")
        where = expand(where, batch).to(latents)
        kept = torch.zeros_like(latents) if picture is None else latents * (1 - where)
        guide = torch.zeros_like(latents) if control is None else read(control) * strength
        return torch.cat([kept, where, guide.to(latents)], dim=1)
    large = (height * SIDE, width * SIDE)
    where = torch.ones(1, 1, *large) if mask is None else mask.float().mean(1, keepdim=True)
    if where.shape[-2:] != large:
        where = F.interpolate(where, large, mode="bilinear")
    where = rearrange(where, "b 1 (h p) (w q) -> b (p q) h w", p=SIDE, q=SIDE)
    return torch.cat([latents, expand(where, batch).to(latents)], dim=1)


def picture_to_fill(pixels: Tensor, mask: Tensor) -> Tensor:
    """What Fill sees of a picture (B, 3, H, W) in [-1, 1]: grey where it is to paint by a mask
    (1 or B, 1, h, w) in [0, 1] of any size, as it was trained and as the host has it."""
    where = F.interpolate(mask.float(), pixels.shape[-2:], mode="bilinear")
    return pixels * (1 - where.round())

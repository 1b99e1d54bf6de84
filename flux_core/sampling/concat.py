"""What models with a wider input read beside the noisy latents.

    Canny, Depth, control LoRAs   128 = 4 (16 noisy + 16 of a picture)
    Fill                          384 = 4 (16 noisy + 16 of a picture + 64 of a mask)

A mask's 8x8 pixels over one latent become 64 channels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..models.config import VAEConfig
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .latents import CONSTANTS, expand, standardise

CHANNELS, SIDE = CONSTANTS.z_channels, CONSTANTS.compression
#: Extra channels of a latent, by what they are.
PICTURE, PICTURE_AND_MASK = CHANNELS, CHANNELS + SIDE * SIDE


def extra_channels(
    in_channels: int, geometry: TokenGeometry = FLUX1_TOKENS, vae: VAEConfig = CONSTANTS
) -> int:
    """Channels of a latent that a model reads beside the noisy ones, for packed ``in_channels``.

    Raises ``ValueError`` for a width that no known model has.
    """
    latents, channels = geometry.patch**2, vae.latent_channels
    # what stands beside the noise was trained for FLUX.1's latents alone
    known = (0, PICTURE, PICTURE_AND_MASK) if channels == CHANNELS else (0,)
    extra = in_channels // latents - channels
    if in_channels % latents or extra not in known:
        widths = ", ".join(str(latents * (channels + n)) for n in known)
        raise ValueError(
            f"this transformer reads {in_channels} packed channels, known are {widths}"
        )
    return extra


def extra_latents(
    extra: int,
    picture: Tensor | None,
    mask: Tensor | None,
    batch: int,
    height: int,
    width: int,
    vae: VAEConfig = CONSTANTS,
) -> Tensor | None:
    """What to put beside noisy latents, (batch, extra, height, width); None where it is nothing.

    Args:
        extra: channels, as ``extra_channels`` has them.
        picture: raw latents (1 or B, 16, h, w) of any size; none is all zeros.
        mask: (1 or B, 1, H, W) in [0, 1] of any size, 1 where to paint; none is everywhere.
        vae: whose latents these are.
    """
    if not extra:
        return None
    latents = torch.zeros(1, CHANNELS, height, width) if picture is None else picture.float()
    if latents.shape[-2:] != (height, width):
        latents = F.interpolate(latents, (height, width), mode="bilinear")
    latents = standardise(expand(latents, batch), vae)
    if extra == PICTURE:
        return latents
    large = (height * SIDE, width * SIDE)
    where = torch.ones(1, 1, *large) if mask is None else mask.float().mean(1, keepdim=True)
    if where.shape[-2:] != large:
        where = F.interpolate(where, large, mode="bilinear")
    where = rearrange(where, "b 1 (h p) (w q) -> b (p q) h w", p=SIDE, q=SIDE)
    return torch.cat([latents, expand(where, batch).to(latents)], dim=1)

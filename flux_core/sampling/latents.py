"""Latents as tokens: scale, 2x2 packing, positions, and noise.

Axis letters: B batch, C latent channels (16), h and w latents, L = h/2 * w/2 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..models.config import VAEConfig

CONSTANTS = VAEConfig()  # of FLUX.1's latents; a family's record has its own

PIXELS_A_LATENT = 8
LATENTS_A_TOKEN = 2  # to a side: the transformer reads latents packed 2x2


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of latents for a picture of so many pixels."""
    return height // PIXELS_A_LATENT, width // PIXELS_A_LATENT


def image_tokens(height: int, width: int) -> int:
    """Tokens that the transformer reads for latents of so many rows and columns."""
    rows, columns = token_grid(height, width)
    return rows * columns


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens for latents of so many rows and columns, odd ones rounded up."""
    return -(-height // LATENTS_A_TOKEN), -(-width // LATENTS_A_TOKEN)


def zero_latents(vae: VAEConfig, batch: int, height: int, width: int) -> Tensor:
    """Zeros (B, C, h, w) for pictures of so many pixels, of which nothing is kept."""
    return torch.zeros(batch, vae.z_channels, *latent_size(height, width))


def standardise(latents: Tensor, vae: VAEConfig = CONSTANTS) -> Tensor:
    """Raw latents (B, C, h, w) of a VAE to what the transformer sees."""
    return (latents - vae.shift_factor) * vae.scale_factor


def destandardise(latents: Tensor, vae: VAEConfig = CONSTANTS) -> Tensor:
    """Inverse of ``standardise``, (B, C, h, w)."""
    return latents / vae.scale_factor + vae.shift_factor


def expand(x: Tensor, batch: int) -> Tensor:
    """Repeat a single row of x (rows, ...), or cycle through several, to (batch, ...)."""
    if x.shape[0] == batch:
        return x
    return x[torch.arange(batch, device=x.device) % x.shape[0]]


def pack(latents: Tensor) -> Tensor:
    """Pack latents (B, C, h, w) to tokens (B, L, 4 C), the channel varying slowest.

    Odd sides are padded with the row or column on the other side, as ComfyUI pads them.
    """
    height, width = latents.shape[-2:]
    if height % LATENTS_A_TOKEN or width % LATENTS_A_TOKEN:
        missing = (0, width % LATENTS_A_TOKEN, 0, height % LATENTS_A_TOKEN)
        latents = F.pad(latents, missing, mode="circular")
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Inverse of ``pack`` for latents of the given sides: (B, L, 4 C) to (B, C, h, w)."""
    rows, columns = token_grid(height, width)
    whole = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, w=columns, p=2, q=2)
    return whole[..., :height, :width]


def image_ids(
    height: int, width: int, index: float = 0, row: float = 0, column: float = 0
) -> Tensor:
    """Positions (index, row, column) of the tokens of latents: (L, 3) float32.

    ``row`` and ``column`` are those of the first token.
    """
    rows, columns = token_grid(height, width)
    ids = torch.zeros(rows, columns, 3)
    ids[..., 0] = index
    ids[..., 1] += row + torch.arange(rows)[:, None]
    ids[..., 2] += column + torch.arange(columns)[None, :]
    return ids.flatten(0, 1)


def text_ids(length: int) -> Tensor:
    """Positions (N, 3) of text tokens: all zero."""
    return torch.zeros(length, 3)


def host_noise(shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None) -> Tensor:
    """Draw noise (B, C, h, w) as ComfyUI does: float32 on the CPU, for a seed's same picture.

    Args:
        shape: (B, C, h, w).
        seed: 64 bits, as the host's seed widget has it.
        batch_index: which picture of a larger batch each row is; one draw an index is made in
            order, and those that are not wanted are thrown away.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    one = (1, *shape[1:])
    draws = [torch.randn(one, generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[i] for i in batch_index])

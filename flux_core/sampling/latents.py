"""Latents as tokens: scale, packing, positions, and noise.

Whose latents they are says a family's record: its ``vae`` and its ``tokens``, which are FLUX.1's
here unless given. Axis letters: B batch, C latent channels (16), h and w latents, p latents along
a side of a token (2), L = h/p * w/p tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..models.config import VAEConfig
from ..models.geometry import FLUX1_TOKENS, TokenGeometry

CONSTANTS = VAEConfig()  # of FLUX.1's latents; a family's record has its own

PIXELS_A_LATENT = CONSTANTS.compression


def latent_size(height: int, width: int, vae: VAEConfig = CONSTANTS) -> tuple[int, int]:
    """Rows and columns of latents for a picture of so many pixels."""
    return height // vae.compression, width // vae.compression


def image_tokens(height: int, width: int, *, geometry: TokenGeometry = FLUX1_TOKENS) -> int:
    """Tokens that the transformer reads for latents of so many rows and columns."""
    rows, columns = token_grid(height, width, geometry)
    return rows * columns


def token_grid(height: int, width: int, geometry: TokenGeometry = FLUX1_TOKENS) -> tuple[int, int]:
    """Rows and columns of tokens for latents of so many rows and columns, odd ones rounded up."""
    return -(-height // geometry.patch), -(-width // geometry.patch)


def zero_latents(vae: VAEConfig, batch: int, height: int, width: int) -> Tensor:
    """Zeros (B, C, h, w) for pictures of so many pixels, of which nothing is kept."""
    return torch.zeros(batch, vae.latent_channels, *latent_size(height, width, vae))


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


def pack(latents: Tensor, geometry: TokenGeometry = FLUX1_TOKENS) -> Tensor:
    """Pack latents (B, C, h, w) to tokens (B, L, p^2 C), the channel varying slowest.

    Sides that are no multiples of p are padded with the rows or columns on the other side, as
    ComfyUI pads them.
    """
    patch = geometry.patch
    missing = [-side % patch for side in latents.shape[-2:]]
    if any(missing):
        latents = F.pad(latents, (0, missing[1], 0, missing[0]), mode="circular")
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def unpack(
    tokens: Tensor, height: int, width: int, geometry: TokenGeometry = FLUX1_TOKENS
) -> Tensor:
    """Inverse of ``pack`` for latents of the given sides: (B, L, p^2 C) to (B, C, h, w)."""
    rows, columns = token_grid(height, width, geometry)
    whole = rearrange(
        tokens,
        "b (h w) (c p q) -> b c (h p) (w q)",
        h=rows,
        w=columns,
        p=geometry.patch,
        q=geometry.patch,
    )
    return whole[..., :height, :width]


def image_ids(
    height: int,
    width: int,
    index: float = 0,
    row: float = 0,
    column: float = 0,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor:
    """Positions (index, row, column, and zeros) of the tokens of latents: (L, axes) float32.

    ``row`` and ``column`` are those of the first token.
    """
    rows, columns = token_grid(height, width, geometry)
    ids = torch.zeros(rows, columns, geometry.axes)
    ids[..., 0] = index
    ids[..., 1] += row + torch.arange(rows)[:, None]
    ids[..., 2] += column + torch.arange(columns)[None, :]
    return ids.flatten(0, 1)


def text_ids(length: int, geometry: TokenGeometry = FLUX1_TOKENS) -> Tensor:
    """Positions (N, axes) of text tokens: zeros, but for the axis that counts them."""
    ids = torch.zeros(length, geometry.axes)
    if geometry.text_axis is not None:
        ids[:, geometry.text_axis] = torch.arange(length)
    return ids


def host_noise(
    shape: Sequence[int], seed: int | Sequence[int], batch_index: Sequence[int] | None = None
) -> Tensor:
    """Draw noise (B, C, h, w) as ComfyUI does: float32 on the CPU, for a seed's same picture.

    Args:
        shape: (B, C, h, w).
        seed: 64 bits, as the host's seed widget has it; or one for each row, which is then the
            first row of that seed's noise.
        batch_index: which picture of a larger batch each row is; one draw an index is made in
            order, and those that are not wanted are thrown away.
    """
    if isinstance(seed, Sequence):
        check_seeds(seed, shape)
        return torch.cat([host_noise((1, *shape[1:]), each) for each in seed])
    generator = torch.Generator("cpu").manual_seed(seed)
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator)
    one = (1, *shape[1:])
    draws = [torch.randn(one, generator=generator) for _ in range(max(batch_index) + 1)]
    return torch.cat([draws[i] for i in batch_index])


def check_seeds(seeds: Sequence[int], shape: Sequence[int]) -> None:
    """Raise ``ValueError`` unless there is a seed for each row of a shape (B, C, h, w)."""
    if len(seeds) != shape[0]:
        raise ValueError(f"{len(seeds)} seeds, and {shape[0]} pictures: expected one for each")

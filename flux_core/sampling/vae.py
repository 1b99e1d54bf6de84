"""Latents to pictures and back, in tiles where the memory wants it.

pixels (B, 3, H, W) in [-1, 1];  raw latents (B, 16, h, w), or FLUX.2's (B, 128, h, w)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..models.tiling import tiled
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner, Work
from ..offload.activations import on_meta, peak_bytes
from ..offload.plan import Plan
from ..offload.workload import counted
from .images import to_images

#: Sides of tiles, eight pixels each, from the largest on; the last one is taken in any case.
TILES = (128, 96, 64, 48, 32)
#: Neighbouring tiles share this part of their side.
OVERLAP = 4


def vae_bytes(vae: AutoEncoder, height: int, width: int, batch: int, decoding: bool) -> int:
    """Bytes that a VAE takes beside its weights for latents of a size."""

    def count() -> int:
        small = cast(AutoEncoder, on_meta(vae))
        if decoding:
            z = torch.empty(batch, vae.config.latent_channels, height, width, device="meta")
            return peak_bytes(lambda: small.decode(z))
        side = vae.config.compression
        x = torch.empty(batch, 3, side * height, side * width, device="meta")
        return peak_bytes(lambda: small.encode(x))

    return counted(vae, (height, width, batch, decoding), count)


def vae_work(vae: AutoEncoder, height: int, width: int, batch: int, decoding: bool = True) -> Work:
    """Decoding latents (B, 16, height, width), or encoding the picture of that size."""

    def size(tile: int) -> int:
        return vae_bytes(vae, min(tile, height), min(tile, width), batch, decoding)

    tiles = [tile // vae.config.patch for tile in TILES]

    def fit(room: int) -> tuple[int, int]:
        tile = next((tile for tile in tiles if size(tile) <= room), tiles[-1])
        return tile, size(tile)

    whole = vae_bytes(vae, height, width, batch, decoding)
    return Work(whole, image_tokens=0, text_tokens=0, batch=batch, fit=fit)


def decode(vae: AutoEncoder, latents: Tensor, plan: Plan, device: torch.device) -> Tensor:
    """Raw latents (B, 16, h, w) to pixels around [-1, 1], (B, 3, H, W), on the device or, in tiles
    where the plan wants it, on the CPU; the VAE is on the device already."""
    if plan.tile is None:
        return vae.decode(latents.to(device))
    return tiled(
        lambda part: vae.decode(part.to(device)),
        latents,
        (plan.tile, plan.tile),
        plan.tile // OVERLAP,
        vae.config.compression,
        3,
    )


def encode(vae: AutoEncoder, pixels: Tensor, plan: Plan, device: torch.device) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] to raw latents (B, 16, h, w), float32 on the CPU, in tiles
    where the plan wants it; the VAE is on the device already."""
    if plan.tile is None:
        return vae.encode(pixels.to(device)).float().cpu()
    side = vae.config.compression
    return tiled(
        lambda part: vae.encode(part.to(device)),
        pixels,
        (side * plan.tile, side * plan.tile),
        side * (plan.tile // OVERLAP),
        1 / side,
        vae.config.latent_channels,
    )


def decode_pictures(
    runner: OffloadRunner, vae: AutoEncoder, latents: Sequence[Tensor]
) -> list[Tensor]:
    """Raw latents (B, 16, h, w), some of one size, to pictures (B, H, W, 3) in [0, 1] of each."""
    batch, _, height, width = latents[0].shape
    return runner.run(
        "VAE decoder",
        [vae],
        lambda plan: [to_images(decode(vae, z, plan, runner.device)) for z in latents],
        vae_work(vae, height, width, batch),
    )


def encode_pixels(runner: OffloadRunner, vae: AutoEncoder, pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] to raw latents (B, 16, h, w), float32 on the CPU."""
    height, width = (side // vae.config.compression for side in pixels.shape[-2:])
    return runner.run(
        "VAE encoder",
        [vae],
        lambda plan: encode(vae, pixels, plan, runner.device),
        vae_work(vae, height, width, len(pixels), decoding=False),
    )

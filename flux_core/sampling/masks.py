"""Masks of inpainting: larger, softer, and pictures put together by them.

Masks are (B, H, W) in [0, 1], 1 where to draw anew; pictures (B, H, W, 3) in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .images import rows_for
from .latents import expand

#: Pixels by which one pass makes a mask larger.
PASS = 8
#: What the radius of a blur is to its deviation; beyond it the weights are 0.
DEVIATIONS = 2.0
#: Pixels over which a picture may fade into another.
MOST_FEATHER = 256


def dilated(masks: Tensor, pixels: int) -> Tensor:
    """Masks (B, H, W) with every place as its largest neighbour within so many pixels."""
    masks = masks[:, None]
    while pixels > 0:
        now = min(pixels, PASS)
        masks = F.max_pool2d(masks, (2 * now + 1, 1), 1, (now, 0))
        masks = F.max_pool2d(masks, (1, 2 * now + 1), 1, (0, now))
        pixels -= now
    return masks[:, 0]


def eroded(masks: Tensor, pixels: int) -> Tensor:
    """Masks (B, H, W) with every place as its smallest neighbour within so many pixels; the
    picture's edges take nothing off."""
    return 1 - dilated(1 - masks, pixels)


def blurred(masks: Tensor, radius: int) -> Tensor:
    """Masks (B, H, W) blurred by a Gaussian of half the radius, which ends at the radius: what is 0
    within it stays 0, what is 1 within it stays 1 (it is summed in float64)."""
    if radius <= 0:
        return masks
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (places * DEVIATIONS / radius) ** 2)
    kernel = (kernel / kernel.sum()).to(masks.device)
    x = F.pad(masks[:, None].double(), (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, -1, 1))
    return F.conv2d(x, kernel.view(1, 1, 1, -1))[:, 0].clamp(0, 1).to(masks)


def scaled_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Masks (B, H, W) in another size; of the same size they are the same."""
    if masks.shape[-2:] == (height, width):
        return masks
    return F.interpolate(masks[:, None], (height, width), mode="bilinear")[:, 0]


def blend(originals: Tensor, drawn: Tensor, weights: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) with what was drawn where weights (B, H, W) are above 0; everywhere
    else, to the bit, they are the originals."""
    weights = weights[..., None]
    return torch.where(weights > 0, torch.lerp(originals, drawn, weights), originals)


def keep_pixels_outside(drawn: Tensor, originals: Tensor, masks: Tensor, feather: int) -> Tensor:
    """Pictures that were drawn, with the originals' pixels, to the bit, where the mask is 0.

    A round trip through the VAE changes every pixel, also of what was kept in latents. The drawn
    picture fades in over ``feather`` pixels inside of the mask; a place that is narrower than twice
    that shows the original through.

    Args:
        drawn: (B, H, W, 3).
        originals: (1 or B, H, W, 3).
        masks: (1 or B, h, w), of another size scaled.

    Raises ``ValueError`` for sizes and batches that do not fit.
    """
    batch, height, width = drawn.shape[:3]
    if originals.shape[1:3] != (height, width):
        raise ValueError(
            f"the original is {originals.shape[2]}x{originals.shape[1]} pixels, what was drawn "
            f"{width}x{height}: expected one size"
        )
    originals = expand(rows_for(batch, originals, "the original"), batch).to(drawn)
    masks = scaled_masks(rows_for(batch, masks, "mask").to(drawn), height, width)
    support = (masks > 0).to(drawn)
    weights, inside = support.clone(), support
    for _ in range(feather):
        inside = eroded(inside, 1)
        weights += inside
    return blend(originals, drawn, expand(weights / (feather + 1), batch))

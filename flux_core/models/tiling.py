"""The VAE over overlapping tiles, for pictures whose whole would not fit into memory.

Each tile is weighted by a ramp over the overlap, and the sum divided by the weights, so that seams
fade. Axis letters: B batch, C channels, H and W the sides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin so that they cover ``length``, the last one ending with it."""
    if length <= tile:
        return [0]
    step = max(1, tile - overlap)
    return [*range(0, length - tile, step), length - tile]


def ramp(length: int, overlap: int) -> Tensor:
    """Weights (length,) that rise over the overlap at both ends, never zero."""
    up = (torch.arange(length) + 1) / (overlap + 1)
    return torch.minimum(up, up.flip(0)).clamp(max=1.0)


def tiled(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    tile: tuple[int, int],
    overlap: int,
    scale: float,
    channels: int,
) -> Tensor:
    """Apply ``function`` tile by tile.

    Args:
        x: (B, C, H, W).
        tile: height and width of a tile of x.
        overlap: of neighbouring tiles, in elements of x.
        scale: side of the result over the side of x (8 for decoding, 1/8 for encoding).
        channels: of the result.

    Returns:
        (B, channels, scale H, scale W) float32 on the CPU.
    """
    height, width = x.shape[-2:]
    overlap = min(overlap, min(tile) - 1)
    shape = (x.shape[0], channels, round(height * scale), round(width * scale))
    total, weights = torch.zeros(shape), torch.zeros(1, 1, *shape[2:])
    for top in starts(height, tile[0], overlap):
        for left in starts(width, tile[1], overlap):
            part = x[..., top : top + tile[0], left : left + tile[1]]
            result = function(part).float().cpu()
            rows, columns = result.shape[-2:]
            blend = round(overlap * scale)
            weight = ramp(rows, blend)[:, None] * ramp(columns, blend)[None, :]
            y, z = round(top * scale), round(left * scale)
            total[..., y : y + rows, z : z + columns] += result * weight
            weights[..., y : y + rows, z : z + columns] += weight
    return total / weights

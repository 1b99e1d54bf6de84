"""Convolutions over a picture band by band, so that what lies between them is never whole.

A convolution after normalisation and SiLU needs a normalised copy of all it reads, and after an
enlargement an enlarged one; at the full size of a picture these copies, and what a convolution's
kernel takes to work on all of them at once, are most of a VAE's memory. Here they
exist for a band of rows at a time, with the rows beyond its edges that the convolution sees. The
statistics of a normalisation are those of the whole, so there are no seams: the numbers are those
of the plain way, to rounding. Whether bands are used depends on the size alone, so that
every policy gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Elements (C, H, W) of one picture from which on bands are used, and of one band.
LIMIT, BAND = 2**25, 2**23


def bands(x: Tensor) -> list[tuple[int, int]]:
    """First and last row of each band of x (B, C, H, W); one band where x is small."""
    channels, height, width = x.shape[1:]
    if channels * height * width <= LIMIT:
        return [(0, height)]
    rows = max(1, BAND // (channels * width))
    return [(first, min(height, first + rows)) for first in range(0, height, rows)]


def group_statistics(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation of each group, (B, groups, 1) float32, of x (B, C, H, W)."""
    count, total, square = 0, 0.0, 0.0
    for first, last in bands(x):
        part = x[:, :, first:last].unflatten(1, (norm.num_groups, -1)).flatten(2).float()
        variance, mean = torch.var_mean(part, dim=-1, correction=0, keepdim=True)
        variance, mean = variance.double(), mean.double()
        new = part.shape[-1]
        shift = mean - total  # both parts' means and deviations to those of the whole (Chan)
        square = square + variance * new + shift**2 * (count * new / (count + new))
        total = total + shift * (new / (count + new))
        count += new
    assert isinstance(square, Tensor) and isinstance(total, Tensor)
    return total.float(), (square / count + norm.eps).rsqrt().float()


def conv_rows(
    conv: nn.Conv2d, x: Tensor, prepare: Callable[[Tensor], Tensor], scale: int = 1
) -> Tensor:
    """Compute ``conv(prepare(x))`` for a 3x3 convolution of stride 1, a band at a time.

    x (B, C, H, W) becomes (B, out, scale H, scale W). ``prepare`` works on rows (B, C, rows, W) one
    by one, and makes ``scale`` rows of each.
    """
    parts = bands(x)
    if len(parts) == 1:
        return conv(prepare(x))
    batch, _, height, width = x.shape
    out = x.new_empty(batch, conv.out_channels, height * scale, width * scale)
    for first, last in parts:
        above, below = int(first > 0), int(last < height)  # rows of x that the edge rows see
        part = prepare(x[:, :, first - above : last + below])
        rows = conv(part)  # wrong in its outermost rows, which are cut off
        rows = rows[:, :, above * scale : rows.shape[2] - below * scale]
        out[:, :, first * scale : last * scale] = rows
    return out


def norm_silu_conv(norm: nn.GroupNorm, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute ``conv(silu(norm(x)))``: (B, C, H, W) to (B, out, H, W)."""
    if len(bands(x)) == 1:
        return conv(F.silu(norm(x)))
    mean, deviation = group_statistics(norm, x)
    per_group = norm.num_channels // norm.num_groups
    scale = deviation.repeat_interleave(per_group, dim=1)[..., None] * norm.weight.float().view(
        -1, 1, 1
    )
    shift = (
        norm.bias.float().view(-1, 1, 1)
        - mean.repeat_interleave(per_group, dim=1)[..., None] * scale
    )

    def prepare(rows: Tensor) -> Tensor:
        return F.silu(torch.addcmul(shift, rows.float(), scale).to(rows.dtype))

    return conv_rows(conv, x, prepare)


def enlarge_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Compute ``conv`` of x at twice its size, nearest: (B, C, H, W) to (B, out, 2 H, 2 W)."""

    def prepare(rows: Tensor) -> Tensor:
        return F.interpolate(rows, scale_factor=2.0, mode="nearest")

    return conv_rows(conv, x, prepare, scale=2)

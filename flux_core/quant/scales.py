"""The scale of each row that loses least.

    scale* = argmin over s in candidates of sum (w - s * round(w / s))^2

The largest value of a row alone does not decide: a float format is equally exact at every
magnitude but not at every place between two powers of two, and an integer format gains more from
finer steps than it loses by clipping one value in a thousand. Scales are numbers that bfloat16
has, so that they can be applied to a bfloat16 output without another error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .codes import numbers_of

#: Values of a row that the search looks at; more change nothing that can be seen.
SAMPLE = 1024
TINY = torch.finfo(torch.float32).tiny


def largest_scale(weight: Tensor, limit: float) -> Tensor:
    """The scale (out, 1) that puts each row's largest value at ``limit``; 1 for rows of zeros."""
    largest = weight.abs().amax(dim=1, keepdim=True)
    scale = torch.where(largest > 0, largest / limit, torch.ones_like(largest))
    return scale.clamp_min(TINY)  # rows of subnormals


def best_scale(
    weight: Tensor, limit: float, factors: Sequence[float], encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """The scale (out, 1) of least square error among the largest value's times ``factors``.

    Args:
        weight: (out, in) float32.
        limit: the format's largest code.
        encode: a scaled weight to the nearest codes.
    """
    largest = largest_scale(weight, limit)
    stride = max(1, weight.shape[1] // SAMPLE)
    sample = weight[:, ::stride]
    best, least = largest, torch.full_like(largest, torch.inf)
    for factor in factors:
        scale = (largest * factor).bfloat16().float().clamp_min(TINY)
        rounded = numbers_of(encode(sample / scale), torch.float32, always=True) * scale
        error = rounded.sub_(sample).square_().sum(dim=1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best

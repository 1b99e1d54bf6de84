"""The blurred quarter-size picture that the upscaler starts from."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

FACTOR = 4
BLUR = 1.5  # standard deviation of the Gaussian, in pixels of the small picture


def degrade(pictures: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) made a quarter of their side by averaging, then blurred."""
    x = F.avg_pool2d(pictures.movedim(-1, 1), FACTOR)
    reach = torch.arange(-3, 4, dtype=x.dtype)
    kernel = torch.exp(-(reach**2) / (2 * BLUR**2)) / (BLUR * math.sqrt(2 * math.pi))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (3, 3, 0, 0), mode="replicate"), kernel, groups=3)
    x = F.conv2d(F.pad(x, (0, 0, 3, 3), mode="replicate"), kernel.transpose(2, 3), groups=3)
    return x.movedim(1, -1)

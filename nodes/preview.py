"""A small picture of what latents are becoming, by one matrix product."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

#: Standardised FLUX.1 latents to RGB in [-1, 1]; the last row is the offset. A property of the
#: public VAE, the same figures in every program that previews FLUX.1.
FLUX_RGB = torch.tensor(
    [
        [-0.0346, 0.0244, 0.0681],
        [0.0034, 0.0210, 0.0687],
        [0.0275, -0.0668, -0.0433],
        [-0.0174, 0.0160, 0.0617],
        [0.0859, 0.0721, 0.0329],
        [0.0004, 0.0383, 0.0115],
        [0.0405, 0.0861, 0.0915],
        [-0.0236, -0.0185, -0.0259],
        [-0.0245, 0.0250, 0.1180],
        [0.1008, 0.0755, -0.0421],
        [-0.0515, 0.0201, 0.0011],
        [0.0428, -0.0012, -0.0036],
        [0.0817, 0.0765, 0.0749],
        [-0.1264, -0.0522, -0.1103],
        [-0.0280, -0.0881, -0.0499],
        [-0.1262, -0.0982, -0.0778],
        [-0.0329, -0.0718, -0.0851],
    ]
)


def preview(latents: Tensor, factors: Tensor | None = None) -> Image.Image:
    """Standardised latents (B, 16, h, w) to a picture of the first, (w, h) pixels."""
    table = FLUX_RGB if factors is None else factors
    first = latents[0].float().cpu().movedim(0, -1)
    rgb = first @ table[:-1] + table[-1]
    pixels = ((rgb + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.numpy())

"""What is learned: the velocity from the picture to the noise, at noise levels drawn at random.

    x_t = (1 - t) x + t n,   loss = mean w(t) (v(x_t, t) - (n - x))^2

A model that knows x and n has loss 0. Axis letters: B pictures, h and w latents.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.text_encoders import TextEncoding
from ..models.transformer import FluxTransformer
from ..sampling.latents import image_ids, pack, text_ids, unpack
from ..sampling.sigmas import SigmaTable, table_for
from .config import ObjectiveConfig

#: Half the width of a bell around t = 1/2.
BELL = 0.5


def draw_times(
    config: ObjectiveConfig, count: int, tokens: int, generator: torch.Generator
) -> Tensor:
    """Noise levels (count,) float32 in (0, 1); ``tokens`` are those of one picture."""
    if config.timesteps == "uniform":
        times = torch.rand(count, generator=generator)
    else:
        mean = config.mean if config.timesteps == "logit_normal" else 0.0
        times = torch.sigmoid(mean + config.scale * torch.randn(count, generator=generator))
    times = times.clamp(1e-5, 1 - 1e-5)
    if config.timesteps == "shift":
        return SigmaTable(math.log(config.shift)).sigma(times)
    if config.timesteps == "resolution_shift":
        return table_for(True, "resolution", tokens).sigma(times)
    return times


def weights_of(config: ObjectiveConfig, times: Tensor) -> Tensor:
    """How much each noise level counts, (B,).

    ``sigma_sqrt`` is 1 / t^2 and ``cosmap`` 2 / (pi (1 - 2 t + 2 t^2)), both of arXiv:2403.03206;
    ``bell`` is a Gaussian around the middle, of mean 1.
    """
    if config.weighting == "sigma_sqrt":
        return times.clamp_min(1e-2) ** -2.0
    if config.weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * times + 2 * times**2))
    if config.weighting == "bell":
        grid = torch.exp(-2 * ((torch.linspace(0, 1, 1001) - 0.5) / BELL) ** 2)
        return torch.exp(-2 * ((times - 0.5) / BELL) ** 2) / float(grid.mean())
    return torch.ones_like(times)


def predict(
    transformer: FluxTransformer,
    noisy: Tensor,
    times: Tensor,
    text: TextEncoding,
    guidance: float,
) -> Tensor:
    """The velocity (B, 16, h, w) float32 at noisy standardised latents of that shape."""
    height, width = noisy.shape[-2:]
    device = noisy.device
    tokens = transformer(
        img=pack(noisy),
        img_ids=image_ids(height, width).to(device),
        txt=text.context,
        txt_ids=text_ids(text.context.shape[1]).to(device),
        timesteps=times,
        y=text.pooled,
        guidance=torch.full_like(times, guidance),
    )
    return unpack(tokens.float(), height, width)


def losses_of(
    velocity: Tensor, clean: Tensor, noise: Tensor, weights: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The loss of each picture, (B,).

    Args:
        velocity, clean, noise: (B, 16, h, w); clean is standardised.
        weights: (B,).
        mask: (B, 1, h, w), how much each place counts; its own mean does not matter.
    """
    error = (velocity - (noise - clean)).square()
    if mask is not None:
        error = error * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return error.mean(dim=(1, 2, 3)) * weights

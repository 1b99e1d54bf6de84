"""Noise levels that are learned at: how they are drawn, and how much each counts.

0 is the picture, 1 is noise. Axis letters: B pictures.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.families import DEFAULT_FAMILY
from ..models.family import Family
from ..sampling.sigmas import SigmaTable, table_for
from .config import ObjectiveConfig

#: Half the width of a bell around t = 1/2.
BELL = 0.5
#: Steps that shifts are meant for which depend on them: those of models that are not distilled.
SHIFTED_STEPS = 50


def draw_times(
    config: ObjectiveConfig,
    count: int,
    tokens: int,
    generator: torch.Generator,
    family: Family = DEFAULT_FAMILY,
) -> Tensor:
    """Noise levels (count,) float32 in (0, 1); ``tokens`` are those of one picture, ``family`` the
    model's."""
    if config.timesteps == "uniform":
        times = torch.rand(count, generator=generator)
    else:
        mean = config.mean if config.timesteps == "logit_normal" else 0.0
        times = torch.sigmoid(mean + config.scale * torch.randn(count, generator=generator))
    times = times.clamp(1e-5, 1 - 1e-5)
    if config.timesteps == "shift":
        return SigmaTable(math.log(config.shift)).sigma(times)
    if config.timesteps == "resolution_shift":
        return table_for(family, "resolution", tokens, SHIFTED_STEPS).sigma(times)
    return times


def loss_weights(config: ObjectiveConfig, times: Tensor) -> Tensor:
    """How much each of some noise levels (B,) counts, (B,).

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

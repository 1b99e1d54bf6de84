"""Plots of a run: its losses, and which noise levels it draws."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..models.families import DEFAULT_FAMILY
from ..models.family import Family
from ..pictures import to_tensor
from .config import ObjectiveConfig
from .noise_levels import draw_times

#: Noise levels that are drawn for a histogram.
DRAWN = 20_000
BINS = 50


def loss_curve(losses: Sequence[float], validation: Sequence[Sequence[float]]) -> Tensor:
    """Losses by step with their running mean, and the validation's, as (H, W, 3) in [0, 1].

    ``validation`` holds pairs of a step and the loss after it.
    """
    from matplotlib.figure import Figure  # takes a second to import

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    steps = np.arange(1, len(losses) + 1)
    window = max(1, len(losses) // 25)
    axes.plot(steps, losses, color="#b8c4d8", linewidth=0.8, label="loss")
    if window > 1:
        mean = np.convolve(losses, np.ones(window) / window, "valid")
        axes.plot(steps[window - 1 :], mean, color="#2a5caa", label=f"mean of {window}")
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color="#c8452b", label="validation")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure_picture(figure)


def times_histogram(
    config: ObjectiveConfig, tokens: int = 1024, family: Family = DEFAULT_FAMILY
) -> Tensor:
    """How often each noise level is drawn for pictures of so many tokens and a model's family, as
    (H, W, 3)."""
    from matplotlib.figure import Figure

    times = draw_times(config, DRAWN, tokens, torch.Generator().manual_seed(0), family)
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(times.numpy(), bins=BINS, range=(0, 1), density=True, color="#2a5caa")
    axes.set_xlabel("noise level (0 picture, 1 noise)")
    axes.set_title(f"{config.timesteps}, {tokens} tokens")
    return figure_picture(figure)


def figure_picture(figure: Any) -> Tensor:
    """A matplotlib figure as a picture (H, W, 3) in [0, 1]."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return to_tensor(Image.open(buffer).convert("RGB"))

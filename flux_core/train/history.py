"""What a run tells of itself: numbers a step, and pictures of them."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..report.pictures import to_pil, to_tensor
from .config import ObjectiveConfig
from .objective import draw_times

#: Noise levels that are drawn for a histogram.
DRAWN = 20_000
BINS = 50


@dataclass(frozen=True)
class TrainingEvent:
    """What a run tells while it goes on: ``done`` of ``all``, the last loss, new samples
    (H, W, 3)."""

    what: str
    done: int
    all: int
    loss: float = math.nan
    pictures: tuple[Tensor, ...] = ()

    def __str__(self) -> str:
        return self.what if math.isnan(self.loss) else f"{self.what}, loss {self.loss:.4f}"


@dataclass
class History:
    """Loss, learning rate and gradient norm of each step; validation's loss by step."""

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)

    @classmethod
    def of(cls, state: dict[str, Any]) -> History:
        return cls(**state)

    def add(self, loss: float, rate: float, norm: float) -> None:
        self.losses.append(loss)
        self.rates.append(rate)
        self.norms.append(norm)

    def write(self, folder: Path) -> None:
        """``history.csv`` and ``loss.png``."""
        checked = {int(step): loss for step, loss in self.validation}
        rows = ["step,loss,learning_rate,gradient_norm,validation"]
        for step, row in enumerate(zip(self.losses, self.rates, self.norms, strict=True), 1):
            rows.append(",".join(map(str, (step, *row, checked.get(step, "")))))
        (folder / "history.csv").write_text("\n".join(rows) + "\n")
        to_pil(self.curve()).save(folder / "loss.png")

    def curve(self) -> Tensor:
        """Losses by step with their running mean, and the validation's, as (H, W, 3)."""
        from matplotlib.figure import Figure  # takes a second to import

        losses = self.losses
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.add_subplot()
        steps = np.arange(1, len(losses) + 1)
        window = max(1, len(losses) // 25)
        axes.plot(steps, losses, color="#b8c4d8", linewidth=0.8, label="loss")
        if window > 1:
            mean = np.convolve(losses, np.ones(window) / window, "valid")
            axes.plot(steps[window - 1 :], mean, color="#2a5caa", label=f"mean of {window}")
        if self.validation:
            axes.plot(
                *zip(*self.validation, strict=True), "o-", color="#c8452b", label="validation"
            )
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend()
        axes.grid(alpha=0.3)
        return drawn(figure)


def drawn(figure: Any) -> Tensor:
    """A matplotlib figure as a picture (H, W, 3) in [0, 1]."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return to_tensor(Image.open(buffer))


def times_histogram(config: ObjectiveConfig, tokens: int = 1024) -> Tensor:
    """How often each noise level is drawn for pictures of so many tokens, as (H, W, 3)."""
    from matplotlib.figure import Figure

    times = draw_times(config, DRAWN, tokens, torch.Generator().manual_seed(0))
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(times.numpy(), bins=BINS, range=(0, 1), density=True, color="#2a5caa")
    axes.set_xlabel("noise level (0 picture, 1 noise)")
    axes.set_title(f"{config.timesteps}, {tokens} tokens")
    return drawn(figure)

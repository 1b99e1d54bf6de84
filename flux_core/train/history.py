"""What a run says of itself: events while it goes on, and numbers of every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_text
from ..report.pictures import write_picture
from .plots import loss_curve


@dataclass(frozen=True)
class TrainingEvent:
    """What a run says while it goes on: ``done`` of ``all``, the last loss, new samples
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
        """The history of a checkpoint: ``vars`` of what it was."""
        return cls(**state)

    def add(self, loss: float, rate: float, norm: float) -> None:
        """Note a step."""
        self.losses.append(loss)
        self.rates.append(rate)
        self.norms.append(norm)

    def write(self, folder: Path) -> None:
        """Write ``history.csv`` and ``loss.png``."""
        validation = {int(step): loss for step, loss in self.validation}
        rows = ["step,loss,learning_rate,gradient_norm,validation"]
        for step, row in enumerate(zip(self.losses, self.rates, self.norms, strict=True), 1):
            rows.append(",".join(map(str, (step, *row, validation.get(step, "")))))
        write_text(folder / "history.csv", "\n".join(rows) + "\n")
        write_picture(self.curve(), folder / "loss.png")

    def curve(self) -> Tensor:
        """The plot of it all, (H, W, 3) in [0, 1]."""
        return loss_curve(self.losses, self.validation)

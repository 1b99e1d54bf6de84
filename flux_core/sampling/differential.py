"""Differential diffusion (arXiv:2306.00950): a grey mask says from which step on a place is kept.

    drawn at sigma  where  mask >= (sigma - last) / (first - last)

so that 1 is drawn in all steps, 0.5 in the later half of the sigmas, and 0 never. Between ``first``
and ``last`` lies the run; ComfyUI's DifferentialDiffusion has the same, with its strength: below 1
the grey mask is blended in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bounds import check_number
from .sigmas import SigmaTable


@dataclass(frozen=True, eq=False)
class MaskBySteps:
    """Masks of steps between two sigmas; ``strength`` 1 or 0 makes them 0 or 1 everywhere."""

    first: Tensor
    last: Tensor
    strength: float = 1.0

    def __call__(self, mask: Tensor, sigma: Tensor) -> Tensor:
        """A mask (B, 1, h, w) in [0, 1] as a step at a sigma, a scalar, has it."""
        first, last = self.first.to(sigma), self.last.to(sigma)
        now = (mask >= (sigma - last) / (first - last)).to(mask.dtype)
        if not 0 < self.strength < 1:
            return now
        return self.strength * now + (1 - self.strength) * mask


def mask_by_steps(sigmas: Tensor, table: SigmaTable, strength: float | None) -> MaskBySteps | None:
    """For a run over sigmas (steps + 1,); it ends at the table's smallest, or above it where the
    run does. None without a strength, or without steps."""
    if strength is None or len(sigmas) < 2:
        return None
    least = table.sigmas[0]
    return MaskBySteps(sigmas[0], torch.maximum(sigmas[-1], least), strength)


def check_differential(strength: object) -> None:
    """Raise ``ValueError`` for what is no strength; None is none."""
    if strength is not None:
        check_number(strength, "the strength of differential diffusion", 0, 1)

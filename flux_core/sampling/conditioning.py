"""What a run is told to draw: prompts as the transformer reads them, and ControlNets.

Axis letters: B pictures, N text tokens, D and P widths, h and w latents, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..models.controlnet import FluxControlNet
from ..offload import OffloadPolicy


@dataclass(frozen=True)
class Conditioning:
    """What a prompt becomes: context (1 or B, N, D), pooled (1 or B, P), distilled guidance.

    ``pooled`` is None for families that read none (``models.families``).

    Models with a wider input (Canny, Depth, Fill) read ``picture`` beside the noise: raw latents
    (1 or B, 16, h, w). Fill reads ``mask`` too, (1 or B, 1, H, W) with 1 where to paint.
    """

    context: Tensor
    pooled: Tensor | None
    guidance: float = 3.5
    picture: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Control:
    """A ControlNet with its condition.

    ``cond`` is raw VAE latents (1 or B, 16, h, w), or pixels (1 or B, 3, H, W) in [-1, 1] for nets
    that read pixels. ``start`` and ``end`` are shares of the schedule, from 0 (noise) to 1.
    ``mask`` (1 or B, 1, H, W), 1 where to paint, for inpainting nets. ``policy`` says where the
    net's weights live, where it is not with the transformer's.
    """

    net: FluxControlNet
    cond: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None
    mask: Tensor | None = None
    policy: OffloadPolicy | None = None

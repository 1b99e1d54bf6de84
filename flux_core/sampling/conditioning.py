"""What a run is told to draw: prompts as the transformer reads them, and ControlNets.

Axis letters: B pictures, N text tokens, D and P widths, h and w latents, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..models.controlnet import FluxControlNet
from ..offload import OffloadPolicy
from .references import References


@dataclass(frozen=True, eq=False)
class Region:
    """Where in the picture a prompt counts, and how much beside the others there.

    ``area``: height, width, top and left, in latents where they are whole numbers and in shares of
    the picture where ``shares``; the transformer sees that part alone. ``mask`` (1 or B, H, W) of
    any size in [0, 1]. ``background``: it counts where the others leave room.
    """

    area: tuple[float, float, float, float] | None = None
    shares: bool = False
    mask: Tensor | None = None
    mask_strength: float = 1.0
    mask_bounds: bool = False  # the area is the mask's bounding box
    strength: float = 1.0
    background: bool = False

    @property
    def everywhere(self) -> bool:
        """Whether it is the whole picture, at full strength."""
        plain = self.area is None and self.mask is None and not self.background
        return plain and self.strength == 1.0


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """What is added to the logits of attention, or booleans of which pairs may meet.

    ``values`` (1 or B, T, T) over the text and over ``rows`` x ``columns`` tokens of an image,
    which are stretched to those of the picture.
    """

    values: Tensor
    rows: int
    columns: int

    def bytes_for(self, tokens: int, itemsize: int) -> int:
        """Bytes that it takes for so many tokens, of activations of so many bytes each."""
        each = 1 if self.values.dtype == torch.bool else itemsize
        rows = len(self.values) if self.values.ndim == 3 else 1
        return rows * tokens**2 * each


@dataclass(frozen=True)
class Conditioning:
    """What a prompt becomes: context (1 or B, N, D), pooled (1 or B, P), distilled guidance.

    ``pooled`` is None for families that read none (``models.families``); ``guidance`` None leaves
    the distilled guidance out.

    Models with a wider input (Canny, Depth, Fill) read ``picture`` beside the noise: raw latents
    (1 or B, 16, h, w). Fill reads ``mask`` too, (1 or B, 1, H, W) with 1 where to paint.

    ``region`` and the span from ``start`` to ``end``, shares of the schedule from 0 (noise) to 1,
    say where and when it counts, if there are several.
    """

    context: Tensor
    pooled: Tensor | None
    guidance: float | None = 3.5
    picture: Tensor | None = None
    mask: Tensor | None = None
    region: Region = field(default_factory=Region)
    start: float = 0.0
    end: float = 1.0
    references: References | None = None
    attention: AttentionBias | None = None


@dataclass(frozen=True)
class Control:
    """A ControlNet with its condition.

    ``cond`` is raw VAE latents (1 or B, 16, h, w), or pixels (1 or B, 3, H, W) in [-1, 1] for nets
    that read pixels. ``start`` and ``end`` are shares of the schedule, from 0 (noise) to 1.
    ``mask`` (1 or B, 1, H, W), 1 where to paint, for inpainting nets. ``policy`` says where the
    net's weights live, where it is not with the transformer's; ``compute`` how its layers multiply,
    where it is not as it was opened.

    ``picture`` (1 or B, 3, H, W) in [-1, 1] is what ``cond`` was made of, and ``encode`` makes it
    anew of the picture in another size, where it is not of the size that is drawn.
    """

    net: FluxControlNet
    cond: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None
    mask: Tensor | None = None
    policy: OffloadPolicy | None = None
    compute: str | None = None
    picture: Tensor | None = None
    encode: Callable[[Tensor], Tensor] | None = None

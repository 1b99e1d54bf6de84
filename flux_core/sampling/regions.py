"""Several prompts in one picture: where each counts, and how much.

    picture = sum_i w_i picture_i / sum_i w_i,   w_i = strength * mask, feathered at an area's edges

Areas, masks, strengths and spans as ComfyUI weighs them (Combine, SetArea, SetMask,
SetTimestepRange, default prompts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .conditioning import Conditioning

#: Latents over which an area's weight rises from its edge.
FEATHER = 8
#: The smallest side of the box around a mask.
SMALLEST = 8


class Area(NamedTuple):
    """A part of the latents: its sides, and where it begins."""

    height: int
    width: int
    top: int
    left: int

    def cut(self, x: Tensor, scale: int = 1) -> Tensor:
        """That part of x (..., h, w), whose sides are ``scale`` times those of the latents."""
        top, left = self.top * scale, self.left * scale
        return x[..., top : top + self.height * scale, left : left + self.width * scale]

    def holds(self, other: Area) -> bool:
        """Whether another area lies inside."""
        return (
            other.top >= self.top
            and other.left >= self.left
            and other.top + other.height <= self.top + self.height
            and other.left + other.width <= self.left + self.width
        )


@dataclass(frozen=True, eq=False)
class Placed:
    """A prompt with its area in latents, and its mask (1 or B, h, w) in the latents' size."""

    prompt: Conditioning
    area: Area | None
    mask: Tensor | None


def place_prompt(prompt: Conditioning, height: int, width: int) -> Placed:
    """A prompt's region in latents of ``height`` x ``width``.

    Raises ``ValueError`` for an area that begins outside of them.
    """
    region = prompt.region
    mask = None
    area = None
    if region.area is not None:
        rows, columns, top, left = region.area
        if region.shares:
            rows, columns = max(1, round(rows * height)), max(1, round(columns * width))
            top, left = round(top * height), round(left * width)
        area = Area(*(int(n) for n in (rows, columns, top, left)))
    if region.mask is not None:
        mask = region.mask.float()
        mask = mask[None] if mask.ndim == 2 else mask.reshape(-1, *mask.shape[-2:])
        if mask.shape[-2:] != (height, width):
            mask = F.interpolate(mask[:, None], (height, width), mode="bilinear")[:, 0]
        if region.mask_bounds:
            area = bounds(mask)
    if area is not None:
        if not (0 <= area.top < height and 0 <= area.left < width):
            raise ValueError(
                f"a prompt's area begins at row {area.top} and column {area.left}, "
                f"the picture has {height}x{width} latents"
            )
        area = area._replace(
            height=min(height - area.top, area.height), width=min(width - area.left, area.width)
        )
    return Placed(prompt, area, mask)


def bounds(mask: Tensor) -> Area:
    """The box around what masks (B, h, w) have above 0."""
    rows, columns = torch.where(mask.abs().amax(0))
    if not len(rows):
        return Area(SMALLEST, SMALLEST, 0, 0)  # of which nothing counts
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    return Area(max(SMALLEST, height), max(SMALLEST, width), top, left)


def weights(placed: Placed, shape: Sequence[int]) -> Tensor:
    """How much a prompt counts in its area, (B, 1, h', w'), for latents of a shape (B, C, h, w)."""
    batch, _, height, width = shape
    region, area = placed.prompt.region, placed.area
    if placed.mask is not None:
        mask = placed.mask[:batch]
        mask = mask if area is None else area.cut(mask)
        mask = mask.repeat(-(-batch // len(mask)), 1, 1)[:batch, None]
        return mask * region.mask_strength * region.strength
    if area is None:
        return torch.full((batch, 1, height, width), region.strength)
    return torch.full((batch, 1, area.height, area.width), region.strength) * feather(
        area, height, width
    )


def feather(area: Area, height: int, width: int) -> Tensor:
    """Factors (h, w) of an area's sides, rising from those edges that are not the picture's."""
    sides = []
    for size, start, whole in ((area.height, area.top, height), (area.width, area.left, width)):
        side = torch.ones(size)
        count = min(FEATHER, size // 4)
        rise = torch.arange(1, count + 1) / max(1, count)
        if start:
            side[:count] *= rise
        if start + size < whole:
            side[size - count :] *= rise.flip(0)
        sides.append(side)
    return sides[0][:, None] * sides[1][None, :]


def opposites(ours: Sequence[Placed], theirs: Sequence[Placed]) -> list[Placed]:
    """``ours`` and what has to stand beside the areas of ``theirs``.

    Guidance compares two prompts in one area, so an area that only one side has gets an entry on
    the other: the smallest there that holds it, read in that area alone.
    """
    entries = list(ours)
    for other in theirs:
        area = other.area
        if area is None:
            continue
        holding = [entry for entry in entries if entry.area is None or entry.area.holds(area)]
        if not holding:
            continue
        smallest = holding[0]
        for entry in holding:
            if entry.area is not None and (
                smallest.area is None
                or smallest.area.height * smallest.area.width > entry.area.height * entry.area.width
            ):
                smallest = entry
        if smallest.area == area:
            continue
        says = smallest.prompt
        prompt = replace(
            says, region=other.prompt.region, start=other.prompt.start, end=other.prompt.end
        )
        entries.append(Placed(prompt, area, other.mask))
    return entries


def is_alone(prompts: Sequence[Conditioning]) -> bool:
    """Whether there is one prompt, for the whole picture and all steps."""
    if len(prompts) != 1:
        return False
    (prompt,) = prompts
    return prompt.region.everywhere and prompt.start <= 0 and prompt.end >= 1


def background_weights(
    others: Sequence[tuple[Area | None, Tensor]], shape: Sequence[int]
) -> Tensor:
    """What other prompts' weights leave of 1, (B, 1, h, w), for latents of a shape (B, C, h, w)."""
    left = torch.ones(shape[0], 1, *shape[2:])
    for area, weight in others:
        part = left if area is None else area.cut(left)
        part -= weight.cpu()
    return left.clamp_min(0)

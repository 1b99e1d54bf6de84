"""Pictures larger than a model draws at once: read in windows that overlap, and agree in each step.

    velocity = sum_i w_i velocity_i,   sum_i w_i = 1,   w_i = r_(i-1) - r_i on each axis

where ``r_i`` rises from 0 to 1 around the middle of the overlap of window i and the next
(MultiDiffusion, arXiv:2302.08113: the average is the picture that is nearest to what all windows
see). Noise, samplers and masks are those of the whole picture. A window is a picture of its own to
the model: its positions begin at 0.

Axis letters: B pictures, C latent channels, h and w latents, T text and image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import brief, check_number
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .attention_masks import HIDDEN
from .conditioning import AttentionBias
from .latents import token_grid
from .regions import Area
from .sizes import MOST_SIDE

#: Sides of windows, their overlap and their feather are multiples of this many pixels: a token, of
#: every family.
UNIT = 16
SMALLEST_TILE = 64
#: How far the grid moves from step to step, down and to the right, in shares of a stride: powers
#: of the plastic number, whose multiples fill the square evenly.
PLASTIC = 1.3247179572447460
MOVES = (1 / PLASTIC, 1 / PLASTIC**2)


@dataclass(frozen=True)
class Tiling:
    """In which windows a picture is drawn; all in pixels, multiples of 16.

    Args:
        size: the side of a window, at least 64.
        overlap: of neighbouring windows at the least, at most half of ``size``.
        feather: over which one window fades into the next, in the middle of the overlap; what lies
            outside of it is read by a window and not drawn by it. None is the whole overlap.
        moving: whether the windows move from step to step, so that no place is always at an edge;
            there is up to one window more on each axis.

    Raises ``ValueError`` for numbers out of range.
    """

    size: int = 1024
    overlap: int = 256
    feather: int | None = None
    moving: bool = False

    def __post_init__(self) -> None:
        check_number(self.size, "the size of tiles", SMALLEST_TILE, MOST_SIDE, whole=True)
        check_number(self.overlap, "the overlap of tiles", 0, self.size // 2, whole=True)
        if self.feather is not None:
            check_number(self.feather, "the feather of tiles", 0, self.overlap, whole=True)
        for name, value in (("size", self.size), ("overlap", self.overlap), ("feather", self.fade)):
            if value % UNIT:
                raise ValueError(f"the {name} of tiles is {value}, expected a multiple of {UNIT}")

    @property
    def fade(self) -> int:
        """Pixels over which one window fades into the next."""
        return self.overlap if self.feather is None else self.feather

    def window_size(
        self, height: int, width: int, geometry: TokenGeometry = FLUX1_TOKENS
    ) -> tuple[int, int]:
        """Sides of the largest window in latents, for a part of ``height`` x ``width`` latents."""
        side = latents_of(self.size, geometry)
        return min(side, height), min(side, width)

    def splits(self, height: int, width: int, geometry: TokenGeometry = FLUX1_TOKENS) -> bool:
        """Whether a part of ``height`` x ``width`` latents needs more than one window."""
        return self.window_size(height, width, geometry) != (height, width)

    def windows(
        self, height: int, width: int, step: int = 0, geometry: TokenGeometry = FLUX1_TOKENS
    ) -> list[Window]:
        """The windows of a part of ``height`` x ``width`` latents, from the top and the left.

        ``step``: how many were drawn before; it counts where windows are ``moving``.
        """
        moves = [step * move % 1 if self.moving else None for move in MOVES]
        rows, columns = (
            self._spans(length, move, geometry)
            for length, move in zip((height, width), moves, strict=True)
        )
        return [
            Window(
                Area(row.size, column.size, row.start, column.start),
                row.weight[:, None] * column.weight,
            )
            for row in rows
            for column in columns
        ]

    def seams(
        self, height: int, width: int, geometry: TokenGeometry = FLUX1_TOKENS
    ) -> tuple[list[int], list[int]]:
        """Rows and columns of pixels where windows of ``height`` x ``width`` latents begin, end,
        and count as much as their neighbours; where seams would be."""
        side = UNIT // geometry.patch
        tile, overlap = latents_of(self.size, geometry), latents_of(self.overlap, geometry)
        rows, columns = [], []
        for length, lines in ((height, rows), (width, columns)):
            starts = starts_of(length, tile, overlap, None, geometry.patch)
            edges = [(start, min(start + tile, length)) for start in starts]
            places = {place for pair in edges for place in pair}
            places |= {
                (end + after) // 2 for (_, end), after in zip(edges, starts[1:], strict=False)
            }
            lines += sorted(side * place for place in places if 0 < place < length)
        return rows, columns

    def _spans(self, length: int, move: float | None, geometry: TokenGeometry) -> list[AxisWindow]:
        tile, overlap = latents_of(self.size, geometry), latents_of(self.overlap, geometry)
        starts = starts_of(length, tile, overlap, move, geometry.patch)
        return spans(length, tile, starts, latents_of(self.fade, geometry))


def latents_of(pixels: int, geometry: TokenGeometry) -> int:
    """Latents along a side of so many pixels, whole tokens."""
    return pixels // UNIT * geometry.patch


def check_tiling(tiles: object) -> None:
    """Raise ``ValueError`` for what says of no windows; None says that there are none."""
    if tiles is not None and not isinstance(tiles, Tiling):
        raise ValueError(f"tiles is {brief(tiles)}, expected a Tiling")


class AxisWindow(NamedTuple):
    """A window on one axis: where it begins, how long it is, and its weight (size,) there."""

    start: int
    size: int
    weight: Tensor


class Window(NamedTuple):
    """A window, inside of the part that is split, and how much it counts (h, w) there."""

    area: Area
    weight: Tensor

    def within(self, outer: Area) -> Area:
        """The window in the picture of which ``outer`` is split."""
        area = self.area
        return area._replace(top=area.top + outer.top, left=area.left + outer.left)


def starts_of(
    length: int, tile: int, overlap: int, move: float | None, patch: int = FLUX1_TOKENS.patch
) -> list[int]:
    """Where windows begin on an axis, all in latents: evenly spread, or, moved by a share of a
    stride, one stride apart and the outermost cut off at the edges. They begin with a token."""
    whole, side, common = (-(-n // patch) for n in (length, tile, overlap))
    most, stride = whole - side, side - common
    if most <= 0:
        return [0]
    if move is None:
        count = math.ceil(most / stride)
        places = [round(i * most / count) for i in range(count + 1)]
    else:
        first = -round(move * stride)
        count = math.ceil((most - first) / stride)
        places = [min(max(first + i * stride, 0), most) for i in range(count + 1)]
    return [patch * place for place in dict.fromkeys(places)]


def spans(length: int, tile: int, starts: Sequence[int], fade: int) -> list[AxisWindow]:
    """The windows on an axis, without those that count nowhere; weights add up to 1 everywhere."""
    ends = [min(start + tile, length) for start in starts]
    middles = [(end + after) / 2 for end, after in zip(ends, starts[1:], strict=False)]
    place = torch.arange(length, dtype=torch.float64) + 0.5
    rises = [torch.ones_like(place), *(rise(place - at, fade) for at in middles)]
    rises.append(torch.zeros_like(place))
    kept = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        weight = (rises[i] - rises[i + 1])[start:end].float()
        if bool(weight.any()):
            kept.append(AxisWindow(start, end - start, weight))
    return kept


def rise(distance: Tensor, fade: int) -> Tensor:
    """From 0 to 1 over ``fade`` around distances (n,) of 0, as a sine squared."""
    if not fade:
        return (distance > 0).double()
    return torch.sin((distance / fade + 0.5).clamp(0, 1) * (math.pi / 2)) ** 2


def bias_in(
    bias: AttentionBias,
    height: int,
    width: int,
    area: Area,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> AttentionBias:
    """A prompt's attention bias for one window of its part of ``height`` x ``width`` latents.

    The image's tokens are stretched to the part's grid, as an untiled one is, and cut to the
    window's; the large one is never made.
    """
    values = bias.values if bias.values.ndim == 3 else bias.values[None]
    text = values.shape[-1] - bias.rows * bias.columns
    rows, columns = token_grid(area.height, area.width, geometry)
    tall, wide = token_grid(height, width, geometry)
    top, left = area.top // geometry.patch, area.left // geometry.patch
    down = linear_weights(bias.rows, tall)[top : top + rows]
    across = linear_weights(bias.columns, wide)[left : left + columns]
    is_bool = values.dtype == torch.bool
    values = values.float().clamp_min(HIDDEN)  # as ``attention_mask`` has it
    for axis in (1, 2):
        moved = values.movedim(axis, -1)
        words, image = moved[..., :text], moved[..., text:].unflatten(-1, (bias.rows, bias.columns))
        image = (down @ image @ across.T).flatten(-2)
        values = torch.cat([words, image], dim=-1).movedim(-1, axis)
    return AttentionBias(values > 0.5 if is_bool else values, rows, columns)


def linear_weights(source: int, target: int) -> Tensor:
    """Weights (target, source) of linear interpolation from one length to another."""
    return F.interpolate(torch.eye(source)[None], target, mode="linear")[0].T.contiguous()

"""Regional prompts by attention: every part of a picture reads its own text, in one model call.

    image i reads text r           c_r(i) s_r l           text r reads image i          c_r(i)
    image i reads the global text  1 - l (1 - b) (1 - rest(i)), and the global text image i likewise
    images of unlike regions read each other               1 - l (1 - a)

c is how much of a token a region covers, s its strength, rest = max(0, 1 - sum of c) what is left,
l 1 for the first share of the schedule and ``later`` after it, b ``base`` and a ``across`` (see
``RegionalOptions``). The logarithm of these is added to the logits, -inf where it is 0. Each text
reads itself alone of all text. References are read by all; they read the global text and images.

Tokens stand in the order global text, texts of the regions, image, references. Axis letters: B
pictures, R regions, L image tokens, N text tokens, T all tokens, H and W pixels, h and w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import brief, check_number
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .attention_masks import as_bias, attention_mask
from .conditioning import USUAL_REGIONS, Conditioning, Region, RegionalOptions, RegionalPrompts
from .images import as_masks, rows_for
from .latents import expand, image_tokens
from .regions import Area, place_prompt

#: Rows of image tokens whose pairs are computed at once.
ROWS = 256


def covers(
    regional: RegionalPrompts,
    height: int,
    width: int,
    area: Area | None = None,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor:
    """How much of each image token the regions cover, (1 or B, R, L) in [0, 1].

    Args:
        height, width: latents of the whole picture, which masks of any size are averaged to.
        area: the part of them that is drawn; all where it is None.
    """
    parts = [region_cover(prompt, height, width) for prompt in regional.prompts]
    rows = max(len(part) for part in parts)
    whole = torch.stack([expand(part, rows) for part in parts], dim=1)
    whole = whole if area is None else area.cut(whole)
    tokens = F.avg_pool2d(whole, geometry.patch, ceil_mode=True, count_include_pad=False)
    return tokens.flatten(2).clamp(0, 1)


def region_cover(prompt: Conditioning, height: int, width: int) -> Tensor:
    """How much of each latent a region covers, (1 or B, h, w): its mask times its area."""
    region = prompt.region
    cover = torch.ones(1, height, width)
    if region.mask is not None:
        mask = region.mask.float().cpu().reshape(-1, 1, *region.mask.shape[-2:])
        size = (height, width)
        # the mean of what a latent covers, or between two pixels where there are fewer
        fewer = mask.shape[-2] < height or mask.shape[-1] < width
        mode = "bilinear" if fewer else "area"
        cover = F.interpolate(mask, size, mode=mode)[:, 0]
    area = place_prompt(replace(prompt, region=replace(region, mask=None)), height, width).area
    if region.mask is not None and region.mask_bounds:
        area = None  # the box is only where the mask is
    if area is not None:
        inside = torch.zeros_like(cover)
        area.cut(inside).fill_(1)
        cover = cover * inside
    return cover.clamp(0, 1)


@dataclass(frozen=True)
class TokenSpans:
    """Where the tokens of each text stand, the global one first, and how many others there are."""

    texts: tuple[int, ...]
    image: int
    references: int = 0

    @property
    def text(self) -> int:
        return sum(self.texts)

    @property
    def total(self) -> int:
        return self.text + self.image + self.references

    def span(self, text: int) -> slice:
        """The tokens of one of the texts."""
        start = sum(self.texts[:text])
        return slice(start, start + self.texts[text])

    @property
    def images(self) -> slice:
        return slice(self.text, self.text + self.image)

    @property
    def behind(self) -> slice:
        """The references."""
        return slice(self.text + self.image, self.total)


def regional_bias(
    regional: RegionalPrompts,
    cover: Tensor,
    spans: TokenSpans,
    level: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """What is added to the logits, (1 or B, T, T), for regions that count as ``level`` says.

    ``cover`` (1 or B, R, L) as ``covers`` gives it.
    """
    cover = cover.to(device)
    rest = (1 - cover.sum(1)).clamp_min(0)  # (1 or B, L)
    bias = torch.full(
        (len(cover), spans.total, spans.total), -torch.inf, dtype=dtype, device=device
    )
    places = [prompt.region for prompt in regional.prompts]
    strengths = [1.0, *(place.strength * place.mask_strength for place in places)]
    shares = [1 - level * (1 - regional.options.base) * (1 - rest), *cover.unbind(1)]
    for text, (share, strength) in enumerate(zip(shares, strengths, strict=True)):
        own = spans.span(text)
        bias[:, own, own] = 0
        read = share * strength * (level if text else 1.0)
        bias[:, spans.images, own] = read.log().to(dtype)[..., None]
        bias[:, own, spans.images] = share.log().to(dtype)[:, None]
    bias[:, :, spans.behind] = 0
    bias[:, spans.behind, spans.span(0)] = 0
    bias[:, spans.behind, spans.images] = 0
    images = bias[:, spans.images, spans.images]
    apart = 1 - level * (1 - regional.options.across)
    if apart == 1:
        images.zero_()
        return bias
    parts = torch.cat([rest[:, None], cover], dim=1)
    for first in range(0, spans.image, ROWS):
        together = parts[..., first : first + ROWS].transpose(1, 2) @ parts
        images[:, first : first + ROWS] = together.clamp(apart, 1).log().to(dtype)
    # a token that lies in several regions in part still reads itself
    images.diagonal(dim1=1, dim2=2).zero_()
    return bias


def add_own_biases(
    bias: Tensor,
    prompts: Sequence[Conditioning],
    spans: TokenSpans,
    height: int,
    width: int,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor:
    """A bias (1 or B, T, T) with what the prompts, the global one first, say of their own text and
    the image's ``height`` x ``width`` latents; raises ``ValueError`` for one of another size."""
    for number, prompt in enumerate(prompts):
        about = (height, width, 0, bias.device, bias.dtype, geometry)
        own = attention_mask(prompt.attention, spans.texts[number], *about)
        if own is None:
            continue
        own = as_bias(own, bias.dtype)
        if len(own) > len(bias):
            bias = bias.repeat(len(own), 1, 1)
        text, count = spans.span(number), spans.texts[number]
        bias[:, text, text] += own[:, :count, :count]
        bias[:, text, spans.images] += own[:, :count, count:]
        bias[:, spans.images, text] += own[:, count:, :count]
        if not number:
            bias[:, spans.images, spans.images] += own[:, count:, count:]
    return bias


def spans_of(
    prompt: Conditioning,
    height: int,
    width: int,
    level: float,
    references: int = 0,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> TokenSpans:
    """The tokens of a prompt and of its regions, where they count as ``level`` says, for a picture
    of ``height`` x ``width`` latents."""
    texts = [prompt.context.shape[1]]
    if prompt.regional is not None and level > 0:
        texts += [region.context.shape[1] for region in prompt.regional.prompts]
    return TokenSpans(tuple(texts), image_tokens(height, width, geometry=geometry), references)


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """A text for a part of the picture, for people who script.

    ``box``: left, top, right and bottom in shares of the picture, from 0 to 1; or ``mask`` (H, W)
    or (1 or B, H, W) in [0, 1] of any size, an array or a PIL picture. Raises ``ValueError`` for
    anything else.
    """

    prompt: str
    box: tuple[float, float, float, float] | None = None
    mask: Any = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"a region's prompt is {brief(self.prompt)}, expected a text")
        if (self.box is None) == (self.mask is None):
            raise ValueError("a region has a box and a mask or neither, expected one of them")
        check_number(self.strength, "a region's strength", 0, 1000)
        if self.box is not None:
            box_region(self.box)

    @property
    def place(self) -> Region:
        """Where it is."""
        if self.box is not None:
            return replace(box_region(self.box), strength=self.strength)
        return Region(mask=as_masks(self.mask, "a region's mask"), strength=self.strength)


def box_region(box: Sequence[float]) -> Region:
    """The place of a box: left, top, right and bottom in shares of the picture; ``ValueError``
    unless they are such."""
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise ValueError(f"a region's box is {brief(box)}, expected left, top, right and bottom")
    for name, value in zip(("left", "top", "right", "bottom"), box, strict=True):
        check_number(value, f"a box's {name}", 0, 1)
    left, top, right, bottom = (float(value) for value in box)
    if right <= left or bottom <= top:
        raise ValueError(
            f"a region's box is {brief(box)}, expected its right and bottom behind left and top"
        )
    return Region(area=(bottom - top, right - left, top, left), shares=True)


def checked_regions(regions: object, batch: int) -> list[RegionPrompt]:
    """Regions as a list; raises ``ValueError`` for anything else, and for masks that are neither
    one nor as many as pictures."""
    if not isinstance(regions, list | tuple):
        raise ValueError(f"regions is {brief(regions)}, expected a list of RegionPrompt")
    for region in regions:
        if not isinstance(region, RegionPrompt):
            raise ValueError(f"regions has {brief(region)}, expected a RegionPrompt")
        mask = region.place.mask
        if mask is not None:
            rows_for(batch, mask, "a region's mask")
            if not bool(mask.any()):
                raise ValueError(f"the mask of the region {brief(region.prompt)} is 0 everywhere")
    return list(regions)


def as_regional(
    prompts: Sequence[Conditioning], options: RegionalOptions = USUAL_REGIONS
) -> Conditioning:
    """One prompt with regions out of several, of which those with a mask or an area become regions.

    Raises ``ValueError`` unless exactly one prompt is
    for the whole picture, and where none has a place.
    """

    whole = [prompt for prompt in prompts if prompt.whole]
    if len(whole) != 1:
        raise ValueError(
            f"{len(whole)} prompts have no mask and no area, expected one: the global prompt"
        )
    regions = tuple(prompt for prompt in prompts if not prompt.whole)
    before = whole[0].regional.prompts if whole[0].regional is not None else ()
    return replace(whole[0], regional=RegionalPrompts((*before, *regions), options))

"""A picture of where regions lie, in colours with their names.

Axis letters: H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import ImageDraw
from torch import Tensor

from ..pictures import to_tensor
from ..sampling.conditioning import RegionalPrompts
from ..sampling.regional import region_cover
from .pictures import BACKGROUND, BAR_COLOURS, font, to_pil


def regions_picture(
    regional: RegionalPrompts, names: Sequence[str], height: int, width: int
) -> Tensor:
    """Regions (H, W, 3) in [0, 1], each in a colour and with its name in its middle.

    Where several overlap their colours mix; of masks for several pictures the first one's is drawn.
    Raises ``ValueError`` where there are not as many names as regions.
    """
    prompts = regional.prompts
    if len(names) != len(prompts):
        raise ValueError(f"{len(prompts)} regions have {len(names)} names, expected one each")
    cover = torch.stack([region_cover(prompt, height, width)[0] for prompt in prompts])
    colours = torch.tensor([BAR_COLOURS[i % len(BAR_COLOURS)] for i in range(len(prompts))]) / 255
    total = cover.sum(0)[..., None]
    painted = torch.einsum("rhw,rc->hwc", cover, colours) / total.clamp_min(1)
    back = torch.tensor(BACKGROUND) / 255
    picture = to_pil(painted + (1 - total).clamp_min(0) * back)
    canvas = ImageDraw.Draw(picture)
    rows = torch.arange(height).float()[:, None]
    columns = torch.arange(width).float()
    for name, part in zip(names, cover, strict=True):
        whole = float(part.sum())
        if whole:
            middle = (float((part * columns).sum()) / whole, float((part * rows).sum()) / whole)
            stroke = {"stroke_width": 2, "stroke_fill": BACKGROUND}
            canvas.text(middle, name, fill=(255, 255, 255), font=font(), anchor="mm", **stroke)
    return to_tensor(picture)

"""The colors of one picture given to another: of an enlarged or inpainted one to its original.

    mean_std   (x - mean x) std y / std x + mean y, each channel
    wavelet    x + low(y) - low(x), where low is five passes of a 3x3 kernel, 1 to 16 pixels wide

``wavelet`` is StableSR's color fix (arXiv:2305.07015). A mask says where to measure: there x and y
show the same. For ``wavelet`` the difference is then what is known nearby, and far from the mask
that of all that is known.

Pictures are (B, H, W, 3) in [0, 1], masks (B, H, W).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import brief, check_number
from .images import rows_for
from .latents import expand
from .masks import scaled_masks
from .stitch import resized

METHODS = ("mean_std", "wavelet")
#: Widths of the passes.
LEVELS = (1, 2, 4, 8, 16)
#: Share of a whole mask that counts everywhere.
FAR = 1e-4


def match_color(
    images: Tensor,
    reference: Tensor,
    mask: Tensor | None = None,
    method: str = "wavelet",
    strength: float = 1.0,
) -> Tensor:
    """Give pictures the colors of a reference.

    Args:
        images: (B, H, W, 3).
        reference: (1 or B, h, w, 3), of another size scaled.
        mask: (1 or B, h, w), above 0 where to measure, of another size scaled; None everywhere.
        strength: 0 leaves the pictures as they are.

    Returns (B, H, W, 3) in [0, 1]. Raises ``ValueError`` for another method, for batches that do
    not fit, and for a mask that is 0 everywhere in a picture.
    """
    if method not in METHODS:
        raise ValueError(f"method is {brief(method)}, expected one of {', '.join(METHODS)}")
    check_number(strength, "strength", 0, 1)
    batch, height, width = images.shape[:3]
    reference = expand(rows_for(batch, reference, "reference"), batch).to(images)
    y = resized(reference, height, width).movedim(-1, 1)
    x = images.movedim(-1, 1)
    where = torch.ones_like(x[:, :1])
    if mask is not None:
        masks = expand(rows_for(batch, mask, "mask"), batch).to(images)
        where = scaled_masks(masks, height, width)[:, None]
        if not bool((where > 0).flatten(1).any(dim=1).all()):
            raise ValueError("mask is 0 everywhere in a picture: colors are measured nowhere")
    change = by_mean_std if method == "mean_std" else by_low_frequencies
    matched = x + strength * (change(x, y, where) - x)
    return matched.clamp(0, 1).movedim(1, -1)


def by_mean_std(x: Tensor, y: Tensor, where: Tensor) -> Tensor:
    """x (B, 3, H, W) with y's mean and deviation, both measured ``where`` (B, 1, H, W)."""
    weight = where / where.sum(dim=(2, 3), keepdim=True)

    def measure(z: Tensor) -> tuple[Tensor, Tensor]:
        mean = (z * weight).sum(dim=(2, 3), keepdim=True)
        return mean, ((z - mean) ** 2 * weight).sum(dim=(2, 3), keepdim=True).sqrt()

    (mean_x, std_x), (mean_y, std_y) = measure(x), measure(y)
    return (x - mean_x) / std_x.clamp_min(1e-5) * std_y + mean_y


def by_low_frequencies(x: Tensor, y: Tensor, where: Tensor) -> Tensor:
    """x (B, 3, H, W) with y's low frequencies, known ``where`` (B, 1, H, W)."""
    if bool((where == where[:, :, :1, :1]).all()):
        return x + low(y - x)
    known = (y - x) * where
    mean = known.mean(dim=(2, 3), keepdim=True)
    return x + (low(known) + FAR * mean) / (low(where) + FAR * where.mean((2, 3), keepdim=True))


def low(x: Tensor) -> Tensor:
    """The low frequencies of x (B, C, H, W)."""
    for width in LEVELS:
        x = F.pad(x, (width,) * 4, mode="replicate")
        for axis in (2, 3):
            size = x.shape[axis] - 2 * width
            parts = [x.narrow(axis, n * width, size) for n in range(3)]
            x = parts[0] / 4 + parts[1] / 2 + parts[2] / 4
    return x

"""Stand-ins for the host's nodes that make masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OPERATIONS = ("multiply", "add", "subtract", "and", "or", "xor")
MOST = 16384


class SolidMask:
    """A mask of one value."""

    FUNCTION = "make"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        side = ("INT", {"default": 512, "min": 1, "max": MOST, "step": 1})
        value = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"value": value, "width": side, "height": side}}

    def make(self, value: float, width: int, height: int):
        return (torch.full((1, height, width), value),)


class MaskComposite:
    """A mask on another, its corner at a place."""

    FUNCTION = "combine"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        place = ("INT", {"default": 0, "min": 0, "max": MOST, "step": 1})
        return {
            "required": {
                "destination": ("MASK",),
                "source": ("MASK",),
                "x": place,
                "y": place,
                "operation": (list(OPERATIONS),),
            }
        }

    def combine(self, destination: Tensor, source: Tensor, x: int, y: int, operation: str):
        combined = destination.reshape(-1, *destination.shape[-2:]).clone()
        source = source.reshape(-1, *source.shape[-2:]).to(combined)
        below = combined[:, y : y + source.shape[-2], x : x + source.shape[-1]]
        above = source[:, : below.shape[-2], : below.shape[-1]]
        if operation in ("and", "or", "xor"):
            whole = below.round().bool(), above.round().bool()
            below.copy_(getattr(torch, f"logical_{operation}")(*whole))
        else:
            arithmetic = {"multiply": torch.mul, "add": torch.add, "subtract": torch.sub}
            below.copy_(arithmetic[operation](below, above))
        return (combined.clamp(0.0, 1.0),)


class FeatherMask:
    """A mask that fades out over so many pixels at each side.

    As in the host since 0.33; older ones number pixels from the right and from below one off.
    """

    FUNCTION = "feather"
    RETURN_TYPES = ("MASK",)

    @classmethod
    def INPUT_TYPES(cls):
        pixels = ("INT", {"default": 0, "min": 0, "max": MOST, "step": 1})
        sides = dict.fromkeys(("left", "top", "right", "bottom"), pixels)
        return {"required": {"mask": ("MASK",)} | sides}

    def feather(self, mask: Tensor, left: int, top: int, right: int, bottom: int):
        faded = mask.reshape(-1, *mask.shape[-2:]).clone()
        height, width = faded.shape[-2:]
        faded *= rising(width, left)
        faded *= rising(width, right).flip(0)
        faded *= rising(height, top)[:, None]
        faded *= rising(height, bottom).flip(0)[:, None]
        return (faded,)


def rising(length: int, pixels: int) -> Tensor:
    """Weights (length,) that rise to 1 over so many pixels."""
    pixels = min(pixels, length)
    weights = torch.ones(length)
    weights[:pixels] = (torch.arange(1, pixels + 1).double() / max(pixels, 1)).float()
    return weights


STOCK_MASKS: dict[str, Any] = {
    "FeatherMask": FeatherMask,
    "MaskComposite": MaskComposite,
    "SolidMask": SolidMask,
}

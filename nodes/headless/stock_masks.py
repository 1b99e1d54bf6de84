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


STOCK_MASKS: dict[str, Any] = {"MaskComposite": MaskComposite, "SolidMask": SolidMask}

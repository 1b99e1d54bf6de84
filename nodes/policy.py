"""The node that says what may be on the device."""

from __future__ import annotations

from ..flux_core import OffloadPolicy as Policy
from ..flux_core.offload.policy import MODES
from .wires import CATEGORY, OFFLOAD_POLICY


class OffloadPolicy:
    """How the parts share the device's memory."""

    DESCRIPTION = (
        "How the parts of FLUX.1 share the card's memory. none: everything stays there, the "
        "fastest where it fits. component: each part is there only while it computes. stream: "
        "blocks pass through a few buffers, the least memory. Pictures are the same to the bit."
    )
    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = (OFFLOAD_POLICY,)
    RETURN_NAMES = ("policy",)
    OUTPUT_TOOLTIPS = ("Goes into FluxLoaderFP8 or FluxControlNetLoader.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "mode": (
                    list(MODES),
                    {
                        "default": "component",
                        "tooltip": "component: one part on the card at a time; none: all stay; "
                        "stream: block by block.",
                    },
                )
            },
            "optional": {
                "vram_budget": (
                    "FLOAT",
                    {
                        "default": 0.0,
                        "min": 0.0,
                        "max": 1024.0,
                        "step": 0.1,
                        "tooltip": "Gigabytes of blocks that stream may keep on the card.",
                    },
                ),
                "slots": (
                    "INT",
                    {
                        "default": 2,
                        "min": 2,
                        "max": 8,
                        "tooltip": "Buffers that streamed blocks pass through.",
                    },
                ),
            },
        }

    def make(self, mode: str, vram_budget: float = 0.0, slots: int = 2):
        return (Policy(mode, int(vram_budget * 1e9), slots),)

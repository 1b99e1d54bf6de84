"""The node that says what may be on the device."""

from __future__ import annotations

from ..flux_core import OffloadPolicy as Policy
from ..flux_core.offload.policy import MODES
from .wires import CATEGORY, OFFLOAD_POLICY


class OffloadPolicy:
    """How the parts share the device's memory."""

    DESCRIPTION = (
        "How the parts of FLUX.1 share the card's memory. none: everything stays there, the "
        "fastest where it fits. component: each part is there only while it computes. Pictures "
        "are the same to the bit."
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
                        "tooltip": "component: one part on the card at a time; none: all stay.",
                    },
                )
            }
        }

    def make(self, mode: str):
        return (Policy(mode),)

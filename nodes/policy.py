"""The nodes that say what may be on the device, and what was."""

from __future__ import annotations

import torch
from torch import Tensor

from flux_core import OffloadPolicy as Policy
from flux_core.offload.machine import measure_machine
from flux_core.offload.memory import free_bytes
from flux_core.offload.plan import UNKNOWN
from flux_core.offload.policy import MODES, PARTS
from flux_core.report.timeline import timeline
from flux_core.sampling.estimate import plan_picture

from . import host
from .widgets import choice, integer, number, socket, toggle
from .wires import MEMORY, OFFLOAD_POLICY

AS_ALL = "as mode"
#: What a card has where none is there to ask.
EXAMPLE = 8e9


class OffloadPolicy:
    """How the parts share the device's memory."""

    DESCRIPTION = (
        "How the parts of FLUX.1 share the card's memory. auto: what fits stays there, the rest is "
        "streamed. none: everything stays, the fastest where it fits. component: each part is "
        "there only while it computes. stream: blocks pass through a few buffers, the least "
        "memory. Pictures are the same to the bit."
    )
    CATEGORY = MEMORY
    FUNCTION = "make"
    SEARCH_ALIASES = ["offload", "low vram", "memory", "block swap"]
    RETURN_TYPES = (OFFLOAD_POLICY, "STRING")
    RETURN_NAMES = ("policy", "predicted")
    OUTPUT_TOOLTIPS = (
        "Goes into a loader or a ControlNet node.",
        "What FLUX.1-dev would take with it at 1024x1024, in float8.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        def gigabytes(tooltip: str) -> tuple:
            return number(0.0, 0.0, 1024.0, 0.1, tooltip)

        own = {
            f"{part}_mode": choice(
                [AS_ALL, *MODES], f"Another mode for {part}.", default=AS_ALL, advanced=True
            )
            for part in PARTS
        }
        return {
            "required": {
                "mode": choice(
                    list(MODES),
                    "auto: planned; none: all stay on the card; component: one part "
                    "at a time; stream: block by block.",
                    default="auto",
                )
            },
            "optional": {
                "vram_budget": gigabytes(
                    "Gigabytes of the card that a run may take in all; 0 is what is free for auto "
                    "and the least for stream."
                ),
                "slots": integer(
                    2,
                    2,
                    8,
                    "Buffers that streamed blocks pass through; auto may take more.",
                    advanced=True,
                ),
                "ram_budget": gigabytes(
                    "Gigabytes of host memory that may be pinned for fast copies, and above which "
                    "weights stay in their file; 0 is half of it."
                ),
                "pin": toggle(
                    True, "Pin weights on the host, for copies at full speed.", advanced=True
                ),
            }
            | own,
        }

    def make(
        self,
        mode: str,
        vram_budget: float = 0.0,
        slots: int = 2,
        ram_budget: float = 0.0,
        pin: bool = True,
        **own: str,
    ):
        policy = Policy(
            mode,
            int(vram_budget * 1e9) or None,
            slots,
            int(ram_budget * 1e9) or None,
            pin,
            {k.removesuffix("_mode"): v for k, v in own.items() if v != AS_ALL},
        )
        text = predicted(policy)
        return {"ui": {"text": (text,)}, "result": (policy, text)}


def predicted(policy: Policy) -> str:
    """What FLUX.1-dev would take on this card, or where there is none on one of 8 GB."""
    device = host.device()
    free = free_bytes(device)
    if free is None:
        planned = plan_picture(UNKNOWN, vram=EXAMPLE, policy=policy)
        return f"FLUX.1-dev, fp8_scaled, 1024x1024, on a card of {EXAMPLE / 1e9:g} GB: {planned}"
    planned = plan_picture(measure_machine(device), vram=free, policy=policy)
    return f"FLUX.1-dev, fp8_scaled, 1024x1024, on this card: {planned}"


class FluxFitMemoryReport:
    """What the parts took when they ran last."""

    DESCRIPTION = (
        "Shows what each part of FLUX.1 took when it ran last: bytes on the card, streamed and "
        "pinned, predicted beside measured, copies, stalls and bandwidth, and a timeline of memory "
        "and of the copy and compute lanes. Wire in the picture that is made last."
    )
    CATEGORY = MEMORY
    FUNCTION = "show"
    SEARCH_ALIASES = ["vram", "profiler", "timeline"]
    RETURN_TYPES = ("IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("image", "timeline", "report")
    OUTPUT_TOOLTIPS = ("The picture, as it came.", "The report, drawn.", "The report as text.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"image": socket("IMAGE", "What is made last, so that this runs after it.")}
        }

    @classmethod
    def IS_CHANGED(cls, **_: object):
        return float("nan")  # parts may have run again though the picture did not change

    def show(self, image: Tensor):
        text = str(host.latest)
        drawn = timeline(host.latest) if host.latest.parts else torch.zeros(1, 1, 3)
        return {"ui": {"text": (text,)}, "result": (image, drawn[None], text)}

"""The nodes that say what may be on the device, and what was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flux_core import OffloadPolicy as Policy
from flux_core.offload.policy import MODES, PARTS
from flux_core.report.timeline import timeline

from . import accounts
from .widgets import choice, integer, number, socket, text, toggle
from .wires import MEMORY, OFFLOAD_POLICY

AS_ALL = "as mode"


class OffloadPolicy:
    """How the parts share the device's memory."""

    DESCRIPTION = (
        "How the parts of FLUX share the card's memory. auto: what fits stays there, the rest is "
        "streamed. none: everything stays, the fastest where it fits. component: each part is "
        "there only while it computes. stream: blocks pass through a few buffers, the least "
        "memory. Pictures are the same to the bit. The node shows what the model that it is "
        "wired to will take."
    )
    CATEGORY = MEMORY
    FUNCTION = "make"
    SEARCH_ALIASES = ["offload", "low vram", "memory", "block swap"]
    RETURN_TYPES = (OFFLOAD_POLICY, "STRING")
    RETURN_NAMES = ("policy", "summary")
    OUTPUT_TOOLTIPS = (
        "Goes into a loader or a ControlNet node.",
        "The policy in one line.",
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
            | own
            | {
                "devices": text(
                    "",
                    "Cards that draw together: all, or names such as cuda:0,cuda:1. Each draws its "
                    "share of a batch, or one of both prompts of true guidance (cfg), with "
                    "FluxSampler's own samplers; empty is one card. Each picture of a batch is "
                    "then drawn by itself, and is the same on however many cards.",
                    advanced=True,
                )
            },
        }

    def make(self, **widgets: Any):
        policy = policy_of(widgets)
        return (policy, in_words(policy))


def policy_of(widgets: Mapping[str, Any]) -> Policy:
    """The policy that some of the node's widgets make, the others as they are by default.

    Raises ``ValueError`` for what no policy has.
    """
    known = {"mode", "vram_budget", "slots", "ram_budget", "pin", "devices"}
    known |= {f"{p}_mode" for p in PARTS}
    unknown = set(widgets) - known
    if unknown:
        raise ValueError(f"OffloadPolicy has no input {', '.join(map(repr, sorted(unknown)))}")
    own = {part: widgets.get(f"{part}_mode", AS_ALL) for part in PARTS}
    return Policy(
        widgets.get("mode", "auto"),
        int(widgets.get("vram_budget", 0.0) * 1e9) or None,
        widgets.get("slots", 2),
        int(widgets.get("ram_budget", 0.0) * 1e9) or None,
        widgets.get("pin", True),
        {part: mode for part, mode in own.items() if mode != AS_ALL},
        devices=widgets.get("devices", ""),
    )


def in_words(policy: Policy) -> str:
    """A policy in one line."""
    words = [policy.mode]
    for name, budget in (("card", policy.vram_budget), ("host", policy.ram_budget)):
        if budget is not None:
            words.append(f"{budget / 1e9:g} GB of the {name}")
    words += [f"{part}: {mode}" for part, mode in policy.parts.items()]
    if policy.devices:
        words.append(f"on {' and '.join(policy.devices)} together")
    return ", ".join(words)


class FluxFitMemoryReport:
    """What the parts took when they ran last."""

    DESCRIPTION = (
        "Shows what each part of FLUX took when it ran last: bytes on the card, streamed and "
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
        report = accounts.latest()
        summary = str(report)
        drawn = timeline(report) if report.parts else torch.zeros(1, 1, 3)
        return {"ui": {"text": (summary,)}, "result": (image, drawn[None], summary)}

"""What may be on the device at once."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("none", "component", "stream")
PLANNED = ("auto",)


@dataclass(frozen=True)
class OffloadPolicy:
    """How a pipeline shares a device's memory.

    ``none`` keeps every part on the device; ``component`` has each there only while it computes:
    text encoders, VAE encoder, transformer with its ControlNets, VAE decoder. Results are equal to
    the bit. ``stream`` has the blocks of transformer, ControlNets and T5 pass through a few buffers
    instead, and the other parts as ``component``. ``auto`` is a known name that this version
    refuses.

    ``vram_budget``: bytes for blocks that ``stream`` may keep on the device; None keeps none.
    ``slots``: buffers of its ring, at least 2.
    """

    mode: str = "none"
    vram_budget: int | None = None
    slots: int = 2

    def __post_init__(self) -> None:
        if self.mode in PLANNED:
            raise ValueError(
                f"offload mode {self.mode!r} is not in this version; use one of {', '.join(MODES)}"
            )
        if self.mode not in MODES:
            raise ValueError(
                f"offload mode is {self.mode!r}, expected one of {', '.join(MODES + PLANNED)}"
            )
        if self.vram_budget is not None and self.vram_budget < 0:
            raise ValueError(f"vram_budget is {self.vram_budget} bytes, expected 0 or more")
        if self.slots < 2:
            raise ValueError(f"slots is {self.slots}, expected at least 2: one copies, one works")

"""What may be on the device at once."""

from __future__ import annotations

from dataclasses import dataclass

MODES = ("none", "component")
PLANNED = ("stream", "auto")


@dataclass(frozen=True)
class OffloadPolicy:
    """How a pipeline shares a device's memory.

    ``none`` keeps every part on the device; ``component`` has each there only while it computes:
    text encoders, VAE encoder, transformer with its ControlNets, VAE decoder. Results are equal to
    the bit. ``stream`` and ``auto`` are known names that this version refuses.
    """

    mode: str = "none"

    def __post_init__(self) -> None:
        if self.mode in PLANNED:
            raise ValueError(
                f"offload mode {self.mode!r} is not in this version; use one of {', '.join(MODES)}"
            )
        if self.mode not in MODES:
            raise ValueError(
                f"offload mode is {self.mode!r}, expected one of {', '.join(MODES + PLANNED)}"
            )

"""What a person wants of the memory there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..bounds import check_number
from .devices import device_names
from .memory import host_bytes

MODES = ("auto", "none", "component", "stream")
#: Kinds of modules that may have a mode of their own.
PARTS = ("transformer", "controlnet", "t5", "clip_l", "vae", "language_model")


@dataclass(frozen=True)
class OffloadPolicy:
    """How a pipeline shares the memory of a device and of its host.

    ``auto`` keeps on the device what fits, beside what the picture takes, and streams the rest.
    ``none`` keeps every part there. ``component`` has each there only while it computes: text
    encoders, VAE encoder, transformer with its ControlNets, VAE decoder. ``stream`` has the blocks
    of transformer, ControlNets and T5 pass through a few buffers, and the other parts as
    ``component``. Pictures are equal to the bit.

    ``vram_budget``: bytes of the device that a run may take in all, weights and what it computes.
    None: what is free for ``auto``, the least for ``stream``; the other modes ask for no budget.
    ``ram_budget``: bytes of host memory that may be pinned, and above which a checkpoint's weights
    stay in their file; None is half of the host's memory.
    ``slots``: buffers of a ring, at least 2; ``auto`` may choose more.
    ``pin``: whether weights may be pinned, which doubles the speed of copies.
    ``separate_memory``: whether the device's memory is apart from the host's, so that weights are
    copied to it; None is as such devices have it. With True a CPU stands for a card.
    ``parts``: modes of single kinds of parts (``PARTS``), such as ``{"t5": "stream"}``.
    ``devices``: those that draw together, ``"cuda:0,cuda:1"`` or a sequence of such names, or
    ``all``: pictures of a batch, and both prompts of true guidance, each under this policy. Each
    picture of a batch is then drawn by itself, however many devices there are.
    """

    mode: str = "auto"
    vram_budget: int | None = None
    slots: int = 2
    ram_budget: int | None = None
    pin: bool = True
    parts: Mapping[str, str] = field(default_factory=dict)
    separate_memory: bool | None = None
    devices: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for part, mode in (("offload", self.mode), *self.parts.items()):
            if mode not in MODES:
                raise ValueError(f"{part} mode is {mode!r}, expected one of {', '.join(MODES)}")
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"part is {part!r}, expected one of {', '.join(PARTS)}")
        for name in ("vram_budget", "ram_budget"):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), f"{name} in bytes", 0)
        check_number(self.slots, "slots, of which one copies and one works,", 2, 1000, whole=True)
        object.__setattr__(self, "devices", device_names(self.devices))

    @property
    def host_budget(self) -> int:
        """Bytes of host memory for weights."""
        return host_bytes() // 2 if self.ram_budget is None else self.ram_budget

    def of(self, module: object) -> str:
        """The mode of one module, told by its ``part``."""
        return self.parts.get(getattr(module, "part", ""), self.mode)

"""Moving whole parts to the device and back, and keeping account of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..quant import arithmetic_of
from .policy import OffloadPolicy
from .ring import RingReport
from .streaming import Lent, streamed


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass
class PartReport:
    """What one part took: bytes on the device while it ran, seconds computing and moving, and what
    was streamed meanwhile: bytes and copies.

    ``arithmetic`` counts its quantized layers by how they multiplied, fallbacks with their reason.
    ``mode`` is the policy it ran under.
    """

    size: int
    seconds: float = 0.0
    moving: float = 0.0
    streamed: int = 0
    copies: int = 0
    mode: str = "none"
    arithmetic: Counter[str] = field(default_factory=Counter)


@dataclass
class MemoryReport:
    """What happened in a run, by part."""

    device: str = "cpu"
    parts: dict[str, PartReport] = field(default_factory=dict)

    def add(self, other: MemoryReport) -> None:
        """Take in what another report says; the same part's times add up."""
        self.device = other.device
        for name, part in other.parts.items():
            mine = self.parts.setdefault(name, PartReport(part.size))
            mine.size = max(mine.size, part.size)
            mine.seconds += part.seconds
            mine.moving += part.moving
            mine.streamed += part.streamed
            mine.copies += part.copies
            mine.mode = part.mode
            mine.arithmetic |= part.arithmetic

    @property
    def peak(self) -> int:
        """Most bytes of weights on the device at once: all that stay, and the largest guest."""
        staying = sum(p.size for p in self.parts.values() if p.mode == "none")
        guests = [p.size for p in self.parts.values() if p.mode != "none"]
        return staying + max(guests, default=0)

    def __str__(self) -> str:
        lines = [f"{'part':<14}{'weights':>11}{'computing':>12}{'moving':>10}"]
        lines += [
            f"{name:<14}{part.size / 2**20:>7.1f} MiB{part.seconds:>10.2f} s{part.moving:>8.2f} s"
            for name, part in self.parts.items()
        ]
        modes = " and ".join(sorted({part.mode for part in self.parts.values()}))
        lines.append(
            f"weights on {self.device} at once: {self.peak / 2**20:.1f} MiB (policy {modes})"
        )
        lines += [
            f"{name}: {part.copies} blocks streamed, {part.streamed / 2**20:.1f} MiB"
            for name, part in self.parts.items()
            if part.copies
        ]
        lines += [
            f"{name}: {count} layers {how}"
            for name, part in self.parts.items()
            for how, count in sorted(part.arithmetic.items())
        ]
        return "\n".join(lines)


class Residency:
    """Brings parts to the device under a policy.

    ``with residency.hold("vae", module):`` has the modules there inside the block. Under
    ``component`` they go back to where they were when it ends, also when it ends in an error; under
    ``none`` they stay.
    """

    def __init__(self, policy: OffloadPolicy | None, device: torch.device | str) -> None:
        self.policy = policy or OffloadPolicy()
        self.device = torch.device(device)
        self.report = MemoryReport(str(self.device))

    @contextmanager
    def hold(self, name: str, *modules: nn.Module) -> Iterator[None]:
        part = self.report.parts.setdefault(name, PartReport(0, mode=self.policy.mode))
        with ExitStack() as stack:
            started = time.monotonic()
            rings = [stack.enter_context(self._bring(module)) for module in modules]
            self._wait()
            part.moving += time.monotonic() - started
            part.size = max(part.size, sum(ring.resident for ring in rings))
            started = time.monotonic()
            yield
            self._wait()
            part.seconds += time.monotonic() - started
            part.streamed += sum(ring.bytes for ring in rings)
            part.copies += sum(ring.copies for ring in rings)
            for module in modules:
                part.arithmetic |= arithmetic_of(module)

    @contextmanager
    def _bring(self, module: nn.Module) -> Iterator[RingReport]:
        """One module to where its policy wants it."""
        if self.policy.mode == "none":
            module.to(self.device)
            yield RingReport(module_bytes(module))
        elif self.policy.mode == "stream":
            with streamed(
                module, self.device, resident=self.policy.vram_budget or 0, slots=self.policy.slots
            ) as report:
                yield report
        else:
            lent = Lent(module, set(), self.device)
            try:
                yield RingReport(module_bytes(module))
            finally:
                lent.give_back()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

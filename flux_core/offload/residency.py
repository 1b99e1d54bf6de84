"""Moving whole parts to the device and back, and keeping account of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..quant import arithmetic_of
from .policy import OffloadPolicy


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def module_device(module: nn.Module) -> torch.device:
    """Where a module's first tensor lies."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


@dataclass
class PartReport:
    """What one part took: bytes on the device while it ran, seconds computing and moving.

    ``arithmetic`` counts its quantized layers by how they multiplied, fallbacks with their reason.
    ``mode`` is the policy it ran under.
    """

    size: int
    seconds: float = 0.0
    moving: float = 0.0
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
        homes = [(m, module_device(m)) for m in modules]
        size = sum(map(module_bytes, modules))
        part = self.report.parts.setdefault(name, PartReport(size, mode=self.policy.mode))
        part.size = max(part.size, size)
        try:
            part.moving += self._move([(m, self.device) for m in modules])
            started = time.monotonic()
            yield
            self._wait()
            part.seconds += time.monotonic() - started
            for module in modules:
                part.arithmetic |= arithmetic_of(module)
        finally:
            if self.policy.mode == "component":
                part.moving += self._move(homes)

    def _move(self, moves: list[tuple[nn.Module, torch.device]]) -> float:
        started = time.monotonic()
        for module, device in moves:
            if module_device(module) != device:
                module.to(device)
        self._wait()
        return time.monotonic() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

"""What happened to memory in a run, part by part."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .clock import Ran
from .schedule import COMPUTE, COPY

MIB = 2**20


@dataclass
class PartReport:
    """What one part took while it ran.

    Bytes: ``size`` of its weights on the device, slots included, ``streamed`` through them,
    ``pinned`` on the host, ``predicted`` and ``peak`` with what computing takes (``peak`` is
    measured on CUDA alone, else 0). Seconds: ``seconds`` computing, ``moving`` before it,
    ``stalled`` for copies, ``copying`` on the copy lane; ``step`` the predicted seconds a pass over
    all blocks. ``started`` counts from the program's start.

    ``restarts`` counts blocks that were asked for out of turn, ``replans`` runs out of memory.
    ``kernels`` counts quantized layers by how they multiplied, fallbacks with their reason.
    ``ran`` is what the ring's lanes did, by module. ``mode`` is the policy that it ran under, and
    ``device`` where; empty is the report's own.
    """

    size: int = 0
    seconds: float = 0.0
    moving: float = 0.0
    streamed: int = 0
    copies: int = 0
    restarts: int = 0
    replans: int = 0
    pinned: int = 0
    predicted: int = 0
    peak: int = 0
    step: float = 0.0
    stalled: float = 0.0
    copying: float = 0.0
    started: float = 0.0
    mode: str = "none"
    tile: int | None = None
    blocks: int = 0
    ran: list[Ran] = field(default_factory=list)
    kernels: Counter[str] = field(default_factory=Counter)
    device: str = ""

    @property
    def bandwidth(self) -> float:
        """Bytes a second of the copy lane while it copied."""
        return self.streamed / self.copying if self.copying else 0.0

    @property
    def facts(self) -> dict[str, float | int | str | None]:
        """What a picture's receipt says of it; bytes and seconds."""
        return {
            "policy": self.mode,
            "weights": self.size or None,
            "streamed": self.streamed or None,
            "predicted": self.predicted,
            "peak": self.peak or None,
            "predicted_pass": self.step or None,
            "seconds": round(self.seconds, 4),
            "moving": round(self.moving, 4),
            "tile": self.tile,
            "replans": self.replans or None,
        }

    def record(self, ran: list[Ran]) -> None:
        """Take in what a ring's lanes did."""
        self.ran = ran
        self.stalled += sum(r.waited for r in ran if r.lane == COMPUTE)
        self.copying += sum(r.end - r.start for r in ran if r.lane == COPY)

    def add(self, other: PartReport) -> None:
        """Take in another run of the same part: times and counts add up, sizes are the largest."""
        for name in (
            "seconds",
            "moving",
            "streamed",
            "copies",
            "restarts",
            "replans",
            "stalled",
            "copying",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("size", "pinned", "predicted", "peak", "step", "blocks"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.mode, self.tile, self.ran = other.mode, other.tile, other.ran
        self.device = other.device or self.device
        self.started = self.started or other.started
        self.kernels |= other.kernels


@dataclass
class MemoryReport:
    """What happened in a run, by part."""

    device: str = "cpu"
    parts: dict[str, PartReport] = field(default_factory=dict)

    def add(self, other: MemoryReport) -> None:
        """Take in what another report says; the same part's times add up."""
        self.device = other.device
        for name, part in other.parts.items():
            self.parts.setdefault(name, PartReport(started=part.started)).add(part)

    @property
    def peak(self) -> int:
        """Most bytes of weights on the device at once: all that stay, and one other part."""
        return self.peak_on(self.device)

    @property
    def devices(self) -> list[str]:
        """The report's own device, and further ones that parts ran on."""
        return list(
            dict.fromkeys([self.device, *(p.device or self.device for p in self.parts.values())])
        )

    def peak_on(self, device: str) -> int:
        """``peak`` of one of the devices."""
        parts = [p for p in self.parts.values() if (p.device or self.device) == device]
        staying = sum(p.size for p in parts if p.mode == "none")
        passing = [p.size for p in parts if p.mode != "none"]
        return staying + max(passing, default=0)

    def __str__(self) -> str:
        wide = max([14, *(len(name) + 2 for name in self.parts)])
        lines = [f"{'part':<{wide}}{'weights':>11}{'computing':>12}{'moving':>10}{'predicted':>14}"]
        for name, part in self.parts.items():
            measured = f" (was {part.peak / MIB:.0f})" if part.peak else ""
            lines.append(
                f"{name:<{wide}}{part.size / MIB:>7.1f} MiB{part.seconds:>10.2f} s"
                f"{part.moving:>8.2f} s{part.predicted / MIB:>10.0f} MiB{measured}"
            )
        modes = " and ".join(sorted({part.mode for part in self.parts.values()}))
        lines += [
            f"weights on {device} at once: {self.peak_on(device) / MIB:.1f} MiB (policy {modes})"
            for device in self.devices
        ]
        for name, part in self.parts.items():
            lines += [f"{name}: {remarks}" for remarks in notes(part)]
        return "\n".join(lines)


def notes(part: PartReport) -> list[str]:
    """What is worth a line about one part."""
    remarks = []
    if part.copies:
        remarks.append(
            f"{part.copies} blocks streamed, {part.streamed / MIB:.1f} MiB at "
            f"{part.bandwidth / 1e9:.1f} GB/s, {part.stalled:.2f} s stalled"
        )
    if part.pinned:
        remarks.append(f"{part.pinned / MIB:.1f} MiB pinned on the host")
    if part.step:
        remarks.append(f"predicted {part.step:.3f} s a pass over its blocks")
    if part.tile:
        remarks.append(f"in tiles of {8 * part.tile} pixels, blended")
    if part.replans:
        remarks.append(f"ran out of memory {part.replans} times and was planned again")
    if part.restarts:
        remarks.append(f"{part.restarts} blocks were asked for out of turn")
    remarks += [f"{count} layers {how}" for how, count in sorted(part.kernels.items())]
    return remarks

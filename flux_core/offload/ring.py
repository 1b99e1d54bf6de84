"""Blocks streamed through a few buffers on the device.

    copy lane     |B0>s0 |B1>s1 |      |B2>s0 |      |B3>s1 | ...
    compute lane         | B0   | B1   ^      | B2   ^      | ...

Copies run on a stream of their own, as many blocks ahead as there are slots, and past the last
block to the first of the next step. A slot is overwritten when the event behind its computation has
passed, and read when the event behind its copy has: the host waits for neither. On a CPU the same
ring copies at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from ..quant import quantized_linears
from .pack import PackedBlock


@dataclass
class RingReport:
    """What a part keeps on the device and what its ring did: bytes resident, copies, bytes copied,
    seconds that the host spent starting copies, and how often a block was asked for out of turn.
    """

    resident: int = 0
    copies: int = 0
    bytes: int = 0
    restarts: int = 0
    seconds: float = 0.0


class Slot:
    """One buffer: which block it holds, and the events that order its use."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = torch.empty(size, dtype=torch.uint8, device=device)
        self.block: int | None = None
        self.copied = torch.cuda.Event() if device.type == "cuda" else None
        self.used = torch.cuda.Event() if device.type == "cuda" else None
        self.twins: dict[object, nn.Module] = {}


class Ring:
    """Runs blocks in a fixed cyclic order from ``slots`` buffers.

    ``poison`` fills a slot with NaN as soon as it is released, so that a use too late shows.
    """

    def __init__(
        self, blocks: list[PackedBlock], device: torch.device, slots: int = 2, poison: bool = False
    ) -> None:
        if slots < 2:
            raise ValueError(
                f"a ring has {slots} slots, expected at least 2: one copies, one works"
            )
        self.blocks, self.device, self.poison = blocks, device, poison
        self.kinds = [block.kind for block in blocks]
        size = max(block.size for block in blocks)
        self.slots = [Slot(size, device) for _ in range(min(slots, len(blocks)))]
        self.lane = None
        if device.type == "cuda":
            self.lane = torch.cuda.Stream(device)
            # the buffers' memory may still be in use by what was computed before
            self.lane.wait_stream(torch.cuda.current_stream(device))
        self.next = 0
        self.report = RingReport()
        for slot in self.slots:
            self.fetch(slot)

    def fetch(self, slot: Slot) -> None:
        """Start copying the next block in turn into a free slot."""
        started = time.monotonic()
        block = self.blocks[self.next]
        if self.lane is None:
            slot.buffer[: block.size].copy_(block.flat)
        else:
            assert slot.copied is not None and slot.used is not None
            with torch.cuda.stream(self.lane):
                self.lane.wait_event(slot.used)
                slot.buffer[: block.size].copy_(block.flat, non_blocking=True)
                slot.copied.record(self.lane)
        slot.block = self.next
        self.next = (self.next + 1) % len(self.blocks)
        self.report.copies += 1
        self.report.bytes += block.size
        self.report.seconds += time.monotonic() - started

    def enter(self, index: int) -> tuple[Slot, nn.Module]:
        """The slot that holds a block, and the block's twin on it, ready for the current stream."""
        slot = next((s for s in self.slots if s.block == index), None)
        if slot is None:
            self.restart(index)
            return self.enter(index)
        if slot.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.copied)
        kind = self.kinds[index]
        if kind not in slot.twins:
            slot.twins[kind] = self.blocks[index].twin_on(slot.buffer)
        return slot, slot.twins[kind]

    def leave(self, slot: Slot) -> None:
        """Give a slot to the next block in turn, when what was computed from it is done."""
        slot.block = None
        if self.poison:
            slot.buffer.fill_(255)
        if slot.used is not None:
            slot.used.record(torch.cuda.current_stream(self.device))
        self.fetch(slot)

    def restart(self, index: int) -> None:
        """Begin anew at a block that was asked for out of turn."""
        self.report.restarts += 1
        self.next = index
        for slot in self.slots:
            if slot.used is not None:
                slot.used.record(torch.cuda.current_stream(self.device))
            self.fetch(slot)

    def close(self) -> None:
        """Order whatever uses the buffers' memory next behind the copies that are under way."""
        if self.lane is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.lane)
        self.tell_ways()

    def tell_ways(self) -> None:
        """Let the blocks know how their twins multiplied, for the report."""
        for packed, kind in zip(self.blocks, self.kinds, strict=True):
            twins = [slot.twins[kind] for slot in self.slots if kind in slot.twins]
            for made in twins[:1]:
                pairs = zip(quantized_linears(packed.block), quantized_linears(made), strict=True)
                for layer, worked in pairs:
                    layer.ways.update(worked.ways)

    def run(self, index: int, *args, **kwargs):
        """A block's forward, from whatever slot holds it."""
        slot, block = self.enter(index)
        try:
            return block(*args, **kwargs)
        finally:
            self.leave(slot)

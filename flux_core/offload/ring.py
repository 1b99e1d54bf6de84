"""Blocks streamed through a few buffers on the device.

    copy lane     |B0>s0 |B1>s1 |      |B2>s0 |      |B3>s1 | ...
    compute lane         | B0   | B1   ^      | B2   ^      | ...

Copies run on a stream of their own, as many blocks ahead as there are slots, and past the last
block to the first of the next step. A slot is overwritten when the event behind its computation has
passed, and read when the event behind its copy has: the host waits for neither. Blocks that are not
pinned go through a few pinned buffers first, filled on a thread. On a CPU the same ring copies at
once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .blocks import learn_from_twin
from .clock import Trace
from .host_weights import HostWeights, WeightsWithBranches
from .memory import device_buffer
from .schedule import COMPUTE, COPY

#: Pinned buffers that blocks which are not pinned pass through.
STAGES = 2


class Slot:
    """One buffer: which block it holds, and the events that order its use."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = device_buffer(size, device)
        self.block: int | None = None
        self.copied = torch.cuda.Event() if device.type == "cuda" else None
        self.used = torch.cuda.Event() if device.type == "cuda" else None
        self.filling: Future[None] | None = None
        self.twins: dict[object, nn.Module] = {}


class Stage:
    """A pinned buffer on the host, and the event behind the copy that empties it."""

    def __init__(self, size: int) -> None:
        with torch.inference_mode(False):
            self.buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.emptied = torch.cuda.Event()


class Ring:
    """Runs blocks in a fixed cyclic order from ``slots`` buffers.

    ``poison`` fills a slot with NaN as soon as it is released, so that a use too late shows.
    ``threaded`` fills slots on a thread, as for blocks that are not pinned.
    """

    def __init__(
        self,
        host_weights: Sequence[HostWeights | WeightsWithBranches],
        device: torch.device,
        slots: int = 2,
        poison: bool = False,
        threaded: bool | None = None,
    ) -> None:
        if slots < 2:
            raise ValueError(
                f"a ring has {slots} slots, expected at least 2: one copies, one works"
            )
        self.host_weights, self.device, self.poison = host_weights, device, poison
        self.kinds = [weights.kind for weights in host_weights]
        self.copies = self.bytes = self.restarts = 0
        self.next = 0
        self.trace = Trace(device)
        self.lane: torch.cuda.Stream | None = None
        self.stages: list[Stage] = []
        self.worker: ThreadPoolExecutor | None = None
        self.slots: list[Slot] = []
        size = max(weights.size for weights in host_weights)
        self.slots = [Slot(size, device) for _ in range(min(slots, len(host_weights)))]
        if threaded is None:
            threaded = device.type == "cuda" and not all(weights.pinned for weights in host_weights)
        if device.type == "cuda":
            self.lane = torch.cuda.Stream(device)
            # the buffers' memory may still be in use by what was computed before
            self.lane.wait_stream(torch.cuda.current_stream(device))
            self.stages = [Stage(size) for _ in range(STAGES if threaded else 0)]
        if threaded:
            self.worker = ThreadPoolExecutor(1, "fluxfit-ring")
        for slot in self.slots:
            self.fetch(slot)

    @property
    def size(self) -> int:
        """Bytes of its buffers on the device."""
        return sum(slot.buffer.nbytes for slot in self.slots)

    def fetch(self, slot: Slot) -> None:
        """Start copying the next block in turn into a free slot."""
        number = self.next
        slot.block = number
        self.next = (number + 1) % len(self.host_weights)
        self.copies += 1
        self.bytes += self.host_weights[number].size
        if self.worker is None:
            self.fill(slot, number)
        else:
            slot.filling = self.worker.submit(self.fill, slot, number)

    def fill(self, slot: Slot, number: int) -> None:
        """Copy a block into a slot, in the order of the copy lane."""
        weights = self.host_weights[number]
        with torch.inference_mode():  # a thread begins without it, and slots may belong to it
            if self.lane is None:
                started = self.trace.clock.mark()
                weights.copy_into(slot.buffer)
                self.trace.add(COPY, number, started, started, self.trace.clock.mark())
                return
            stage: Stage | None = None
            if not weights.pinned:
                stage = self.stages[0]
                self.stages.append(self.stages.pop(0))
                stage.emptied.synchronize()  # on the thread: the one that computes goes on
                weights.copy_into(stage.buffer)
            assert slot.copied is not None and slot.used is not None
            with torch.cuda.stream(self.lane):
                self.lane.wait_event(slot.used)
                started = self.trace.clock.mark()
                if stage is None:
                    weights.copy_into(slot.buffer)
                else:
                    whole = slice(0, weights.size)
                    slot.buffer[whole].copy_(stage.buffer[whole], non_blocking=True)
                    stage.emptied.record(self.lane)
                self.trace.add(COPY, number, started, started, self.trace.clock.mark())
                slot.copied.record(self.lane)

    def enter(self, index: int) -> tuple[Slot, nn.Module]:
        """The slot that holds a block, and the block's twin on it, ready for the current stream."""
        slot = next((s for s in self.slots if s.block == index), None)
        if slot is None:
            self.restart(index)
            return self.enter(index)
        if slot.filling is not None:  # begun, not done: the event says when it is done
            slot.filling.result()
            slot.filling = None
        if slot.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.copied)
        kind = self.kinds[index]
        if kind not in slot.twins:
            slot.twins[kind] = self.host_weights[index].twin_on(slot.buffer)
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
        self.restarts += 1
        self.next = index
        for slot in self.slots:
            if slot.filling is not None:
                slot.filling.result()
            if slot.used is not None:
                slot.used.record(torch.cuda.current_stream(self.device))
            self.fetch(slot)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What waits on the host may change inside the block of this ``with``, between two passes:
        what was copied of it already is copied again."""
        for slot in self.slots:
            if slot.filling is not None:
                slot.filling.result()
            if slot.copied is not None:
                slot.copied.synchronize()
        yield
        self.restart(0)

    def wait(self) -> None:
        """Wait until all copies so far are under way."""
        for slot in self.slots:
            if slot.filling is not None:
                slot.filling.result()
        self.share_kernel_choices()

    def close(self) -> None:
        """Order whatever uses the buffers' memory next behind the copies that are under way."""
        if self.worker is not None:
            self.worker.shutdown(wait=True, cancel_futures=True)
        if self.lane is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.lane)

    def share_kernel_choices(self) -> None:
        """Let the blocks know how their twins multiplied, for the report."""
        for weights, kind in zip(self.host_weights, self.kinds, strict=True):
            twins = [slot.twins[kind] for slot in self.slots if kind in slot.twins]
            if twins:
                learn_from_twin(weights.module, twins[0])

    @contextmanager
    def using(self, index: int) -> Iterator[nn.Module]:
        """The block of a turn, from whatever slot holds it; the slot is given back afterwards."""
        asked = self.trace.clock.mark()
        slot, block = self.enter(index)
        started = self.trace.clock.mark()
        try:
            yield block
        finally:
            self.trace.add(COMPUTE, index, asked, started, self.trace.clock.mark())
            self.leave(slot)

    def run(self, index: int, *args: Any, **kwargs: Any) -> Any:
        """A block's forward in its turn."""
        with self.using(index) as block:
            return block(*args, **kwargs)

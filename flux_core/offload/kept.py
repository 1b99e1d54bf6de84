"""What blocks keep from pass to pass, waiting on the host: copied there once, and back in turn.

    copy lane     |B1>s1 |B2>s0 |B3>s1 | ...
    compute lane  | B0   | B1   | B2   | ...

Two buffers on the device hold what this block and the next one read. A buffer is overwritten when
the block that read it has been computed, and read when its copy is done; events order that, and the
host waits for neither. Axis letters: B pictures, R tokens, H heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .memory import device_buffer, host_buffer
from .pack import aligned

SLOTS = 2


class KeptSlot:
    """A buffer on the device: whose turn it holds, and the events that order its use."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.buffer = device_buffer(size, device)
        self.turn: int | None = None
        self.copied = torch.cuda.Event() if device.type == "cuda" else None


class KeptOnHost:
    """Keys and values of blocks, by the blocks' ids in the order in which they were computed.

    Pinned up to so many bytes of host memory (``budget``), that of pinned weights included.
    """

    def __init__(self, device: torch.device, budget: int) -> None:
        self.device, self.budget = device, budget
        self.turns: dict[int, int] = {}
        self.host: list[Tensor] = []
        self.slots: list[KeptSlot] = []
        #: shape, dtype and bytes of keys, and of values
        self.like: list[tuple[torch.Size, torch.dtype, int]] = []
        self.lane = torch.cuda.Stream(device) if device.type == "cuda" else None
        #: bytes that were copied back
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.host)

    @property
    def size(self) -> int:
        """Bytes of its buffers on the device."""
        return sum(slot.buffer.nbytes for slot in self.slots)

    def put(self, block: int, known: tuple[Tensor, ...]) -> None:
        """Keep what a block computed, keys and values (B, R, H, d)."""
        size = sum(aligned(tensor.nbytes) for tensor in known)
        if not self.like:
            self.like = [(tensor.shape, tensor.dtype, tensor.nbytes) for tensor in known]
            self.slots = [KeptSlot(size, self.device) for _ in range(SLOTS)]
        flat = host_buffer(size, self.device, self.budget)
        for view, tensor in zip(self.views(flat), known, strict=True):
            view.copy_(tensor, non_blocking=flat.is_pinned())
        self.turns[block] = len(self.host)
        self.host.append(flat)

    def views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """Keys and values (B, R, H, d) in a buffer, (size,) uint8."""
        views, start = [], 0
        for shape, dtype, size in self.like:
            views.append(buffer[start : start + size].view(dtype).view(shape))
            start += aligned(size)
        return tuple(views)

    def get(self, block: int) -> tuple[Tensor, ...]:
        """Keys and values (B, R, H, d) of a block, on the device, ready for the current stream; the
        next one's are fetched meanwhile."""
        turn = self.turns[block]
        slot = next((slot for slot in self.slots if slot.turn == turn), None)
        if slot is None:  # the first of all, or out of turn
            slot = self.slots[0]
            self.fetch(slot, turn)
        following = (turn + 1) % len(self.host)
        other = self.slots[1] if slot is self.slots[0] else self.slots[0]
        if other.turn != following and following != turn:
            self.fetch(other, following)
        if slot.copied is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.copied)
        return self.views(slot.buffer)

    def fetch(self, slot: KeptSlot, turn: int) -> None:
        """Copy what waits for a turn into a slot, behind all that was computed so far."""
        slot.turn = turn
        self.bytes += self.host[turn].nbytes
        if self.lane is None:
            slot.buffer.copy_(self.host[turn])
            return
        assert slot.copied is not None
        # what was computed so far may read the slot, or may not have been copied to the host yet
        self.lane.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.lane):
            slot.buffer.copy_(self.host[turn], non_blocking=True)
            slot.copied.record(self.lane)

    def clear(self) -> None:
        """Forget all, when no copy is under way any more."""
        if self.lane is not None and self.host:
            torch.cuda.current_stream(self.device).synchronize()
            self.lane.synchronize()
        self.turns, self.host, self.slots, self.like = {}, [], [], []

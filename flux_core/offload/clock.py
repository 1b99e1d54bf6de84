"""When things ran, on a device that computes while the host goes on."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import torch

Mark = float | torch.cuda.Event


class Clock:
    """Marks in a device's stream of work; read them after the device was waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self.mark()

    def mark(self) -> Mark:
        """Now, in the order of the current stream."""
        if self.device.type != "cuda":
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self, mark: Mark) -> float:
        """From the clock's start to a mark."""
        if isinstance(mark, torch.cuda.Event):
            assert isinstance(self.start, torch.cuda.Event)
            return self.start.elapsed_time(mark) / 1000
        assert not isinstance(self.start, torch.cuda.Event)
        return mark - self.start


@dataclass(frozen=True)
class Ran:
    """One copy or one computation: seconds from the clock's start. ``waited`` is how long the
    computation stood still for its copy."""

    lane: str
    block: int
    start: float
    end: float
    waited: float = 0.0


class Trace:
    """What ran on the lanes of a ring."""

    def __init__(self, device: torch.device) -> None:
        self.clock = Clock(device)
        #: The last ones: a training run has no end of them.
        self.marks: deque[tuple[str, int, Mark, Mark, Mark]] = deque(maxlen=20_000)

    def add(self, lane: str, block: int, asked: Mark, start: Mark, end: Mark) -> None:
        self.marks.append((lane, block, asked, start, end))

    def read(self) -> list[Ran]:
        """Everything so far, as seconds."""
        at = self.clock.seconds
        return [
            Ran(lane, block, at(start), at(end), at(start) - at(asked))
            for lane, block, asked, start, end in self.marks
        ]

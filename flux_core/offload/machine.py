"""How fast a card copies and multiplies: told, or measured in a blink."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .memory import device_buffer


@dataclass(frozen=True)
class Machine:
    """Bytes a second over the link; FLOP a second of linear layers and of attention (three quarters
    of it unless told)."""

    link: float
    flops: float
    attention_flops: float | None = None

    @property
    def attention(self) -> float:
        return self.attention_flops or 0.75 * self.flops


_measured: dict[tuple[str, torch.dtype], Machine] = {}
LINK_BYTES = 64 * 2**20
SIDE = {"cuda": 4096, "cpu": 768}


def known_machine(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Machine | None:
    """What ``measure_machine`` found for this device before; None where nobody has asked."""
    return _measured.get((str(device), dtype))


def measure_machine(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Machine:
    """This device: the fastest of three copies and of three products, measured once."""
    key = (str(device), dtype)
    if key not in _measured:
        cuda = device.type == "cuda"
        with torch.inference_mode(False):
            host = torch.empty(LINK_BYTES, dtype=torch.uint8, pin_memory=cuda)
        there = device_buffer(LINK_BYTES, device)
        side = SIDE.get(device.type, 1024)
        a = torch.ones(side, side, dtype=dtype, device=device)

        def fastest(work: Callable[[], object]) -> float:
            times = []
            for _ in range(4):  # the first one warms up
                started = time.monotonic()
                work()
                if cuda:
                    torch.cuda.synchronize(device)
                times.append(time.monotonic() - started)
            return min(times[1:])

        link = LINK_BYTES / fastest(lambda: there.copy_(host, non_blocking=True))
        _measured[key] = Machine(link, 2.0 * side**3 / fastest(lambda: a @ a))
    return _measured[key]

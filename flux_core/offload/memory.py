"""What memory there is, and buffers in it.

Every allocation on a device that outlasts an operation is made by ``device_buffer``.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

#: Bytes of a card that are left to others: the driver, fragments between blocks, the desktop.
RESERVE = 600_000_000


def has_own_memory(device: torch.device) -> bool:
    """Whether a device has memory of its own, so that weights must be copied to it."""
    return device.type != "cpu"


def device_buffer(size: int, device: torch.device) -> Tensor:
    """Bytes on a device, (size,) uint8.

    It is an ordinary tensor also under ``inference_mode``, to outlast it.
    """
    with torch.inference_mode(False):
        return torch.empty(size, dtype=torch.uint8, device=device)


def host_buffer(size: int, device: torch.device, budget: int) -> Tensor:
    """Bytes on the host, (size,) uint8, that go to a device and back: pinned where the budget has
    room for it."""
    flat = PINS.buffer(size, budget) if device.type == "cuda" else None
    if flat is not None:
        return flat
    with torch.inference_mode(False):
        return torch.empty(size, dtype=torch.uint8)


def free_bytes(device: torch.device) -> int | None:
    """Bytes of a device that are free now; None where it has no memory of its own."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, free + cached - RESERVE)


def host_bytes() -> int:
    """Bytes of the host's memory."""
    if sys.platform != "win32":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kilobytes = ctypes.c_ulonglong()
    ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return 1024 * kilobytes.value


class Pins:
    """Host memory that is pinned, which a card copies from at full speed and without the host.

    The system never swaps it out, so it is bounded by a budget, and a refusal is told once. All
    cards copy from it (``cudaHostRegisterPortable``), and several threads may ask for some.
    """

    def __init__(self) -> None:
        self.total = 0
        self.refused = False
        #: where what is pinned begins
        self.pointers: set[int] = set()
        # finalizers may ask in the middle of a question of the same thread
        self.turn = threading.RLock()

    def buffer(self, size: int, budget: int) -> Tensor | None:
        """Pinned bytes, (size,) uint8; None beyond the budget or where it fails."""
        with self.turn:
            if self.refused or self.total + size > budget:
                return None
            with torch.inference_mode(False):
                flat = torch.empty(size, dtype=torch.uint8)
            kernel_error = self.register(flat)
            if kernel_error:
                self.refused = True
                log.warning("host memory cannot be pinned, copies will be slower: %s", kernel_error)
                return None
            self.total += size
            self.pointers.add(flat.data_ptr())
        weakref.finalize(flat.untyped_storage(), self.release, flat.data_ptr(), size).atexit = False
        return flat

    def register(self, flat: Tensor) -> str:
        """Pin the memory of a tensor (size,) where it lies; returns why it failed, or nothing.

        torch's own pinned memory is rounded up to powers of two.
        """
        if not torch.cuda.is_available():
            return "there is no CUDA device"
        try:
            code = runtime().cudaHostRegister(flat.data_ptr(), flat.nbytes, 1)
        except RuntimeError as error:
            return str(error)
        return "" if int(code) == 0 else f"cudaHostRegister gave {code}"

    def around(self, tensors: Sequence[Tensor], starts: Sequence[int], size: int) -> Tensor | None:
        """The pinned bytes (size,) uint8 in which tensors (any shapes) lie already, each at its
        start; None where they do not."""
        storage = tensors[0].untyped_storage()
        first = storage.data_ptr()
        if first not in self.pointers or storage.nbytes() != size:
            return None
        if any(t.data_ptr() != first + at for t, at in zip(tensors, starts, strict=True)):
            return None
        with torch.inference_mode(False):
            flat = torch.empty(0, dtype=torch.uint8)
            return flat.set_(storage, 0, (size,), (1,))  # pyright: ignore[reportCallIssue]

    def release(self, pointer: int, size: int) -> None:
        with self.turn:
            self.total -= size
            self.pointers.discard(pointer)
        if torch.cuda.is_available():
            runtime().cudaHostUnregister(pointer)


def runtime() -> Any:
    """CUDA's runtime, or what stands for it on other cards."""
    return torch.cuda.cudart()


PINS = Pins()

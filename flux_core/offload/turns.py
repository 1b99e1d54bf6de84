"""Threads that want the same modules take turns.

A run changes what a module holds (weights that come and go, LoRAs beside layers, how they
multiply), so that two at once would draw neither picture.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()
_guard = threading.Lock()


@contextmanager
def turn_of(*modules: nn.Module) -> Iterator[None]:
    """No other thread runs these modules inside the block; a thread may ask again."""
    with _guard:
        locks = {id(m): _locks.setdefault(m, threading.RLock()) for m in modules}
    with ExitStack() as stack:
        for number in sorted(locks):  # in one order, so that nobody waits for who waits for them
            stack.enter_context(locks[number])
        yield

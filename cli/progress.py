"""A bar on stderr: nothing where it is no terminal and all is quick, or where ``--quiet`` was
said."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WIDTH = 24


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Called with steps done and in all; a terminal's line is drawn over, elsewhere there is a line
    for every tenth."""
    started, terminal = time.monotonic(), sys.stderr.isatty()
    quiet = bool(os.environ.get("FLUXFIT_QUIET"))
    shown = -1

    def show(done: int, total: int) -> None:
        nonlocal shown
        seconds, tenth = time.monotonic() - started, done * 10 // max(1, total)
        if quiet or (not terminal and (seconds < 1 or tenth == shown)):
            return
        shown = tenth
        full = WIDTH * done // max(1, total)
        bar = "#" * full + "." * (WIDTH - full)
        line = f"{what} [{bar}] {done}/{total} {seconds:.1f} s"
        print(line, end="\r" if terminal else "\n", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if terminal and shown >= 0:
            print(file=sys.stderr)

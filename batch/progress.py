"""How far a batch is, on stderr: a line that changes in a terminal, now and then one elsewhere."""

from __future__ import annotations

import os
import sys
import time

#: Seconds between lines, in a terminal and elsewhere.
OFTEN, SELDOM = 0.2, 30.0
WIDTH = 24
#: Set in the environment, nothing is shown but what went wrong.
QUIET = "FLUXFIT_QUIET"


class BatchProgress:
    """Counts of a run's jobs, shown as they change."""

    def __init__(self) -> None:
        self.total = self.done = self.failed = 0
        self.started = self.shown = time.monotonic()
        self.live = sys.stderr.isatty()
        self.quiet = bool(os.environ.get(QUIET))

    def start(self, total: int) -> None:
        """There are so many jobs to draw."""
        self.total, self.started = total, time.monotonic()
        self.shown = self.started - SELDOM
        self.show(self.text())

    def rows(self, rows: int) -> None:
        """So many rows were read."""
        self.show(f"reading rows: {rows}")

    def update(self, done: int, failed: int) -> None:
        self.done, self.failed = done, failed
        self.show(self.text())

    def text(self) -> str:
        over = self.done + self.failed
        left = self.total - over
        full = WIDTH * over // max(1, self.total)
        bar = "#" * full + "." * (WIDTH - full)
        failed = f", {self.failed} failed" if self.failed else ""
        passed = time.monotonic() - self.started
        rest = f", {clock(passed / over * left)} to go" if over and left else ""
        done = f"{self.done:,} of {counted(self.total, 'job')} done"
        return f"pictures [{bar}] {done}{failed}, {left} left{rest}"

    def show(self, text: str) -> None:
        now = time.monotonic()
        if self.quiet or now - self.shown < (OFTEN if self.live else SELDOM):
            return
        self.shown = now
        start, end = ("\r\x1b[K", "") if self.live else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line of its own."""
        start = "\r\x1b[K" if self.live else ""
        print(f"{start}{text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live and self.total and not self.quiet:
            print(f"\r\x1b[K{self.text()}", file=sys.stderr)


def counted(number: int, what: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def are(number: int) -> str:
    """``1 is``, ``2 are``."""
    return f"{number:,} {'is' if number == 1 else 'are'}"


def of_all(done: int, number: int, what: str = "job") -> str:
    """``1 of 1 job is done``, ``1 of 2 jobs are done``."""
    return f"{done:,} of {counted(number, what)} {'is' if number == 1 else 'are'} done"


def clock(seconds: float) -> str:
    """A time in the two units that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

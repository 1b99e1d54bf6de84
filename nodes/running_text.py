"""A line on the node that runs, and now and then in the host's log."""

from __future__ import annotations

import logging
import math
import time

from . import host

log = logging.getLogger("fluxfit")

#: Seconds between lines of one stage, on the node and in the log.
ON_NODE, IN_LOG = 0.5, 60.0


class RunningText:
    """What a long run is at: a new stage is told at once, numbers of the same one now and then."""

    def __init__(self) -> None:
        self.stage = ""
        self.on_node = self.in_log = -math.inf

    def __call__(self, text: str) -> None:
        now, stage = time.monotonic(), text.split(",")[0]
        new = stage != self.stage
        self.stage = stage
        if new or now - self.on_node >= ON_NODE:
            self.on_node = now
            host.tell_page({"text": text})
        if new or now - self.in_log >= IN_LOG:
            self.in_log = now
            log.info("%s", text)

"""A line on the node that runs, and now and then in the host's log."""

from __future__ import annotations

import logging
import math
import sys
import time

log = logging.getLogger("fluxfit")

#: Seconds between lines of one stage, on the node and in the log.
ON_NODE, IN_LOG = 0.5, 60.0
#: The message to the page; ``web/fluxfit.js`` listens to it.
MESSAGE = "fluxfit.text"


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
            tell_page(text)
        if new or now - self.in_log >= IN_LOG:
            self.in_log = now
            log.info("%s", text)


def tell_page(text: str) -> None:
    """Show a line on the node that the host runs now; nothing outside of the host."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    node, client = getattr(server, "last_node_id", None), getattr(server, "client_id", None)
    if server is not None and node is not None and client is not None:
        server.send_sync(MESSAGE, {"node": node, "text": text}, client)

"""What draws in a worker on a cluster where a picture costs nothing but time.

Workers have three speeds by their numbers. A job may say that it kills its worker, or that its node
has not what it needs. Nothing of the project is imported, so that a worker starts at once.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

#: How much longer a job takes, by a worker's number.
SLOWNESS = (1, 1, 1, 2, 2, 2, 4, 4)


class SleepingDrawer:
    def __init__(self, number: int) -> None:
        self.slowness = SLOWNESS[number % len(SLOWNESS)]

    def draw(self, job: Mapping[str, Any]) -> dict[str, Any]:
        values = job["values"]
        if "1.kill" in values:
            os.kill(os.getpid(), signal.SIGKILL)
        if "1.unfit" in values:
            return {"unfit": values["1.unfit"], "kind": "files"}
        seconds = values.get("1.sleep", 0) * self.slowness
        time.sleep(seconds)
        picture = (f"{job['id']}.png", b"content", "pixels")
        return {"pictures": [picture], "error": None, "retryable": True, "seconds": seconds}


def open_drawer(task: Mapping[str, Any]) -> tuple[SleepingDrawer, dict[str, Any]]:
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    return SleepingDrawer(task["number"]), {"device": f"cards {devices!r}", "torch": "none"}

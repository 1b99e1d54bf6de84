"""The process that draws on a Ray cluster, as it is before it has FluxFit.

Ray is sent the text of this module, not its name, so that a worker needs no FluxFit to begin: it
opens the driver's own folder where its node has it, and what is installed there where not.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "fluxfit"


def open_package(folder: str, core_parent: str) -> None:
    """Make the driver's FluxFit importable, or leave it to what is installed."""
    init = Path(folder, "__init__.py")
    if PACKAGE in sys.modules or not init.is_file():
        return
    if core_parent not in sys.path:
        sys.path.insert(0, core_parent)
    spec = importlib.util.spec_from_file_location(
        PACKAGE, init, submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


class RayWorker:
    """One worker: opens the graph once, then draws a job a call."""

    def __init__(self) -> None:
        self.drawer: Any = None

    def start(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Open what the driver says; facts about this worker, ``unfit`` where it cannot draw.

        ``drawing`` of the task is a module whose ``open_drawer`` gives what draws, and more facts.
        """
        import ray  # type: ignore[import-not-found]

        about = {
            "node": ray.get_runtime_context().get_node_id(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        if not task["gpus"]:  # before torch looks for them
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        try:
            open_package(task["folder"], task["core_parent"])
            drawing = importlib.import_module(task["drawing"])
        except ImportError as fault:
            unfit = f"has no FluxFit that can be opened ({fault}): pip install 'fluxfit[ray]' there"
            return about | {"unfit": unfit, "kind": "setup"}
        self.drawer, facts = drawing.open_drawer(task)
        return about | facts

    def draw(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What became of a job, in plain values."""
        return self.drawer.draw(job)

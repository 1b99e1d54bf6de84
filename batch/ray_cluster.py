"""The Ray cluster that a batch is drawn on: one of its own on this machine, or one that is there.

A cluster of our own has what drawing needs and no more: no dashboard, a small object store (files
are written by the workers), no telemetry, and nobody's output forwarded, which costs a core that
could draw.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TextIO

from flux_core.errors import ConfigError, one_line

log = logging.getLogger("fluxfit.ray")

#: What ``--ray`` without an address means.
LOCAL = "local"
#: Seconds that a head node may take to answer.
KNOCK_SECONDS = 10.0
#: Bytes of a local object store: pictures pass through it only where no folder is shared.
STORE_BYTES = 128 * 2**20
#: Settings of a cluster that lives as long as one command on one machine: no telemetry, no metrics,
#: no history of tasks. Ray reads them when it is imported.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "600000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
}


@dataclass(frozen=True)
class Placement:
    """How many workers there are, and what each of them has.

    Attributes:
        cpus, gpus: what Ray reserves for a worker.
        threads: threads that a worker computes with.
    """

    workers: int
    cpus: float
    gpus: float
    threads: int


def import_ray() -> ModuleType:
    """Ray; raises ``ConfigError`` where it is not installed."""
    try:
        import ray  # type: ignore[import-not-found]
    except ImportError as fault:
        raise ConfigError("--ray needs Ray: pip install 'fluxfit[ray]'") from fault
    return ray


def quiet(address: str) -> None:
    """Set what a cluster of our own is to leave out, before Ray is imported."""
    if address == LOCAL:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)


class WithoutRay(io.TextIOBase):
    """Stdout without what Ray's daemons print there: it is the command's own, and a worker that
    dies is told in a line."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.rays = out, False

    def write(self, text: str) -> int:
        self.rays = "(raylet" in text or (self.rays and text == "\n")
        if self.rays:
            log.debug("%s", text.rstrip())
        else:
            self.out.write(text)
        return len(text)

    def flush(self) -> None:
        self.out.flush()


@contextmanager
def connected(address: str, workers: int | None) -> Iterator[ModuleType]:
    """Ray with a cluster of its own (``LOCAL``), or with the one at an address, until the end.

    Raises ``ConfigError`` where there is no Ray, or no cluster answers there.
    """
    quiet(address)
    ray = import_ray()
    with redirect_stdout(WithoutRay(sys.stdout)):
        try:
            knock(address)
            ray.init(**options(address, workers))
        except (OSError, RuntimeError, ValueError) as fault:
            problem = one_line(str(fault))
            raise ConfigError(f"--ray {address}: no cluster there ({problem})") from fault
        try:
            yield ray
        finally:
            ray.shutdown()


def knock(address: str) -> None:
    """Raise ``OSError`` where nobody listens at ``HOST:PORT``; Ray itself asks for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_SECONDS).close()


def options(address: str, workers: int | None) -> dict[str, Any]:
    """What ``ray.init`` is asked for."""
    common = {
        "address": address,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "namespace": "fluxfit",
    }
    if address != LOCAL:
        return common
    return common | {
        "include_dashboard": False,
        "num_cpus": max(os.cpu_count() or 1, workers or 1),
        "object_store_memory": STORE_BYTES,
    }


def live_nodes() -> list[dict[str, Any]]:
    """Nodes of the cluster that answer."""
    return [node for node in import_ray().nodes() if node["Alive"]]


def place(
    nodes: Sequence[Mapping[str, float]], workers: int | None, gpus: float | None, cores: int
) -> Placement:
    """How to spread workers over nodes.

    Without a number there is a worker for every card, or, where there are none, one a node, and
    each has its share of the node's cores.

    Args:
        nodes: what each node has to give: ``{"CPU": 16, "GPU": 2}``.
        gpus: cards a worker, a part of one where they share it; None for one where there are cards.
        cores: that a node has really, where it is this machine's own cluster; 0 for what it says.

    Raises ``ConfigError`` where no node has so much.
    """
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    if gpus:
        fits = [int(node.get("GPU", 0) / gpus + 1e-6) for node in nodes]
        if not any(fits):
            most = max((node.get("GPU", 0) for node in nodes), default=0)
            raise ConfigError(f"--gpus-per-worker {gpus:g}: no node has so many, at most {most:g}")
        shares = [node.get("CPU", 0) // fit for node, fit in zip(nodes, fits, strict=True) if fit]
        return Placement(workers or sum(fits), 1, gpus, max(1, int(min(shares))))
    sizes = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    if not sizes:
        raise ConfigError("--ray: no node of the cluster has a core to give")
    workers = workers or len(sizes)
    if cores:
        return Placement(workers, 1, 0, max(1, cores // workers))
    threads = max(
        (n for n in range(1, max(sizes) + 1) if sum(size // n for size in sizes) >= workers),
        default=1,
    )
    return Placement(workers, threads, 0, threads)

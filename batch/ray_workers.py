"""Workers on a Ray cluster: each an actor of its own, with one job in hand.

Actors and not Ray Data: that hands every actor two blocks of rows, ends the whole data set with a
row that kills its actor too often, and cannot say which row that was; it needs a core of its own to
read the table with, and pandas. Here Ray places and starts workers, tells when one dies, and
carries jobs and results; which worker draws what is ``dispatch``'s, what is done the driver's.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from flux_core.errors import ConfigError, one_line
from flux_core.files import write_text

from ..nodes.headless import from_api
from . import ray_actor
from .dispatch import Event, Finished, Lost, Ready, dispatch
from .draw import Drawn
from .jobs import Job
from .node_files import NodeFiles
from .ray_cluster import LOCAL, Placement, connected, live_nodes, place
from .ray_drawer import DISK, DRAWING, FILES, TOKEN, task_for
from .workers import Result

#: Times that a worker may die before it is ready, until nobody starts it again.
MOST_STARTS = 3
#: Seconds in which nobody draws after which the reason is told.
PATIENCE = 30.0
#: Letters of a reason.
LONGEST_REASON = 300

Say = Callable[[str], None]


@dataclass
class Slot:
    """One worker, whichever process it is at the moment.

    Attributes:
        actor: Ray's handle; None where it will not be started again.
        node: id of the node that it runs on, once it is ready.
        name: what the manifest calls it.
        failed: starts without being ready since it was last.
    """

    number: int
    actor: Any = None
    node: str = ""
    name: str = ""
    failed: int = 0


@dataclass
class RayPool:
    """Workers on a cluster that is connected.

    Attributes:
        task: what each is started with.
        calls: what workers have not answered yet: their number, and the job if it is one.
        settled: what happened without a worker.
        unfit: nodes that cannot draw, by id, and why.
        makes: what workers compute with, and the first of each.
        fault: what the batch ends with where no worker is left.
    """

    ray: ModuleType
    placement: Placement
    task: Mapping[str, Any]
    files: NodeFiles
    say: Say
    slots: dict[int, Slot] = field(default_factory=dict)
    calls: dict[Any, tuple[int, Job | None]] = field(default_factory=dict)
    settled: deque[Event] = field(default_factory=deque)
    unfit: dict[str, str] = field(default_factory=dict)
    makes: dict[str, str] = field(default_factory=dict)
    fault: Exception | None = None

    def start(self) -> None:
        """Have Ray start all workers."""
        self.ray.cloudpickle.register_pickle_by_value(ray_actor)
        for number in range(self.placement.workers):
            self.slots[number] = Slot(number)
            self.start_worker(self.slots[number])

    def start_worker(self, slot: Slot) -> None:
        """Have Ray place a worker on any node that is not known to be unfit."""
        options: dict[str, Any] = {
            "num_cpus": self.placement.cpus,
            "num_gpus": self.placement.gpus,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
        }
        if self.unfit:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self.unfit)})"}
        task = dict(self.task) | {"number": slot.number}
        slot.actor = self.ray.remote(ray_actor.RayWorker).options(**options).remote()
        self.calls[slot.actor.start.remote(task)] = (slot.number, None)

    def send(self, worker: int, job: Job) -> None:
        try:
            files = list(self.files.needed(job))
        except (ValueError, OSError) as fault:  # it was here when the table was read
            self.settled.append(Finished(worker, Result(job, error=one_line(str(fault)))))
            return
        sent = {"id": job.id, "line": job.line, "values": job.values, "files": files}
        self.calls[self.slots[worker].actor.draw.remote(sent)] = (worker, job)

    def wait(self) -> Event:
        while True:
            if self.settled:
                return self.settled.popleft()
            if not self.calls:
                raise self.fault or ConfigError("--ray: no worker is left")
            drawing = any(job is not None for _, job in self.calls.values())
            timeout = None if drawing else PATIENCE
            answered, _ = self.ray.wait(list(self.calls), num_returns=1, timeout=timeout)
            if not answered:
                self.say(f"waiting for Ray to start {self.wanted()}")
                continue
            event = self.event(answered[0])
            if event is not None:
                return event

    def wanted(self) -> str:
        """What Ray was asked for, in words."""
        place = self.placement
        gpus = f" and {place.gpus:g} GPU" if place.gpus else ""
        return f"{place.workers} workers of {place.cpus:g} CPU{gpus} each"

    def event(self, call: Any) -> Event | None:
        """What an answer means; None where only a worker's start failed."""
        number, job = self.calls.pop(call)
        slot = self.slots[number]
        try:
            answer = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as fault:
            error = one_line(f"{type(fault.cause).__name__}: {fault.cause}")[:LONGEST_REASON]
            if job is None:  # which node it was on, nobody knows
                return self.lost(slot, None, error)
            return Finished(number, Result(job, error=error, worker=slot.name))
        except self.ray.exceptions.RayError as fault:
            return self.lost(slot, job, reason_of(fault))
        if "unfit" in answer:
            return self.refused(slot, job, answer)
        if job is None:
            return self.ready(slot, answer)
        return Finished(number, result_of(job, answer, slot.name))

    def ready(self, slot: Slot, about: Mapping[str, Any]) -> Event:
        """A worker can draw."""
        slot.node, slot.failed = about["node"], 0
        slot.name = f"{about['host']}/{slot.number}"
        make = f"torch {about['torch']} on {about['device']}"
        if make not in self.makes:
            self.makes[make] = slot.name
            if len(self.makes) == 2:
                makes = " and ".join(f"{make} ({name})" for make, name in self.makes.items())
                self.say(f"workers differ, so that bits of their pictures may: {makes}")
        return Ready(slot.number)

    def lost(self, slot: Slot, job: Job | None, reason: str) -> Event | None:
        """A worker died: start another in its place."""
        self.end(slot)
        if job is None:
            slot.failed += 1
        what = f"worker {slot.name or slot.number} died ({reason})"
        if slot.failed < MOST_STARTS:
            self.start_worker(slot)
            self.say(f"{what}: another one is started")
        else:
            self.fault = self.fault or ConfigError(f"{what}, {MOST_STARTS} times while it started")
            self.say(f"{what}: it is not started again")
        return None if job is None else Lost(slot.number, reason)

    def refused(self, slot: Slot, job: Job | None, answer: Mapping[str, Any]) -> Event | None:
        """A node cannot draw: tell once, and use others."""
        self.end(slot)
        node = answer.get("node") or slot.node
        host = answer.get("host") or slot.name.rpartition("/")[0]
        fault = f"node {host}: {answer['unfit']}"
        if node not in self.unfit:
            self.unfit[node] = fault
            self.say(f"{fault}: nothing is drawn there")
        kinds = {FILES: FileNotFoundError, DISK: OSError}
        self.fault = self.fault or kinds.get(answer.get("kind", ""), ConfigError)(fault)
        if any(self.has_room(other) for other in live_nodes()):
            self.start_worker(slot)
        return None if job is None else Lost(slot.number, fault, guilty=False)

    def has_room(self, node: Mapping[str, Any]) -> bool:
        """Whether a worker could ever be placed on a node."""
        has, place = node["Resources"], self.placement
        room = has.get("CPU", 0) >= place.cpus and has.get("GPU", 0) >= place.gpus
        return room and node["NodeID"] not in self.unfit

    def end(self, slot: Slot) -> None:
        """Have Ray end a worker, whatever it does."""
        if slot.actor is not None:
            self.ray.kill(slot.actor)
            slot.actor = None

    def close(self) -> None:
        for slot in self.slots.values():
            self.end(slot)


def result_of(job: Job, answer: Mapping[str, Any], worker: str) -> Result:
    """A worker's answer as a result."""
    drawn = [Drawn(*picture) for picture in answer["pictures"]]
    return Result(job, drawn, answer["error"], answer["retryable"], answer["seconds"], worker)


def reason_of(fault: Exception) -> str:
    """Why a worker died, without Ray's advice."""
    text = one_line(str(fault))
    for start, end in (("Worker exit detail: ", ". Some common"), ("memory", None)):
        if start in text:
            text = text[text.index(start) + (len(start) if end else 0) :].split(end or "\n")[0]
            break
    return text[:LONGEST_REASON]


@dataclass
class RayWorkers:
    """Everybody who draws, on a cluster.

    Args:
        graph: the workflow as an API prompt.
        out: the batch's folder; workers that see it write their pictures there.
        private: leave prompts and paths out of the receipts.
        address: of a cluster that is there; ``LOCAL`` to start one on this machine.
        workers: how many; None for one a card, or where there are none one a node.
        gpus_per_worker: cards, or a part of one; None for one where there are cards.
        drawing: the module that opens what draws (see ``ray_actor``).
        say: takes lines for the person.
    """

    graph: Mapping[str, Any]
    out: Path
    private: bool = False
    address: str = LOCAL
    workers: int | None = None
    gpus_per_worker: float | None = None
    drawing: str = DRAWING
    say: Say = lambda text: print(text, file=sys.stderr)

    def results(self, jobs: Iterator[Job]) -> Generator[Result, None, None]:
        """Results as they come (see ``Workers``).

        Raises ``ConfigError`` where there is no Ray, no cluster or no room on it, and what is wrong
        with the nodes where none of them can draw.
        """
        with connected(self.address, self.workers) as ray, token_in(self.out) as token:
            pool = self.pool(ray, token)
            try:
                pool.start()
                yield from dispatch(pool, jobs)
            finally:
                pool.close()

    def pool(self, ray: ModuleType, token: str) -> RayPool:
        """Workers as the cluster has room for them."""
        resources = [node["Resources"] for node in live_nodes()]
        cores = (os.cpu_count() or 1) if self.address == LOCAL else 0
        placement = place(resources, self.workers, self.gpus_per_worker, cores)
        threads, private = placement.threads, self.private
        if cores and os.environ.get("OMP_NUM_THREADS", "").isdigit():
            threads = min(threads, int(os.environ["OMP_NUM_THREADS"]) or threads)
        task = task_for(self.graph, self.out, private=private, threads=threads, token=token)
        task |= {"drawing": self.drawing, "gpus": placement.gpus}
        return RayPool(ray, placement, task, NodeFiles(from_api(self.graph)), self.say)


@contextmanager
def token_in(folder: Path) -> Iterator[str]:
    """A file by which workers know that they see this very folder."""
    token = secrets.token_hex(16)
    write_text(folder / TOKEN, token)
    try:
        yield token
    finally:
        (folder / TOKEN).unlink(missing_ok=True)

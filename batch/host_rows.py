"""Rows of a table as the host draws them: which come next, and what became of each.

Folder, manifest, names and order are those of ``fluxfit batch``, so that what one began the other
goes on with. The folder is locked while it is read and while something is noted, and not while a
picture is drawn: the host may be stopped at any node.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from flux_core.errors import FolderBusyError
from flux_core.files import writing
from flux_core.receipts import KEY, Receipt, pixels_hash, png_bytes, saved_pixels
from flux_core.record import Note

from ..nodes.running_text import RunningText
from .adopt import read_picture
from .draw import picture_name, picture_path
from .folder import locked, look_at_folder
from .jobs import Job
from .manifest import Manifest
from .plan import shown_values
from .progress import BatchProgress
from .queue import JobQueue
from .row_graph import Prompt
from .run import Batch, BatchSettings, Driver
from .summary import Summary
from .workers import in_words

log = logging.getLogger("fluxfit")

#: How the manifest calls who drew.
WORKER = "ComfyUI"
#: What copies noted when they ran last: the host does not run again what did not change.
NOTES: dict[str, list[Note]] = {}
#: How often copies failed.
FAULTS: dict[str, int] = {}
#: Copies of which either is known.
REMEMBERED = 2000
#: Sets of LoRAs that the rows of one queue have: the host keeps what each of them opened.
MOST_MODELS = 4


class NodeProgress(BatchProgress):
    """Tells on the node how far reading is, and keeps what there is to say of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.running = RunningText()

    def show(self, text: str) -> None:
        self.running(text)

    def say(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        pass


@dataclass
class Rows:
    """The rows that one queue draws.

    Attributes:
        tries: how often each was tried before, by job.
        left: rows that come after these.
        given_up: rows that failed too often to be tried again.
        problems: what is wrong with rows of the table.
    """

    jobs: list[Job]
    tries: Mapping[str, int]
    values: Mapping[str, dict[str, Any]]  # by columns, as the manifest has them
    left: int = 0
    given_up: int = 0
    done: int = 0
    problems: Sequence[str] = ()


def remember(known: dict[str, Any], copy: str, what: Any) -> None:
    """Keep something of a copy, and forget the oldest."""
    known.pop(copy, None)
    known[copy] = what
    while len(known) > REMEMBERED:
        del known[next(iter(known))]


@contextmanager
def planned(batch: Batch) -> Iterator[tuple[Driver, NodeProgress]]:
    """A batch whose table is read and whose folder was looked through, locked meanwhile."""
    progress = NodeProgress()
    look_at_folder(batch.out, progress.say)
    with locked(batch.out), closing(Manifest(batch.out)) as manifest, closing(JobQueue()) as queue:
        driver = Driver(batch, BatchSettings(), queue, manifest, progress)
        driver.plan()
        yield driver, progress


def next_rows(batch: Batch, most: int, retries: int) -> Rows:
    """The next rows without a picture, of one set of weights; those that failed come last.

    Args:
        most: rows of one queue.
        retries: how often a row that failed is tried again.
    """
    with planned(batch) as (driver, progress):
        tries = failed_tries(driver.manifest)
        fresh, again, waiting, given_up = [], [], 0, 0
        for job in driver.queue.pending():
            if tries.get(job.id, 0) > retries:
                given_up += 1
                continue
            waiting += 1
            kind = again if job.id in tries else fresh
            if len(kind) < most:
                kind.append(job)
        chosen = chunk(driver, [*fresh, *again][:most])
        columns = list(driver.columns)
        values = {job.id: shown_values(columns, job.values, False) for job in chosen}
        left, done = waiting - len(chosen), driver.summary.done
        return Rows(chosen, tries, values, left, given_up, done, progress.lines)


def with_row(graph: Prompt, values: Mapping[str, Any]) -> Prompt:
    """A graph with a row's values, by ``NODE.INPUT``."""
    changed = dict(graph)
    for target, value in values.items():
        key, _, name = target.rpartition(".")
        changed[key] = changed[key] | {"inputs": changed[key]["inputs"] | {name: value}}
    return changed


def failed_tries(manifest: Manifest) -> dict[str, int]:
    """How often jobs failed, by the manifest's last word on each."""
    tries: dict[str, int] = {}
    for _, entry in manifest.entries():
        if "error" in entry:
            tries[entry["job"]] = int(entry.get("tries", 1))
        else:
            tries.pop(entry["job"], None)
    return tries


def chunk(driver: Driver, jobs: Sequence[Job]) -> list[Job]:
    """The first of some jobs, for as long as they have the same weights, and few sets of LoRAs."""
    chosen: list[Job] = []
    weights: set[bytes] = set()
    models: set[bytes] = set()
    for job in jobs:
        of_weights, of_models, *_ = driver.columns.groups(job.values)
        weights.add(of_weights)
        models.add(of_models)
        if len(weights) > 1 or len(models) > MOST_MODELS:
            break
        chosen.append(job)
    return chosen


def finish(batch: Batch) -> tuple[Summary, list[str]]:
    """Write the results and the sheet; counts, and what there is to say."""
    with planned(batch) as (driver, progress):
        driver.write_results()
        driver.write_sheet()
        return driver.summary, progress.lines


@dataclass
class Run:
    """What one queue draws, from its planning to its end."""

    batch: Batch
    #: The graph that draws, as the host has it.
    graph: Prompt
    rows: Rows
    #: Rows that one run draws at most.
    most: int
    #: The copies that each job needs, by the nodes that they are of.
    copies: dict[str, dict[str, str]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def job(self, job_id: str) -> Job:
        return next(job for job in self.rows.jobs if job.id == job_id)

    def tries(self, job: Job) -> int:
        return self.rows.tries.get(job.id, 0) + 1

    def about(self, job: Job) -> dict[str, Any]:
        return {"job": job.id, "line": job.line, "values": self.rows.values[job.id]}

    def note_ran(self, copy: str, notes: list[Note], fault: Exception | None) -> None:
        """A copy of a node ran, or failed, and with it the rows that need it."""
        remember(NOTES, copy, notes)
        if fault is not None:
            remember(FAULTS, copy, FAULTS.get(copy, 0) + 1)
            self.faults[copy] = in_words(fault)

    def notes_of(self, job_id: str, live: Any) -> list[Note]:
        """What was noted for a row, by the numbers of the graph's nodes.

        Args:
            live: the receipt of the prompt that runs, which has the nodes that are no copies.
        """
        copies = self.copies[job_id]
        others: Mapping[str, list[Note]] = getattr(live, "notes", {})
        return [
            {"node": node} | entry
            for node in self.graph
            for entry in (NOTES.get(copies[node], ()) if node in copies else others.get(node, ()))
        ]

    def progress(self, number: int) -> str:
        """How far the run is, for the node."""
        rows = self.rows
        done = rows.done + len(self.pictures)
        failed = f", {len(self.faults)} faults" if self.faults else ""
        rest = len(rows.jobs) - number + rows.left
        return f"row {number} of {len(rows.jobs)}, {done} done{failed}, {rest} to go"

    def drawn(self) -> list[Tensor]:
        """The pictures of this run in the order of its rows, each (1, H, W, 3)."""
        images = (self.pictures[job.id] for job in self.rows.jobs if job.id in self.pictures)
        return [image[None] for batch in images for image in batch]

    def save(self, job_id: str, images: Tensor, node: str, live: Any) -> list[str]:
        """Write a job's pictures (B, H, W, 3) and note that it is done; their files below the
        batch's folder.

        Args:
            node: the number of the node that saves, as receipts name it.
            live: as ``notes_of`` has it.
        """
        job = self.job(job_id)
        texts = {"prompt": json.dumps(with_row(self.graph, job.values))}
        about_job = {"id": job.id, "values": job.values}
        receipt = Receipt.of_notes(self.notes_of(job_id, live), job=about_job)
        files, hashes, new = [], [], False
        for index, image in enumerate(images):
            pixels = saved_pixels(image)
            hashes.append(pixels_hash(pixels))
            mine = receipt.of_picture(hashes[-1], node, index, len(images))
            files.append(picture_path(picture_name(job.id, node, index, len(images))))
            # a command may have drawn it meanwhile: the folder is nobody's between two saves
            if read_picture(self.batch.out / files[-1], job.id) is None:
                self.write(files[-1], pixels, {**texts, KEY: str(mine)})
                new = True
        if new:
            self.note_done(job, files, hashes)
        self.pictures[job.id] = images
        return files

    def note_done(self, job: Job, files: list[str], hashes: list[str]) -> None:
        """Note a job whose pictures are on disk. Where a command has the folder now nothing is
        noted: whoever reads the folder next adopts them."""
        now = time.monotonic()
        about = {"files": files, "pixels": hashes, "seconds": round(now - self.since, 3)}
        self.since = now
        about |= {"worker": WORKER, "tries": self.tries(job)}
        self.add_entries([self.about(job) | about])

    def add_entries(self, entries: Sequence[dict[str, Any]]) -> None:
        """Add lines to the manifest; none where a command has the folder now."""
        try:
            with locked(self.batch.out), closing(Manifest(self.batch.out)) as manifest:
                for entry in entries:
                    manifest.add(entry)
        except FolderBusyError as error:
            log.warning("%s", error)

    def write(self, file: str, pixels: np.ndarray, texts: Mapping[str, str]) -> None:
        path: Path = self.batch.out / file
        with writing(path) as partial:
            partial.write_bytes(png_bytes(pixels, texts))

    def note_failed(self) -> dict[str, str]:
        """Note the rows that failed; what is wrong with them by job."""
        failed = {}
        for job in self.rows.jobs:
            copies = self.copies[job.id].values()
            words = next((self.faults[copy] for copy in copies if copy in self.faults), "")
            if words and job.id not in self.pictures:
                failed[job.id] = words
        if failed:
            self.add_entries(
                [
                    self.about(job) | {"error": failed[job.id], "tries": self.tries(job)}
                    for job in self.rows.jobs
                    if job.id in failed
                ]
            )
        return failed

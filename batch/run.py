"""The driver: hands out jobs, writes their pictures, and notes in the manifest what is done.

A picture is written whole, then its job's line is: whatever ends the run between the two, the next
run finds the picture and notes it. One driver has a folder at a time.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_core.files import reason, writing

from ..nodes.headless import Graph
from ..nodes.headless.signature import Mark, by_content
from . import results
from .adopt import looks_whole, remove_unfinished, whole_pictures, written_jobs
from .columns import Columns
from .draw import Drawn, picture_path
from .folder import locked, look_at_folder, open_manifest
from .grid import Grid
from .jobs import Job, JobMaker
from .manifest import Manifest
from .plan import NothingToDrawError, fill_queue, shown_values
from .progress import BatchProgress, of_all
from .queue import JobQueue
from .sheet import GRID, INDEX
from .summary import MOST_ERRORS, Summary
from .table import Table
from .workers import LocalWorker, Result, Workers

__all__ = ["Batch", "BatchSettings", "LocalWorker", "Result", "Summary", "Workers", "run_batch"]


@dataclass(frozen=True)
class BatchSettings:
    """How to go about it.

    Attributes:
        retries: more tries of a job whose failure another try might not have.
        fail_fast: end with the first job that failed.
        limit: jobs that are drawn at most; None for all.
        private: keep texts out of the manifest and the results, as the drawers do of the pictures.
        sheet: write a page and a grid picture of the results.
    """

    retries: int = 0
    fail_fast: bool = False
    limit: int | None = None
    private: bool = False
    sheet: bool = True


@dataclass
class Batch:
    """What is to be drawn, and where.

    Attributes:
        mark: what stands for a file in a job's id (see ``JobMaker``).
    """

    graph: Graph
    table: Table | None
    grid: Grid
    mapping: Mapping[str, str]
    out: Path
    mark: Mark = by_content


class JobFeed(Iterator[Job]):
    """Jobs for workers, those that come back first; may go on after it had none."""

    def __init__(self, pending: Iterator[Job], limit: int | None) -> None:
        self.pending, self.left = pending, limit
        self.back: deque[Job] = deque()
        #: Tries of jobs that somebody has.
        self.tries: dict[str, int] = {}

    def __next__(self) -> Job:
        if self.back:
            job = self.back.popleft()
        elif self.left == 0:
            raise StopIteration
        else:
            job = next(self.pending)
            self.left = None if self.left is None else self.left - 1
        self.tries[job.id] = self.tries.get(job.id, 0) + 1
        return job


class Driver:
    """One run over one folder, which is locked meanwhile."""

    def __init__(
        self,
        batch: Batch,
        settings: BatchSettings,
        queue: JobQueue,
        manifest: Manifest,
        progress: BatchProgress,
    ) -> None:
        self.batch, self.settings, self.queue = batch, settings, queue
        self.manifest, self.progress = manifest, progress
        self.columns = Columns(batch.graph, batch.mapping)
        self.maker = JobMaker(batch.graph, self.columns, batch.mark)
        self.summary = Summary(str(batch.out))

    def run(self, workers: Callable[[], Workers]) -> None:
        """Plan, draw what is left, and write what became of it."""
        pending = self.plan()
        if pending:
            self.draw(workers, pending)
        self.write_results()
        if self.settings.sheet:
            self.write_sheet()
        elif (self.batch.out / INDEX).exists():
            self.progress.say(f"{self.batch.out / INDEX} and {GRID} are those of an earlier run")

    def plan(self) -> int:
        """Fill the queue and find what is done; how many jobs are to be drawn."""
        batch, queue, summary = self.batch, self.queue, self.summary
        for offset, entry in self.manifest.entries():
            names = entry.get("files")
            done = names is not None and all(looks_whole(batch.out / name) for name in names)
            if done or names is None:
                queue.note(entry["job"], offset, done)
        say, rows = self.progress.say, self.progress.rows
        try:
            fill_queue(queue, self.maker, batch.table, batch.grid, say, rows)
        except NothingToDrawError:
            self.write_results()
            raise
        for line, problem in queue.broken(MOST_ERRORS):
            summary.add_error(line, problem)
        self.adopt()
        pending = queue.order()
        summary.rows, summary.broken = queue.rows, queue.broken_rows
        summary.duplicates, summary.jobs, summary.earlier = (
            queue.duplicates,
            queue.jobs,
            queue.earlier,
        )
        summary.done = summary.jobs - pending
        return pending

    def adopt(self) -> None:
        """Note pictures that are whole and of jobs that are not done."""
        remove_unfinished(self.batch.out)
        for job_id, files in written_jobs(self.batch.out / "pictures"):
            job = self.queue.job(job_id)
            noted = self.queue.result(job_id)
            if job is None or (noted is not None and noted[1]):
                continue
            pictures = whole_pictures(job_id, files, self.maker.saving)
            if pictures:
                drawn = [Drawn(p.name, None, p.pixels) for p in pictures]
                self.note_done(Result(job, drawn), 0, adopted=True)
                self.summary.adopted += 1

    def draw(self, workers: Callable[[], Workers], pending: int) -> None:
        """Draw what is left, until all is done or a failure ends it."""
        limit = pending if self.settings.limit is None else min(self.settings.limit, pending)
        self.summary.left = pending
        if not limit:
            return
        self.progress.start(limit)
        feed = JobFeed(self.queue.pending(), limit)
        with closing(workers().results(feed)) as results_as_they_come:
            for result in results_as_they_come:
                if not self.take_result(result, feed):
                    break

    def take_result(self, result: Result, feed: JobFeed) -> bool:
        """Take a result; whether to go on."""
        job = result.job
        tries = feed.tries.get(job.id, 1)
        if result.error is None:
            for picture in result.drawn:
                self.write(picture)
            self.note_done(result, tries)
            self.summary.drawn += 1
            self.summary.done += 1
            self.summary.left -= 1
        elif result.retryable and tries <= self.settings.retries:
            feed.back.append(job)
            return True
        else:
            self.note_failed(result, tries)
            self.summary.failed += 1
            self.summary.left -= 1
        feed.tries.pop(job.id, None)
        self.progress.update(self.summary.drawn, self.summary.failed)
        return result.error is None or not self.settings.fail_fast

    def write(self, picture: Drawn) -> None:
        if picture.content is not None:
            with writing(self.batch.out / picture_path(picture.name)) as partial:
                partial.write_bytes(picture.content)

    def note_done(self, result: Result, tries: int, adopted: bool = False) -> None:
        entry = self.about(result.job) | {
            "files": [picture_path(picture.name) for picture in result.drawn],
            "pixels": [picture.pixels for picture in result.drawn],
            "seconds": None if adopted else round(result.seconds, 3),
            "worker": result.worker,
            "tries": tries,
        }
        offset = self.manifest.add(entry | ({"adopted": True} if adopted else {}))
        self.queue.note(result.job.id, offset, True)

    def note_failed(self, result: Result, tries: int) -> None:
        error = results.NOT_SAID if self.settings.private else result.error
        entry = self.about(result.job) | {"error": error, "tries": tries}
        self.queue.note(result.job.id, self.manifest.add(entry), False)
        self.summary.add_error(result.job.line, str(result.error))
        self.progress.say(f"line {result.job.line}: {result.error}")

    def about(self, job: Job) -> dict[str, Any]:
        values = shown_values(list(self.columns), job.values, self.settings.private)
        return {"job": job.id, "line": job.line, "values": values}

    def write_results(self) -> None:
        columns = [c for c in self.columns if not (self.settings.private and c.is_text)]
        path = self.batch.out / results.NAME
        rows = results.result_rows(self.queue, self.manifest, columns, self.settings.private)
        results.write_results(path, [c.name for c in columns], rows)
        self.summary.results = str(path)

    def write_sheet(self) -> None:
        """Write the page of results; a batch does not fail for it."""
        from .sheet import MOST_JOBS, write_sheet

        jobs = results.sheet_jobs(
            self.queue, self.manifest, list(self.columns), self.settings.private, MOST_JOBS
        )
        try:
            sheet = write_sheet(self.batch.out, results=jobs)
        except (OSError, ValueError) as fault:
            self.progress.say(f"no sheet of the results: {reason(fault)}")
            return
        self.summary.sheet = str(sheet.page)
        if sheet.left_out:
            self.progress.say(f"{sheet.page}: {sheet.left_out}")


def run_batch(
    batch: Batch,
    settings: BatchSettings,
    workers: Callable[[], Workers],
    progress: BatchProgress | None = None,
) -> Summary:
    """Draw what is missing of a batch.

    Args:
        workers: makes those who draw, once there is something to draw.

    Raises:
        ConfigError: the table, the folder or the manifest cannot be used, or another driver has it.
        OSError: nothing can be written any more; what is done stays done.
    """
    progress = progress or BatchProgress()
    look_at_folder(batch.out, progress.say)
    with (
        locked(batch.out),
        closing(open_manifest(batch.out, settings.private)) as manifest,
        closing(JobQueue()) as queue,
        closing(progress),
    ):
        driver = Driver(batch, settings, queue, manifest, progress)
        summary, started = driver.summary, time.monotonic()
        try:
            driver.run(workers)
        except KeyboardInterrupt:
            progress.say(f"{so_far(summary)}; the same command goes on from there")
            raise
        except sqlite3.Error as fault:
            raise OSError(
                f"the scratch file of all rows: {fault}: {so_far(summary)}; SQLITE_TMPDIR names a "
                "folder with more room"
            ) from fault
        except OSError as fault:
            raise OSError(
                f"{batch.out}: {reason(fault)}: {so_far(summary)}; the same command goes on"
            ) from fault
        summary.seconds = round(time.monotonic() - started, 3)
    return summary


def so_far(summary: Summary) -> str:
    if not summary.jobs:
        return "nothing was drawn"
    return of_all(summary.done, summary.jobs)

"""What became of the table's rows, in the table's order, as ``results.csv``."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flux_core.files import writing

from .columns import Column
from .manifest import Manifest
from .plan import shown_values
from .queue import JobQueue
from .sheet_jobs import JobResult, Results

NAME = "results.csv"
#: What stands for a reason that may have a text of the row in it.
NOT_SAID = "cannot be drawn; the command says why"
OWN = ("file", "pixels", "seconds", "error", "job")


@dataclass(frozen=True)
class ResultRow:
    """One row of the table.

    Attributes:
        values: by the names of columns; what the row leaves as the workflow has it is not there. Of
            a row that cannot be drawn its cells as they are.
        files: paths of its pictures below the batch's folder.
        pixels: SHA-256 of the pictures' RGB rows.
        seconds: that its pictures took; None where nobody noted it.
        error: why there is no picture; empty where there is one, or where it is still to be drawn.
    """

    line: int
    job: str | None
    values: dict[str, Any]
    files: list[str] = field(default_factory=list)
    pixels: list[str] = field(default_factory=list)
    seconds: float | None = None
    error: str = ""
    worker: str = ""
    tries: int = 1

    def as_job(self) -> JobResult:
        """As the sheet takes it."""
        return JobResult(
            self.job or "",
            self.line,
            self.values,
            tuple(self.files),
            self.seconds,
            self.worker,
            self.tries,
            self.error,
        )


def result_rows(
    queue: JobQueue, manifest: Manifest, columns: Sequence[Column], private: bool
) -> Iterator[ResultRow]:
    """Every row of the table, streamed."""
    for row in queue.all_rows():
        if row.id is None:
            # a text may stand in any column of a broken row
            problem, cells = (NOT_SAID, {}) if private else (row.problem or "", row.values)
            yield ResultRow(row.line, None, cells, error=problem)
            continue
        values = shown_values(columns, row.values, private)
        noted = queue.result(row.id)
        entry = {} if noted is None else manifest.at(noted[0])
        yield ResultRow(
            row.line,
            row.id,
            values,
            entry.get("files", []),
            entry.get("pixels", []),
            entry.get("seconds"),
            entry.get("error", ""),
            entry.get("worker", ""),
            entry.get("tries", 1),
        )


def sheet_jobs(
    queue: JobQueue, manifest: Manifest, columns: Sequence[Column], private: bool, most: int
) -> Results:
    """The jobs of the table's rows that were tried, each once, the first ``most`` of them."""
    jobs: dict[str, JobResult] = {}
    for row in result_rows(queue, manifest, columns, private):
        if row.job is not None and (row.files or row.error):
            jobs.setdefault(row.job, row.as_job())
        if len(jobs) == most:
            break
    return Results(list(jobs.values()), *queue.outcome(), queue.broken_rows)


def write_results(path: Path, columns: Sequence[str], rows: Iterable[ResultRow]) -> None:
    """A table of one line a picture, whole or not at all; a row without one has a line too."""
    with (
        writing(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["line", *columns, *OWN])
        for row in rows:
            values = [row.values.get(name, "") for name in columns]
            seconds = "" if row.seconds is None else row.seconds
            about = [seconds, row.error, row.job or ""]
            pictures = list(zip(row.files, row.pixels, strict=True)) or [("", "")]
            for name, pixels in pictures:
                writer.writerow([row.line, *values, name, pixels, *about])

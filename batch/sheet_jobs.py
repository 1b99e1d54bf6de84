"""What a folder of a batch holds: the last word of its manifest on every job, in the table's order.

A manifest says what happened, line after line; a job that failed and was drawn later stands in it
twice. Lines are gathered in a scratch database that spills to disk, so that memory stays flat.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flux_core.files import below

from .manifest import NAME as MANIFEST

PICTURES = "pictures"


@dataclass(frozen=True)
class JobResult:
    """One job as the manifest has it last; ``error`` is empty for one that is done."""

    id: str
    line: int
    values: dict[str, Any]
    files: tuple[str, ...] = ()  # below the folder
    seconds: float | None = None
    worker: str = ""
    tries: int = 1
    error: str = ""


@dataclass(frozen=True)
class Results:
    """The jobs of a folder: how many are done and have failed, and the first of them; and how many
    rows of the table are no jobs, since they cannot be drawn."""

    jobs: list[JobResult] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    broken: int = 0

    @property
    def left_out(self) -> int:
        return self.done + self.failed - len(self.jobs)


def read_results(folder: Path, most: int, with_failed: bool = True) -> Results:
    """The first ``most`` jobs of a folder's manifest by line of the table, with or without those
    that failed, and how many there are.

    A folder without a manifest has none.
    """
    with closing(sqlite3.connect("")) as scratch:
        scratch.execute("create table job (id text primary key, line int, failed int, entry text)")
        rows = (
            (entry["job"], entry.get("line", 0), "error" in entry, text)
            for entry, text in entries(folder / MANIFEST)
        )
        latest = (
            "insert into job values (?, ?, ?, ?) on conflict (id) do update "
            "set line = excluded.line, failed = excluded.failed, entry = excluded.entry"
        )
        scratch.executemany(latest, rows)
        failed, count = scratch.execute("select total(failed), count(*) from job").fetchone()
        first = "select entry from job where failed <= ? order by line, rowid limit ?"
        ordered = scratch.execute(first, (with_failed, most))
        jobs = [job_result(json.loads(text)) for (text,) in ordered]
    return Results(jobs, count - int(failed), int(failed))


def entries(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """The lines of a manifest that are of a job, read and as they stand there.

    What a crash has torn is no line, and left to the one who opens the manifest to write.
    """
    if not path.is_file():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                entry = json.loads(text)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("job"), str):
                yield entry, text


def job_result(entry: dict[str, Any]) -> JobResult:
    """A line of a manifest as a job."""
    return JobResult(
        id=entry["job"],
        line=entry.get("line", 0),
        values=dict(entry.get("values") or {}),
        files=tuple(map(file_below, entry.get("files") or ())),
        seconds=entry.get("seconds"),
        worker=str(entry.get("worker") or ""),
        tries=entry.get("tries", 1),
        error=str(entry.get("error") or ""),
    )


def file_below(name: str) -> str:
    """A file's path below the folder; pictures lie by the first letters of their name."""
    below(Path(), name)  # a name that leaves the folder is refused
    return name if "/" in name else f"{PICTURES}/{name[:2]}/{name}"

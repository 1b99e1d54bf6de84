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

NAME = "results.csv"
OWN = ("file", "pixels", "seconds", "error", "job")


@dataclass(frozen=True)
class ResultRow:
    """One row of the table.

    Attributes:
        values: by the names of columns; what the row leaves as the workflow has it is not there.
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


def result_rows(
    queue: JobQueue, manifest: Manifest, columns: Sequence[Column], private: bool
) -> Iterator[ResultRow]:
    """Every row of the table, streamed."""
    for row in queue.all_rows():
        values = shown_values(columns, row.values, private)
        if row.id is None:
            yield ResultRow(row.line, None, values, error=row.problem or "")
            continue
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
        )


def write_results(path: Path, columns: Sequence[str], rows: Iterable[ResultRow]) -> None:
    """A table of one line a picture, whole or not at all; a row without one has a line too."""
    with writing(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["line", *columns, *OWN])
        for row in rows:
            values = [row.values.get(name, "") for name in columns]
            seconds = "" if row.seconds is None else row.seconds
            about = [seconds, row.error, row.job or ""]
            pictures = list(zip(row.files, row.pixels, strict=True)) or [("", "")]
            for name, pixels in pictures:
                writer.writerow([row.line, *values, name, pixels, *about])

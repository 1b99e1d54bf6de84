"""The results of a batch to look at: a page that is opened from disk, and one grid picture.

The page has its data, styles and script inside; thumbnails and receipts are loaded as they are
looked at. Written again after more jobs, only their thumbnails are new.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_core.files import write_text

from .progress import counted
from .sheet_grid import write_grid
from .sheet_jobs import JobResult, Results, read_results
from .thumbnails import make_thumbnails, thumbnail_of

PAGE = Path(__file__).parent / "page"
INDEX, GRID = "index.html", "grid.png"
#: Jobs that a page holds; a browser keeps this many without slowing down.
MOST_JOBS = 20_000
#: Values of a column up to which a person chooses among them, and letters of a value that is read
#: in a list; longer ones are searched.
FEW_VALUES, SHORT = 30, 60


@dataclass(frozen=True)
class Sheet:
    """What was written, and what it leaves out, in words; empty where nothing is."""

    page: Path
    grid: Path | None
    left_out: str


def write_sheet(folder: Path, title: str = "", results: Results | None = None) -> Sheet:
    """Write ``index.html``, ``grid.png`` and missing thumbnails of a batch's folder.

    Args:
        title: what the page is called; the folder's name where it is empty.
        results: what it shows; by default all that the folder's manifest has.
    """
    results = results or read_results(folder, MOST_JOBS)
    faults = make_thumbnails(folder, (file for job in results.jobs for file in job.files))
    write_text(folder / INDEX, page_text(results, faults, title or folder.resolve().name))
    pictures = [(job, job.files[0]) for job in results.jobs if job.files]
    whole = [(job, thumbnail_of(file)) for job, file in pictures if file not in faults]
    columns = [name for name in column_names(results.jobs) if varies(results.jobs, name)]
    grid = write_grid(folder, GRID, whole, columns, results.done)
    return Sheet(folder / INDEX, grid, left_out(results, faults))


def left_out(results: Results, faults: dict[str, str]) -> str:
    """What the page does not show, in words."""
    parts = []
    if results.left_out:
        parts.append(f"the first {len(results.jobs):,} of {results.done + results.failed:,} jobs")
    if faults:
        parts.append(
            f"{counted(len(faults), 'picture')} cannot be shown: {next(iter(faults.values()))}"
        )
    return "; ".join(parts)


def page_text(results: Results, faults: dict[str, str], title: str) -> str:
    """The whole page as HTML."""
    parts = {
        "title": html.escape(title),
        "style": (PAGE / "sheet.css").read_text(encoding="utf-8"),
        "data": script_safe(page_data(results, faults, title)),
        "script": (PAGE / "sheet.js").read_text(encoding="utf-8"),
    }
    text = (PAGE / "sheet.html").read_text(encoding="utf-8")
    before, *rest = text.split("{{")
    for piece in rest:
        name, _, after = piece.partition("}}")
        before += parts[name] + after
    return before


def script_safe(value: Any) -> str:
    """JSON that no HTML inside of it can end."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def page_data(results: Results, faults: dict[str, str], title: str) -> dict[str, Any]:
    """What the page's script reads; a job is a list, to keep ten thousand of them short."""
    names = column_names(results.jobs)
    rows = [
        [
            *(job.id, job.line, job.error, job.seconds, job.worker, job.tries),
            [[file, faults.get(file, "")] for file in job.files],
            [job.values.get(name) for name in names],
        ]
        for job in results.jobs
    ]
    return {
        "title": title,
        "columns": [column(results.jobs, name, names) for name in names],
        "rows": rows,
        "done": results.done,
        "failed": results.failed,
        "broken": results.broken,
        "left_out": left_out(results, {}),
    }


def column_names(jobs: Sequence[JobResult]) -> list[str]:
    """The columns of all jobs, as they come."""
    return list(dict.fromkeys(name for job in jobs for name in job.values))


def varies(jobs: Sequence[JobResult], name: str) -> bool:
    """Whether jobs differ in a column."""
    return len({json.dumps(job.values.get(name)) for job in jobs}) > 1


def column(jobs: Sequence[JobResult], name: str, names: list[str]) -> dict[str, Any]:
    """How a column is called and looked through: among few values, by a range, or by words."""
    values = [value for job in jobs if (value := job.values.get(name)) is not None]
    number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    short = all(len(str(value)) <= SHORT for value in values)
    few = short and len({json.dumps(value) for value in values}) <= FEW_VALUES
    kind = "choice" if few else "number" if number else "text"
    return {"name": name, "label": label(name, names), "kind": kind}


def label(name: str, names: Sequence[str]) -> str:
    """``seed`` for ``12.seed``, where no other column is a seed."""
    short = name.rpartition(".")[2]
    alike = [other for other in names if other.rpartition(".")[2] == short]
    return short if len(alike) == 1 and short else name

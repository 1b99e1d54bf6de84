"""What a batch came to, for the node that drew it: in words, and in pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from flux_core.pictures import open_picture, to_tensor

from .host_rows import Rows
from .progress import are, of_all
from .sheet import GRID
from .sheet_jobs import read_results
from .summary import Summary

#: Failed rows, and rows of a table that is wrong, that are told of.
MOST_NAMED = 3


def report_of(
    summary: Summary,
    lines: Sequence[str] = (),
    failed: Mapping[str, str] = MappingProxyType({}),
    rows: Rows | None = None,
) -> str:
    """A batch in words.

    Args:
        lines: what there is to say of its rows and its sheet.
        failed: what is wrong with rows that failed in this run, by job.
        rows: what this run was to draw; None outside of the host, where it draws all.
    """
    given_up = summary.failed if rows is None else rows.given_up
    left = summary.jobs - summary.done - given_up
    parts = [of_all(summary.done, summary.jobs)]
    if given_up:
        parts.append(f"{given_up:,} failed, not tried again; index.html says why")
    parts += [f"failed: {words}" for words in list(failed.values())[:MOST_NAMED]]
    if left > 0:
        parts.append(f"{are(left)} left: queue again to go on")
    page = [f"to look at: {summary.sheet}"] if summary.sheet else []
    return "\n".join([*parts, *lines[:MOST_NAMED], *page])


def first_pictures(out: Path, most: int) -> list[Tensor]:
    """The first pictures of a folder by the table's lines, each (1, H, W, 3)."""
    drawn = read_results(out, most, with_failed=False).jobs
    files = [file for job in drawn for file in job.files]
    present = [out / file for file in files if (out / file).is_file()]
    return [to_tensor(open_picture(path).convert("RGB"))[None] for path in present[:most]]


def grid_picture(out: Path) -> Tensor | None:
    """The folder's grid picture (1, H, W, 3); None where there is none."""
    path = out / GRID
    return to_tensor(open_picture(path).convert("RGB"))[None] if path.is_file() else None

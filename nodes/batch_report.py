"""What a batch came to, for the node that drew it: in words, and in pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from flux_core.pictures import open_picture, to_tensor

if TYPE_CHECKING:
    from ..batch.run import Summary
    from .batch_rows import Rows

#: Failed rows, and rows of a table that is wrong, that are told of.
TOLD = 3


def report_of(
    summary: Summary,
    left_out: str = "",
    failed: Mapping[str, str] | None = None,
    rows: Rows | None = None,
) -> str:
    """A batch in words.

    Args:
        left_out: what its sheet does not show.
        failed: what is wrong with rows that failed in this run, by job.
        rows: what this run was to draw; None outside of the host, where it draws all.
    """
    given_up = summary.failed if rows is None else rows.given_up
    left = summary.jobs - summary.done - given_up
    lines = [f"{summary.done:,} of {summary.jobs:,} jobs are done, in {summary.out}"]
    if given_up:
        lines.append(f"{given_up:,} failed and are not tried again; index.html says why")
    for words in list((failed or {}).values())[:TOLD]:
        lines.append(f"failed: {words}")
    if left > 0:
        lines.append(f"{left:,} are left: queue again to go on")
    if summary.broken or summary.duplicates:
        lines.append(f"{summary.broken:,} rows are broken, {summary.duplicates:,} doubled")
    lines += list(rows.said)[:TOLD] if rows is not None else []
    lines += [f"the page shows {left_out}"] if left_out else []
    return "\n".join(lines)


def first_pictures(out: Path, most: int) -> list[Tensor]:
    """The first pictures of a folder by the table's lines, each (1, H, W, 3)."""
    from ..batch.sheet_jobs import read_results

    files = [file for job in read_results(out, most).jobs for file in job.files]
    present = [out / file for file in files if (out / file).is_file()]
    return [to_tensor(open_picture(path).convert("RGB"))[None] for path in present[:most]]


def grid_picture(out: Path) -> Tensor | None:
    """The folder's grid picture (1, H, W, 3); None where there is none."""
    from ..batch.sheet import GRID

    path = out / GRID
    return to_tensor(open_picture(path).convert("RGB"))[None] if path.is_file() else None

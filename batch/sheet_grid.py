"""One picture of a batch's results: labelled thumbnails, as many as can still be looked at."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from flux_core.files import writing
from flux_core.pictures import open_picture, to_tensor
from flux_core.report.pictures import BACKGROUND, LINE, grid, labelled

from .progress import counted
from .sheet_jobs import JobResult

#: Pictures on a sheet, its pixels, and how many may stand beside each other.
MOST_CELLS, MOST_PIXELS, MOST_COLUMNS = 100, 24_000_000, 16
#: Pixels that a letter of a label is wide, about, and lines that a label has.
LETTER, MOST_LINES = 7.5, 3


def write_grid(
    folder: Path,
    name: str,
    pictures: Sequence[tuple[JobResult, str]],
    columns: Sequence[str],
    done: int,
) -> Path | None:
    """Write a grid of the first pictures; None, and no file, where there is none.

    Args:
        pictures: jobs in order, each with a small picture's path below the folder.
        columns: what jobs differ in; labels say these.
        done: how many jobs have pictures, on the sheet or not.
    """
    if not pictures:
        (folder / name).unlink(missing_ok=True)
        return None
    across = pictures_across([job for job, _ in pictures], columns)
    shown = pictures[:MOST_CELLS]
    cells = [open_picture(folder / file).convert("RGB") for _, file in shown]
    width = max(cell.width for cell in cells)
    height = max(cell.height for cell in cells) + MOST_LINES * LINE
    shown = shown[: max(1, MOST_PIXELS // ((width + 4) * (height + 10)))]
    labels = [cell_label(job, columns, width) for job, _ in shown]
    padded = [on_background(cell, width) for cell in cells[: len(shown)]]
    sheet = grid([to_tensor(cell) for cell in padded], labels, min(across, len(shown)))
    sheet_picture = labelled(sheet, note(len(shown), done, sheet.shape[1]))
    with writing(folder / name) as partial:
        sheet_picture.save(partial, format="PNG")
    return folder / name


def note(shown: int, done: int, width: int) -> str:
    """What stands below the sheet, in lines that fit."""
    count = (
        f"all {counted(done, 'picture')}" if shown == done else f"{shown:,} of {done:,} pictures"
    )
    text = count if shown == done else f"{count}; index.html shows the others"
    return textwrap.fill(text, max(10, int(width / LETTER)))


def pictures_across(jobs: Sequence[JobResult], columns: Sequence[str]) -> int:
    """How many pictures stand in a row: a row of a full grid of two columns, else a square."""
    for name in columns:
        values = list(dict.fromkeys(str(job.values.get(name)) for job in jobs))
        count = len(values)
        if 2 <= count <= MOST_COLUMNS and len(jobs) > count and len(jobs) % count == 0:
            turns = [values.index(str(job.values.get(name))) for job in jobs]
            if turns == [i % count for i in range(len(jobs))]:
                return count
    return min(MOST_COLUMNS, math.ceil(math.sqrt(min(len(jobs), MOST_CELLS))))


def cell_label(job: JobResult, columns: Sequence[str], width: int) -> str:
    """What a job differs in, or its line of the table, in lines that fit below its picture.

    Short values come first; a prompt has a line, and is cut.
    """
    letters = max(6, int(width / LETTER))
    texts = {name: " ".join(str(job.values.get(name)).split()) for name in columns}
    long = [text for text in texts.values() if len(text) > letters // 2]
    short = [
        f"{name.rpartition('.')[2]} {text}"
        for name, text in texts.items()
        if len(text) <= letters // 2
    ]
    lines = textwrap.wrap(", ".join(short), letters)
    lines += [textwrap.shorten(text, letters, placeholder="…") for text in long]
    return "\n".join(lines[:MOST_LINES]) or f"line {job.line}"


def on_background(picture: Image.Image, width: int) -> Image.Image:
    """A picture on a strip as wide as the others are, so that its label has room."""
    strip = Image.new("RGB", (width, picture.height), BACKGROUND)
    strip.paste(picture, ((width - picture.width) // 2, 0))
    return strip

"""Pictures that were written whole before a crash, and that no manifest names yet.

They count if what they say of themselves is true: the job's id, how many of them there are, and
the hash of their pixels. Then nobody draws them again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from flux_core.receipts import KEY, Receipt, pixels_hash, read_png_texts

from .manifest import ID

PARTIAL = ".partial"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def remove_unfinished(folder: Path) -> None:
    """Remove what somebody began to write and did not end, in a folder that nobody writes to."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def looks_whole(path: Path) -> bool:
    """Whether a file begins and ends as a PNG does; what is between is not read."""
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(len(PNG_START))
            file.seek(-len(PNG_END), os.SEEK_END)
            return start == PNG_START and file.read() == PNG_END
    except OSError:  # there is none, or it is shorter than that
        return False


class WholePicture(NamedTuple):
    """A picture that says which job's it is."""

    name: str
    pixels: str
    node: str
    place: int
    of: int


def written_jobs(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """Ids and files of all pictures below a folder; what a crash left half is removed."""
    if not folder.is_dir():
        return
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        files: dict[str, list[Path]] = {}
        remove_unfinished(inner)
        for path in sorted(inner.iterdir()):
            if path.suffix == ".png" and ID.fullmatch(path.stem[:24]):
                files.setdefault(path.stem[:24], []).append(path)
        yield from files.items()


def whole_pictures(job_id: str, files: list[Path], saving: list[str]) -> list[WholePicture]:
    """A job's pictures in order, where all are there; none where one is missing or damaged.

    Args:
        saving: the graph's nodes that save.
    """
    pictures = [read_picture(path, job_id) for path in files]
    if not all(pictures):
        return []
    known = {(p.node, p.place): p for p in pictures if p is not None}
    counts = {p.node: p.of for p in known.values()}
    wanted = [(node, index) for node in saving for index in range(counts.get(node, 1))]
    return [known[key] for key in wanted] if set(wanted) == set(known) else []


def read_picture(path: Path, job_id: str) -> WholePicture | None:
    """A picture of that job with its hash; None where it is damaged, or another's."""
    try:
        if not path.read_bytes().endswith(PNG_END):
            return None
        pixels, texts = read_png_texts(path)
        receipt = Receipt.parse(texts[KEY])
        about = receipt.picture
        if receipt.job.get("id") != job_id or receipt.pixels != pixels_hash(pixels):
            return None
        node, place, of = str(about["node"]), int(about["index"]), int(about["of"])
        return WholePicture(path.name, receipt.pixels, node, place, of)
    except (ValueError, OSError, KeyError, TypeError):
        return None  # it is drawn again

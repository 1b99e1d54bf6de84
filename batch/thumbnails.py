"""Small pictures and receipts beside a batch, for its sheet; each is made once.

``pictures/ab/NAME.png`` has ``thumbnails/ab/NAME.jpg`` and ``thumbnails/ab/NAME.js``. The second is
its receipt as a call of a function: a page that was opened from disk may load a script, and may
read no file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from flux_core.errors import FileError
from flux_core.files import writing
from flux_core.pictures import opened, over_white, plain
from flux_core.receipts import KEY, Receipt
from flux_core.receipts.describe import describe_receipt

SIDE = 256  # longer side of a thumbnail, in pixels
FOLDER = "thumbnails"


def thumbnail_of(file: str) -> str:
    """The small picture of a file, both below the folder of the batch."""
    path = Path(file)
    return (Path(FOLDER, *path.parts[1:-1]) / path.stem).as_posix() + ".jpg"


def make_thumbnails(folder: Path, files: Iterable[str]) -> dict[str, str]:
    """Make what is missing; returns, by file, what is wrong with those that have none."""
    missing = [file for file in files if not (folder / thumbnail_of(file)).is_file()]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # Pillow decodes outside the GIL
        faults = pool.map(lambda file: make_thumbnail(folder, file), missing)
        return {file: fault for file, fault in zip(missing, faults, strict=True) if fault}


def make_thumbnail(folder: Path, file: str) -> str:
    """Make one small picture and its receipt; returns what is wrong with the file, or nothing."""
    if not (folder / file).is_file():
        return "the picture is not there any more"
    try:
        with opened(folder / file) as picture:
            picture.load()  # a PNG's texts may stand behind its pixels
            text = getattr(picture, "text", {}).get(KEY)
            small = over_white(plain(picture))
    except FileError as error:
        return str(error)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    target = folder / thumbnail_of(file)
    with writing(target.with_suffix(".js")) as partial:
        partial.write_text(receipt_script(file, text), encoding="ascii")
    with writing(target) as partial:
        small.save(partial, format="JPEG", quality=85)
    return ""


def receipt_script(file: str, text: str | None) -> str:
    """A script that hands over what a receipt says to the page; nothing where there is none."""
    try:
        words = "" if text is None else describe_receipt(Receipt.parse(text))
    except (ValueError, TypeError, KeyError, AttributeError):  # somebody else's text of that name
        words = ""
    return f"sheet_receipt({json.dumps(file)}, {json.dumps(words)});\n"

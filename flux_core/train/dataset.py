"""Folders of pictures with captions, and what is wrong with any of them.

Captions come from a table (``metadata.csv`` as DiffSynth-Studio has it, or a ``.jsonl``), or from
``.txt`` files of the pictures' names. Everything that cannot be used is named with its reason, and
then skipped or refused as the settings say.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from ..bounds import brief
from ..errors import ConfigError, FileError
from ..files import below, folders_below, parse_json, read_text, reading
from ..models.config import VAEConfig
from ..pictures import is_picture, open_picture, over_white, to_tensor, upright_size
from ..sampling.latents import CONSTANTS, latent_size
from .buckets import Size, bucket_for, buckets
from .config import DataConfig

TABLES = ("metadata.csv", "metadata.tsv", "metadata.jsonl")
FILE_COLUMNS = ("file_name", "file", "image", "path")
TEXT_COLUMNS = ("text", "caption", "prompt")
MASK_ENDINGS = (".mask.png", "-masklabel.png")
#: Faults that a message names; the others are counted.
SHOWN = 8

#: A picture, its caption and its mask.
Captioned = tuple[Path, str, Path | None]


@dataclass(frozen=True)
class Item:
    """One picture with its caption, brought to one size."""

    picture: Path
    content: str  # the hash of the file
    caption: str
    size: Size
    repeats: int
    mask: Path | None = None
    mask_content: str = ""


@dataclass
class DataProblems:
    """What cannot be trained on, each with its reason: what is skipped, and what is refused."""

    skipped: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def add(self, path: Path, reason: str, on_fault: str) -> None:
        """Note a file; ``on_fault`` is ``skip`` or ``refuse``."""
        (self.refused if on_fault == "refuse" else self.skipped).append(f"{path}: {reason}")

    def raise_refused(self) -> None:
        """Raise ``ConfigError`` naming what the settings refuse."""
        if self.refused:
            raise ConfigError(
                f"{len(self.refused)} pictures cannot be trained on: {summarize(self.refused)} "
                "(data.broken and data.empty_captions = 'skip' leave such out)"
            )


def summarize(messages: Sequence[str]) -> str:
    """The first of some messages, and how many more there are."""
    more = f"; and {len(messages) - SHOWN} more" if len(messages) > SHOWN else ""
    return "; ".join(messages[:SHOWN]) + more


def read_items(configs: Sequence[DataConfig], problems: DataProblems) -> list[Item]:
    """All items of some folders, in a fixed order; what is wrong is added to ``problems``.

    Raises ``ConfigError`` for a folder or table that is not there, or where nothing is left.
    """
    items: list[Item] = []
    for config in configs:
        sizes = {side: buckets(side, config.step, config.max_aspect) for side in config.resolutions}
        for path, caption, mask in captioned(config, problems):
            items += read_item(path, caption, mask, config, sizes, problems)
    problems.raise_refused()
    if not items:
        folders = ", ".join(config.folder for config in configs)
        why = f": {summarize(problems.skipped)}" if problems.skipped else ""
        raise ConfigError(f"no picture to train on in {folders}{why}")
    return items


def captioned(config: DataConfig, problems: DataProblems) -> Iterator[Captioned]:
    """Pictures of a folder with captions and masks."""
    folder = Path(config.folder)
    if not folder.is_dir():
        raise ConfigError(f"data.folder {folder} is no folder")
    table = config.metadata or next((name for name in TABLES if (folder / name).is_file()), "")
    if not table:
        yield from captioned_by_files(folder, config.broken, problems)
    else:
        try:
            path = below(folder, table)
        except ValueError as error:
            raise ConfigError(f"data.metadata: {error}") from error
        yield from captioned_by_table(folder, path)


def captioned_by_files(folder: Path, on_fault: str, problems: DataProblems) -> Iterator[Captioned]:
    """Pictures with the text files beside them."""
    files = (inner / name for inner, names in folders_below(folder) for name in names)
    for path in sorted(files):
        if not is_picture(path) or path.name.endswith(MASK_ENDINGS):
            continue
        text = path.with_suffix(".txt")
        try:
            caption = read_text(text).strip() if text.is_file() else ""
        except FileError as error:
            problems.add(text, str(error).removeprefix(f"{text}: "), on_fault)
            continue
        yield path, caption, mask_of(path)


def captioned_by_table(folder: Path, table: Path) -> Iterator[Captioned]:
    """Pictures that a table names; raises ``ConfigError`` for an entry without a file."""
    for number, row in read_table(table):
        where = f"{table}, entry {number}"
        name = first_text(row, FILE_COLUMNS, where)
        if not name:
            raise ConfigError(
                f"{where}: has none of {', '.join(FILE_COLUMNS)}, but {', '.join(row) or 'nothing'}"
            )
        path = resolve_in(folder, name, where)
        caption = first_text(row, TEXT_COLUMNS, where).strip()
        mask = first_text(row, ("mask",), where)
        yield path, caption, resolve_in(folder, mask, where) if mask else mask_of(path)


def first_text(row: Mapping[str, Any], columns: Sequence[str], where: str) -> str:
    """What stands in the first of some columns that an entry has, empty where it has none; raises
    ``ConfigError`` for what is no text."""
    value = next((row[key] for key in columns if row.get(key)), "")
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {brief(value)} is no text")
    return value


def resolve_in(folder: Path, name: str, where: str) -> Path:
    """A file that a table names; raises ``ConfigError`` where it is not in the table's folder."""
    try:
        return below(folder, name)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a .csv, .tsv or .jsonl file, from number 1, their columns in small letters."""
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise ConfigError(f"{path}: ends with {path.suffix!r}, expected .csv, .tsv or .jsonl")
    text = read_text(path)
    with reading(path, f"a {kind} table", ConfigError):
        for number, row in rows_of_lines(text) if kind == ".jsonl" else rows_of_cells(text):
            yield number, {str(key).strip().lower(): value for key, value in row.items()}


def rows_of_lines(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object of JSON a line; raises ``ConfigError`` naming the line."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise ConfigError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"line {number}: expected an object, found {brief(row)}")
        yield number, row


def rows_of_cells(text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a table with commas, semicolons or tabs, whichever its first line has most of.

    Raises ``ConfigError`` for a row with more cells than there are columns, as one has whose
    caption is not in quotes.
    """
    text = re.sub(r"\Asep=.\r?\n", "", text)  # as Excel writes it
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = io.StringIO(text, newline="")
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    for number in itertools.count(1):
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ConfigError(f"entry {number}: {error}") from error
        if row is None:
            return
        if None in row:
            raise ConfigError(
                f"entry {number}: has {len(row) - 1 + len(row[None])} cells in "  # type: ignore[index]
                f"{len(row) - 1} columns: a caption with {delimiter!r} in it stands in quotes"
            )
        yield number, row


def mask_of(path: Path) -> Path | None:
    """The mask that lies beside a picture, if any."""
    masks = (path.with_name(path.stem + ending) for ending in MASK_ENDINGS)
    return next((mask for mask in masks if mask.is_file()), None)


def read_item(
    path: Path,
    caption: str,
    mask: Path | None,
    config: DataConfig,
    sizes: dict[int, list[Size]],
    problems: DataProblems,
) -> list[Item]:
    """A picture at each resolution; none where something is wrong with it.

    ``sizes`` are those that pictures are brought to, by resolution.
    """
    if not caption and not config.trigger and config.empty_captions != "use":
        problems.add(path, "has no caption", config.empty_captions)
        return []
    if not config.masks:
        mask = None
    try:
        width, height = upright_size(path)
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        mask_content = hashlib.sha256(mask.read_bytes()).hexdigest() if mask else ""
    except (FileError, OSError) as error:
        problems.add(path, f"cannot be opened ({error})", config.broken)
        return []
    text = f"{config.trigger}, {caption}" if config.trigger and caption else config.trigger
    return [
        Item(
            path,
            content,
            text or caption,
            bucket_for(width, height, bucket_sizes),
            config.repeats,
            mask,
            mask_content,
        )
        for bucket_sizes in sizes.values()
    ]


def covered(picture: Image.Image, size: Size) -> Image.Image:
    """A picture scaled to cover a size, and cut to it around its middle."""
    return ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)


def picture_of_size(path: Path, size: Size) -> Tensor:
    """A picture (1, H, W, 3) in [0, 1], upright, on white where it is transparent.

    Raises ``PictureError`` for a broken file.
    """
    return to_tensor(covered(over_white(open_picture(path)), size))[None]


def mask_of_size(path: Path, size: Size, vae: VAEConfig = CONSTANTS) -> Tensor:
    """A mask in the size of a VAE's latents, (1, h, w) in [0, 1], 1 where to learn."""
    picture = covered(open_picture(path).convert("L"), size)
    rows, columns = latent_size(size.height, size.width, vae)
    return to_tensor(picture.resize((columns, rows), Image.Resampling.BOX))[None]

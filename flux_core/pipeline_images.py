"""What the pipeline gives back: pictures, what they were drawn with, and their files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from typing_extensions import ParamSpec

from .files import PICTURES, write_new, write_numbered, writing
from .offload import MemoryReport
from .receipts import KEY, Receipt, pixels_hash, png_bytes, saved_pixels
from .record import Note, recording

P = ParamSpec("P")
PNG = ".png"
#: How files in a folder begin, where nothing else is said.
PREFIX = "fluxfit"


@dataclass(frozen=True)
class Images:
    """Pictures (B, H, W, 3) float32 in [0, 1], what drawing them took, the seed of each, and what
    was noted meanwhile."""

    images: Tensor
    report: MemoryReport
    seeds: tuple[int, ...] = ()
    notes: tuple[Note, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pixels(self) -> list[np.ndarray]:
        """The pictures as uint8 (H, W, 3), as the host's Save Image rounds them."""
        return [saved_pixels(image) for image in self.images]

    @cached_property
    def receipt(self) -> Receipt:
        """With what and how they were drawn; files of models are hashed when it is first asked
        for."""
        return Receipt.of_notes(self.notes)

    @property
    def pil(self) -> list[Image.Image]:
        """The pictures for Pillow, of 8 bits a channel."""
        return [Image.fromarray(picture) for picture in self.pixels]

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        texts: Sequence[Mapping[str, str]] | Mapping[str, str] = (),
        command: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Path]:
        """Write the pictures as PNG, with their receipt; returns their files, which are absolute.

        Args:
            path: ``name.png`` is one picture's file, and of several ``name_00001.png`` and so on. A
                folder, which is there or whose name ends with a slash, gets ``fluxfit_00001.png``;
                any other name is the beginning of the files' names, ``name_00001.png``. Numbers
                are the next that are free.
            overwrite: whether ``name.png`` may be there.
            texts: what each picture carries beside, by key, or one for all.
            command: what asked for them, from which they can be drawn again.

        A file is there whole or not at all. Raises ``FileExistsError`` for ``name.png`` that is
        there already, ``ValueError`` for a name that is empty or of another kind of picture.
        """
        refuse_name(path)
        own = each_of(texts, len(self.images))
        content = [
            png_bytes(pixels, {**own[index], KEY: self._receipt_of(index, pixels, command)})
            for index, pixels in enumerate(self.pixels)
        ]
        target = Path(os.path.abspath(path))
        is_folder = target.is_dir() or str(path).endswith(("/", os.sep))
        if len(content) == 1 and target.suffix.lower() == PNG and not is_folder:
            write_one(target, content[0], overwrite)
            return [target]
        start = target / PREFIX if is_folder else target
        if start.suffix.lower() == PNG:
            start = start.with_suffix("")
        return [write_numbered(start, PNG, each) for each in content]

    def _receipt_of(self, index: int, pixels: np.ndarray, command: Mapping[str, Any]) -> str:
        """One picture's receipt, as it is written."""
        receipt = replace(self.receipt, command=dict(command))
        return str(receipt.of_picture(pixels_hash(pixels), "", index, len(self.images)))


def with_notes(draw: Callable[P, Images]) -> Callable[P, Images]:
    """A function that draws, with what was noted from its beginning to its end in what it gives."""

    @wraps(draw)
    def noted(*args: P.args, **kwargs: P.kwargs) -> Images:
        with recording() as notes:
            images = draw(*args, **kwargs)
        return replace(images, notes=tuple(notes))

    return noted


def refuse_name(path: str | Path) -> None:
    """Raise ``ValueError`` for where no PNG can go: nowhere, or into a file of another kind."""
    name = Path(path)
    if not str(path):
        raise ValueError("the name of pictures is empty, expected a folder or NAME.png")
    suffix = name.suffix.lower()
    if suffix in PICTURES and suffix != PNG and not name.is_dir() and not str(path).endswith("/"):
        raise ValueError(f"{name}: pictures are written as PNG, expected NAME.png or a folder")


def each_of(
    texts: Sequence[Mapping[str, str]] | Mapping[str, str], count: int
) -> list[Mapping[str, str]]:
    """Texts of each picture; raises ``ValueError`` where there are as many of neither."""
    if isinstance(texts, Mapping) or not texts:
        return [texts if isinstance(texts, Mapping) else {}] * count
    if len(texts) != count:
        raise ValueError(f"texts are of {len(texts)} pictures, expected {count}, or one for all")
    return list(texts)


def write_one(path: Path, content: bytes, overwrite: bool) -> None:
    """Write a file of that name; raises ``FileExistsError`` where there is one."""
    if overwrite:
        with writing(path) as partial:
            partial.write_bytes(content)
    elif not write_new(path, content):
        raise FileExistsError(f"{path} exists already: choose another name, or overwrite=True")

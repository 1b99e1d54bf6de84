"""What the pipeline gives back: pictures, what they were drawn with, and their files."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .files import write_new, writing
from .offload import MemoryReport

PNG = ".png"
#: How files in a folder begin, where nothing else is said.
PREFIX = "fluxfit"


@dataclass(frozen=True)
class Images:
    """Pictures (B, H, W, 3) float32 in [0, 1], what drawing them took, and the seed of each."""

    images: Tensor
    report: MemoryReport
    seeds: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def pil(self) -> list[Image.Image]:
        """The pictures for Pillow, of 8 bits a channel."""
        return [Image.fromarray(picture) for picture in as_bytes(self.images)]

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        texts: Sequence[Mapping[str, str]] | Mapping[str, str] = (),
    ) -> list[Path]:
        """Write the pictures as PNG; returns their files, which are absolute.

        Args:
            path: ``name.png`` is one picture's file, and of several ``name_00001.png`` and so on. A
                folder, which is there or whose name ends with a slash, gets ``fluxfit_00001.png``;
                any other name is the beginning of the files' names, ``name_00001.png``. Numbers
                are the next that are free.
            overwrite: whether ``name.png`` may be there.
            texts: what each picture carries, by key, or one for all.

        A file is there whole or not at all. Raises ``FileExistsError`` for ``name.png`` that is
        there already.
        """
        content = [
            png_bytes(pixels, note)
            for pixels, note in zip(
                as_bytes(self.images), each_of(texts, len(self.images)), strict=True
            )
        ]
        target = Path(os.path.abspath(path))
        is_folder = target.is_dir() or str(path).endswith(("/", os.sep))
        if len(content) == 1 and target.suffix.lower() == PNG and not is_folder:
            write_one(target, content[0], overwrite)
            return [target]
        start = target / PREFIX if is_folder else target
        if start.suffix.lower() == PNG:
            start = start.with_suffix("")
        return [write_numbered(start, each) for each in content]


def each_of(
    texts: Sequence[Mapping[str, str]] | Mapping[str, str], count: int
) -> list[Mapping[str, str]]:
    """Texts of each picture; raises ``ValueError`` where there are as many of neither."""
    if isinstance(texts, Mapping) or not texts:
        return [texts if isinstance(texts, Mapping) else {}] * count
    if len(texts) != count:
        raise ValueError(f"texts are of {len(texts)} pictures, expected {count}, or one for all")
    return list(texts)


def as_bytes(images: Tensor) -> np.ndarray:
    """Pictures (B, H, W, 3) in [0, 1] as bytes, as the host's Save Image rounds them."""
    return (images.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()


def png_bytes(pixels: np.ndarray, texts: Mapping[str, str]) -> bytes:
    """A PNG of bytes (H, W, 3), with texts by their keys."""
    content, info = io.BytesIO(), PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.fromarray(pixels).save(content, format="PNG", pnginfo=info)
    return content.getvalue()


def write_one(path: Path, content: bytes, overwrite: bool) -> None:
    """Write a file of that name; raises ``FileExistsError`` where there is one."""
    if overwrite:
        with writing(path) as partial:
            partial.write_bytes(content)
    elif not write_new(path, content):
        raise FileExistsError(f"{path} exists already: choose another name, or overwrite=True")


def write_numbered(start: Path, content: bytes) -> Path:
    """Write beside its elders, under the next free number; who writes at the same time gets another
    one."""
    start.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{start.name}_"
    stems = [p.stem for p in start.parent.iterdir() if p.name.startswith(prefix)]
    taken = [n for n in (stem.removeprefix(prefix) for stem in stems) if n.isdecimal()]
    number = 1 + max(map(int, taken), default=0)
    while not write_new(path := start.with_name(f"{prefix}{number:05}{PNG}"), content):
        number += 1
    return path

"""Pictures from files as people have them, opened by one function for nodes, training and commands.

Turned as EXIF says, every depth and palette brought to 8 bits a channel, with alpha where there is
some. What comes out is a PIL picture of mode RGB or RGBA.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, PngImagePlugin
from torch import Tensor

from .errors import PictureError
from .files import PICTURES, reading

#: Packages that teach Pillow a format, by endings.
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
#: Formats of which several frames are one moving picture; a phone's JPEG has others beside it.
ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
#: Pixels of all frames together; Pillow itself refuses a single picture of as many.
MOST_PIXELS = 2**28
#: Bytes of a text inside of a PNG; Pillow stops at one million, and workflows are longer.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 2**24)
SIXTEEN_BITS = 65535
#: How far floats may go beyond 1: what was resized overshoots.
OVERSHOOT = 0.25
#: How EXIF says that a picture lies, and what it then says of one on its side.
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)
#: How a TIFF says that its numbers have no sign, of which Pillow reads those of 32 bits with one.
SAMPLE_FORMAT, SIGNED = 339, {339: (2,)}


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture."""
    return path.name.lower().endswith(PICTURES)


def open_frames(path: str | Path) -> list[Image.Image]:
    """All frames of a picture, those of the first one's size; of most there is one.

    Raises ``PictureError`` naming the file.
    """
    path = Path(path)
    with opened(path) as picture:
        if picture.format not in ANIMATED:
            return [plain(picture)]
        count = getattr(picture, "n_frames", 1)
        if count * picture.width * picture.height > MOST_PIXELS:
            raise PictureError(
                f"{path}: has {count} frames of {picture.width}x{picture.height} pixels, expected "
                f"at most {MOST_PIXELS // 1_000_000} million pixels in all"
            )
        frames = [plain(frame) for frame in ImageSequence.Iterator(picture)]
    return [frame for frame in frames if frame.size == frames[0].size]


def open_picture(path: str | Path) -> Image.Image:
    """A picture, the first frame of a moving one; raises ``PictureError`` naming the file."""
    with opened(Path(path)) as picture:
        return plain(picture)


def upright_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a picture as it is seen; its pixels are not read."""
    with opened(Path(path)) as picture:
        # Pillow turns TIFF by itself, its size too
        turned = picture.format != "TIFF" and orientation(picture) in SIDEWAYS
        width, height = picture.size
    return (height, width) if turned else (width, height)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An open file of a picture, inside of which every fault is a ``PictureError``."""
    package = PLUGINS.get(path.suffix.lower())
    hint = f"; Pillow reads such with the package {package}" if package else ""
    with reading(path, f"a picture{hint}", PictureError), Image.open(path) as picture:
        yield picture


def plain(picture: Image.Image) -> Image.Image:
    """A picture upright, in RGB or RGBA of 8 bits."""
    if orientation(picture) != 1:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        picture = to_8_bits(picture)
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return picture.convert("RGB")


def orientation(picture: Image.Image) -> int:
    """How EXIF says that a picture lies; upright where what stands there is none."""
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # its pixels are as good without
        return 1


def to_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of floats in [0, 1], in 8 bits; numbers beyond 16 bits by the
    largest of them."""
    values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
    if picture.mode == "I" and getattr(picture, "tag_v2", SIGNED).get(SAMPLE_FORMAT, (1,)) == (1,):
        values = np.where(values < 0, values + 2.0**32, values)
    top = values.max(initial=0)
    whole = 1.0 if picture.mode == "F" and top <= 1 + OVERSHOOT else 255.0
    if picture.mode.startswith("I;16") or top > 255:
        whole = max(top, SIXTEEN_BITS)
    grey = np.clip(np.rint(values * (255 / whole)), 0, 255).astype(np.uint8)
    return Image.fromarray(grey)


def over_white(picture: Image.Image) -> Image.Image:
    """A picture in RGB, on white where it is transparent."""
    if picture.mode != "RGBA":
        return picture.convert("RGB")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture).convert("RGB")


def to_tensor(picture: Image.Image) -> Tensor:
    """A picture's values (H, W, 3), or (H, W) of a grey one, in [0, 1]."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)


def image_and_mask(path: str | Path) -> tuple[Tensor, Tensor]:
    """A file's frames (B, H, W, 3), and how transparent each place is, (B, H, W), as the host's
    Load Image has them: its mask of a picture without alpha is (B, 64, 64) of zeros."""
    images, masks = [], []
    for frame in open_frames(path):
        images.append(to_tensor(frame.convert("RGB")))
        alpha = frame.getchannel("A") if frame.mode == "RGBA" else None
        masks.append(torch.zeros(64, 64) if alpha is None else 1 - to_tensor(alpha))
    return torch.stack(images), torch.stack(masks)

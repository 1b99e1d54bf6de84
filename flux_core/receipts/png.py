"""PNG files with texts inside of them, as the host's pictures carry their graphs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import PictureError
from ..files import reading

#: zlib's level: what Pillow takes is 6, half as fast for a twentieth of the size.
LEVEL = 4


def saved_pixels(image: Tensor) -> np.ndarray:
    """A picture (H, W, 3) in [0, 1] as uint8, rounded as the host's SaveImage does."""
    pixels = (255.0 * image[..., :3].detach().float().cpu().numpy()).clip(0, 255)
    return pixels.astype(np.uint8)


def png_bytes(pixels: np.ndarray, texts: Mapping[str, str]) -> bytes:
    """A PNG file of a picture, uint8 (H, W, 3), with texts by their keys."""
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", pnginfo=info, compress_level=LEVEL)
    return content.getvalue()


def read_png_texts(path: str | Path) -> tuple[np.ndarray, dict[str, str]]:
    """A picture's pixels, uint8 (H, W, 3), and the texts inside of it; of WebP those in its EXIF.

    Raises ``PictureError`` naming the file.
    """
    path = Path(path)
    with reading(path, "a picture", PictureError), Image.open(path) as picture:
        picture.load()  # some programs write texts behind the pixels
        texts = {key: value for key, value in picture.info.items() if isinstance(value, str)}
        for value in picture.getexif().values():
            key, colon, text = str(value).partition(":")
            if colon:
                texts.setdefault(key, text)
        return np.asarray(picture.convert("RGB")), texts

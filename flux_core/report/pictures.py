"""Pictures beside each other: how far two differ, and sheets with labels to look at.

Pictures are (H, W, 3) float tensors in [0, 1] on the CPU. PSNR and SSIM are scikit-image's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files import writing
from ..pictures import to_tensor

LINE = 20  # height of a line of text, in pixels
BACKGROUND, INK = (24, 26, 32), (235, 235, 235)
BAR_COLOURS = ((230, 120, 70), (240, 190, 80), (90, 160, 230), (110, 200, 130), (190, 130, 220))


def refuse_unlike(a: Tensor, b: Tensor) -> None:
    """Raise ``ValueError`` unless two pictures (H, W, 3) are of one size."""
    if a.shape != b.shape:
        raise ValueError(
            f"pictures of {a.shape[1]}x{a.shape[0]} and {b.shape[1]}x{b.shape[0]} pixels cannot be "
            "compared: they must be of one size"
        )


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of (H, W, 3) in dB; infinite for equal pictures."""
    refuse_unlike(a, b)
    error = float((a.double() - b.double()).square().mean())
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of (H, W, 3), -1 to 1, over windows of 7; sides of at least 7."""
    from skimage.metrics import structural_similarity  # takes a second to import

    refuse_unlike(a, b)
    similarity = structural_similarity(a.numpy(), b.numpy(), channel_axis=2, data_range=1.0)
    return float(np.asarray(similarity))


def to_pil(image: Tensor) -> Image.Image:
    """A picture (H, W, 3), clamped to [0, 1], in eight bits."""
    return Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def write_picture(image: Tensor, path: Path) -> None:
    """A picture (H, W, 3) to a PNG file, whole or not at all."""
    with writing(path) as partial:
        to_pil(image).save(partial, format="PNG")


def font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=14)


def labelled(image: Tensor, label: str) -> Image.Image:
    """A picture (H, W, 3) with lines of text under it."""
    picture = to_pil(image)
    lines = label.splitlines()
    sheet = Image.new("RGB", (picture.width, picture.height + LINE * len(lines) + 6), BACKGROUND)
    sheet.paste(picture)
    canvas = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        canvas.text((6, picture.height + 3 + LINE * i), line, fill=INK, font=font())
    return sheet


def grid(images: Sequence[Tensor], labels: Sequence[str], columns: int = 0) -> Tensor:
    """Lay labelled pictures on one sheet (H, W, 3), row by row.

    Raises ``ValueError`` where there are not as many labels as pictures.
    """
    if len(images) != len(labels) or not images:
        raise ValueError(f"{len(images)} pictures have {len(labels)} labels, expected one each")
    cells = [labelled(*pair) for pair in zip(images, labels, strict=True)]
    columns = columns or min(len(cells), 3)
    width, height = max(c.width for c in cells) + 4, max(c.height for c in cells) + 4
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (width * columns, height * rows), BACKGROUND)
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % columns * width + 2, i // columns * height + 2))
    return to_tensor(sheet)


def against(image: Tensor, reference: Tensor) -> str:
    """How near a picture (H, W, 3) is to another, in words."""
    near = psnr(image, reference)
    if math.isinf(near):
        return "the same to the bit"
    return f"PSNR {near:.1f} dB, SSIM {ssim(image, reference):.3f}"


def comparison(a: Tensor, b: Tensor, names: tuple[str, str], gain: float) -> tuple[Tensor, str]:
    """Lay two pictures (H, W, 3) and their difference, ``gain`` times enlarged, on a sheet.

    Returns the sheet (H, W, 3) and what the difference amounts to, in words.
    """
    summary = against(b, a)
    difference = ((b - a) * gain / 2 + 0.5).clamp(0, 1)
    sheet = grid([a, b, difference], [names[0], names[1], f"difference x{gain:g}\n{summary}"])
    return sheet, summary


def bars(values: Mapping[str, Mapping[str, float]], title: str, most: int = 40) -> Tensor:
    """Draw one row a name, one bar a series, the largest rows first, as a sheet (H, W, 3).

    Args:
        values: by name, then by series.
        most: rows shown; the rest is counted in the title.
    """
    rows = sorted(values.items(), key=lambda item: -max(item[1].values()))
    series = sorted({name for row in values.values() for name in row})
    colours = {name: BAR_COLOURS[i % len(BAR_COLOURS)] for i, name in enumerate(series)}
    shown = rows[:most]
    top = max((max(row.values()) for _, row in rows), default=0.0) or 1.0
    thick, left, width = 7, 330, 960
    step = thick * len(series) + 8
    sheet = Image.new("RGB", (width, 70 + step * len(shown)), BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    hidden = f" (the largest {len(shown)} of {len(rows)})" if len(shown) < len(rows) else ""
    canvas.text((10, 8), title + hidden, fill=INK, font=font())
    for i, name in enumerate(series):
        canvas.text((10 + 170 * i, 36), name, fill=colours[name], font=font())
    for i, (name, row) in enumerate(shown):
        y = 64 + step * i
        canvas.text((10, y + step / 2 - 12), name, fill=INK, font=font())
        for j, key in enumerate(series):
            length = (width - left - 80) * row.get(key, 0.0) / top
            where = (left, y + thick * j, left + max(1.0, length), y + thick * (j + 1) - 2)
            canvas.rectangle(where, fill=colours[key])
        longest = max(row.values())
        end = left + (width - left - 80) * longest / top
        canvas.text((end + 6, y - 3), f"{longest:.2%}", fill=INK, font=font())
    return to_tensor(sheet)

"""Pictures that become references: their sizes, and their latents.

Kontext was trained on pictures of about a megapixel in 17 shapes; one of another shape is cut to
the nearest of them around its middle and scaled with Lanczos' filter, to the bit as ComfyUI's
FluxKontextImageScale does it. Axis letters: B pictures, H and W pixels, h and w latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..bounds import brief
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner
from .images import as_pictures, cut_to_shape, rows_for, to_pixels
from .vae import encode, vae_work

#: Widths and heights that Kontext was trained on.
PREFERRED_SIZES = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)
#: What size a reference gets: the nearest of those, its own (cut to whole tokens), or that of the
#: picture to draw.
SIZES = PREFERRED, OWN, DRAWN = "preferred", "own", "drawn"
#: Pixels along a side of a token.
TOKEN = 16


def preferred_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the preferred size whose shape is nearest to a picture's."""
    shape = width / height
    _, columns, rows = min((abs(shape - w / h), w, h) for w, h in PREFERRED_SIZES)
    return rows, columns


def check_reference_size(size: object) -> None:
    """Raise ``ValueError`` for a choice that is none of ``SIZES``."""
    if not isinstance(size, str) or size not in SIZES:
        raise ValueError(f"reference_size is {brief(size)}, expected one of {', '.join(SIZES)}")


def lanczos(pictures: Tensor, height: int, width: int, crop: bool = True) -> Tensor:
    """Pictures (B, H, W, C) in [0, 1] in another size, in bytes on the way, as the host has them.

    Cut to the shape around their middle where ``crop``, else stretched.
    """
    if crop:
        pictures = cut_to_shape(pictures.movedim(-1, 1), height, width).movedim(1, -1)
    codes = (255.0 * pictures.float().cpu()).clamp(0, 255).to(torch.uint8).numpy()
    scaled = [
        np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.LANCZOS))
        for each in codes
    ]
    return torch.from_numpy(np.stack(scaled).astype(np.float32) / 255)


def sized_reference(pictures: Tensor, size: str, drawn: tuple[int, int] | None = None) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] in the size that a choice of ``SIZES`` means.

    Args:
        drawn: height and width of the picture to draw, for ``drawn``.

    Raises ``ValueError`` for another choice, and for pictures smaller than a token.
    """
    check_reference_size(size)
    rows, columns = pictures.shape[1:3]
    if size == OWN:
        height, width = rows // TOKEN * TOKEN, columns // TOKEN * TOKEN
        if not height or not width:
            raise ValueError(
                f"a reference is {columns}x{rows} pixels, expected {TOKEN}x{TOKEN} at least"
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        return pictures[:, top : top + height, left : left + width]
    if size == DRAWN:
        if drawn is None:
            raise ValueError(
                "the size of the picture to draw is not known here: wire its latent, or take "
                "another size"
            )
        return lanczos(pictures, *drawn)
    return lanczos(pictures, *preferred_size(rows, columns))


def as_references(
    value: object, batch: int, size: str, drawn: tuple[int, int] | None = None
) -> list[Tensor]:
    """Pictures (1 or batch, H, W, 3), each in its size, from one reference or a list of several;
    each may be whatever ``as_pictures`` takes.

    Raises ``ValueError`` for what is no picture.
    """
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several:
        raise ValueError("reference is an empty list, expected a picture or several")
    pictures = [rows_for(batch, as_pictures(each, "reference"), "reference") for each in several]
    return [sized_reference(each, size, drawn) for each in pictures]


def encode_references(
    runner: OffloadRunner, vae: AutoEncoder, pictures: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Raw latents (B, C, h, w), float32 on the CPU, of pictures (B, H, W, 3) in [0, 1] of any
    sizes, the VAE brought to the device once for all."""
    side = vae.config.compression
    works = [
        vae_work(vae, each.shape[1] // side, each.shape[2] // side, len(each), decoding=False)
        for each in pictures
    ]
    return runner.run(
        "VAE encoder",
        [vae],
        lambda plan: tuple(encode(vae, to_pixels(p), plan, runner.device) for p in pictures),
        max(works, key=lambda work: work.activations),
    )

"""The pictures that the pipeline is given: looked at before anything is computed, and encoded when
their turn comes.

Letters of axes: B pictures, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .bounds import check_number, check_span
from .lora import LoraStack, match_lora
from .lora.apply import counting
from .lora.match import WIDENED_LAYER
from .models.families import family_of
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .offload import OffloadRunner
from .sampling.concat import (
    MASKED_AND_CONTROL,
    NO_CONTROL,
    PICTURE_AND_MASK,
    extra_channels,
    picture_to_fill,
)
from .sampling.conditioning import ControlPicture
from .sampling.images import as_masks, as_pictures, cut_to_shape, rows_for, scaled_to, to_pixels
from .sampling.masks import MOST_FEATHER
from .sampling.reference_pictures import PREFERRED, as_references, encode_references
from .sampling.references import JOINT, References
from .sampling.vae import encode_pixels

#: What a picture may be.
Picture = Tensor | np.ndarray | Image.Image | str | Path | Sequence[Image.Image | str | Path]


@dataclass(frozen=True, eq=False)
class ReadPictures:
    """Pictures that prompts are read with, each (1 or B, H, W, 3) in [0, 1] and checked.

    ``condition`` stands beside the noise, and ``condition_mask`` (1 or B, 1, H, W) says where it is
    painted anew; ``control``, for Flex.2, has pixels (1 or B, 3, H, W) in [-1, 1] in the place of
    its latents. ``references`` are each in its size, and are placed and attended to as ``placing``
    has it, whose latents are not known yet.
    """

    condition: Tensor | None = None
    condition_mask: Tensor | None = None
    control: ControlPicture | None = None
    references: Sequence[Tensor] = ()
    placing: References | None = None

    def encoded(
        self,
        runner: OffloadRunner,
        vae: AutoEncoder,
        reads: int,
        size: tuple[int, int],
    ) -> dict[str, Any]:
        """Fields of every ``Conditioning`` of a picture of ``size``, height and width in pixels,
        for a model that ``reads`` so many channels beside the noise."""
        fields: dict[str, Any] = {}
        if self.condition is not None:
            pixels, mask = condition_pixels(reads, self.condition, self.condition_mask, *size)
            fields |= {"picture": encode_pixels(runner, vae, pixels), "mask": mask}
        if self.control is not None:
            latents = encode_pixels(runner, vae, scaled_to(self.control.latents, *size))
            fields["control"] = replace(self.control, latents=latents)
        if self.placing is not None:
            latents = encode_references(runner, vae, self.references)
            fields["references"] = replace(self.placing, latents=latents)
        return fields


def started_from(
    image: Picture | None, mask: Picture | None, batch: int
) -> tuple[Tensor | None, Tensor | None]:
    """What to start from, (1 or B, H, W, 3) in [0, 1], and where to draw anew, (1 or B, H, W)."""
    if image is None:
        if mask is not None:
            raise ValueError("a mask says what to keep of an image, but there is no image")
        return None, None
    pictures = rows_for(batch, as_pictures(image, "image"), "image")
    return pictures, None if mask is None else rows_for(batch, as_masks(mask, "mask"), "mask")


def check_masked(masks: Tensor | None, keep_pixels: int | None, differential: float | None) -> None:
    """Raise ``ValueError`` for what says how masks (1 or B, H, W) are used, without them."""
    if keep_pixels is not None:
        check_number(keep_pixels, "keep_pixels", 0, MOST_FEATHER, whole=True)
        if masks is None:
            raise ValueError("keep_pixels keeps those outside of a mask, but there is none")
    if differential is not None and masks is None:
        raise ValueError("differential says how a mask is read, but there is none")


def condition_of(
    reads: int, condition: Picture | None, mask: Picture | None, batch: int
) -> tuple[Tensor | None, Tensor | None]:
    """A condition (1 or B, H, W, 3) in [0, 1] and its mask (1 or B, 1, H, W), for a model that
    ``reads`` so many channels beside the noise; raises ``ValueError`` where those are none."""
    if condition is None:
        if mask is not None:
            raise ValueError("condition_mask belongs to a condition, but there is none")
        return None, None
    if not reads:
        raise ValueError(
            "a condition is read by Fill, Canny, Depth, Flex.2 and control LoRAs, and this "
            "model reads none: is it meant as image, or for a ControlNet?"
        )
    pictures = rows_for(batch, as_pictures(condition, "condition"), "condition")
    if mask is None:
        return pictures, None
    name = "condition_mask"
    return pictures, rows_for(batch, as_masks(mask, name), name)[:, None]


def references_of(
    reads: int,
    reference: Picture | Sequence[Picture] | None,
    placing: References,
    batch: int,
    size: str,
    drawn: tuple[int, int],
) -> dict[str, Any]:
    """References and their place as ``ReadPictures`` has them, for a picture of ``drawn`` pixels;
    raises ``ValueError`` for a model that ``reads`` channels beside the noise."""
    if reference is None:
        options = (size, placing.method, placing.attention)
        if options != (PREFERRED, None, JOINT):
            raise ValueError("options of references are given, but there is no reference")
        return {}
    if reads:
        raise ValueError(
            "a reference is read by Kontext and dev, and this model reads a picture beside "
            "the noise: is it meant as condition?"
        )
    return {"references": as_references(reference, batch, size, drawn), "placing": placing}


def read_beside(transformer: FluxTransformer, loras: LoraStack) -> int:
    """``channels_beside`` of a transformer once these LoRAs are beside its layers."""
    widths = [
        delta.width
        for use in counting(loras)
        for delta in match_lora(use.lora, transformer).deltas.get(WIDENED_LAYER, ())
    ]
    family = family_of(transformer)
    return extra_channels(max([transformer.reads, *widths]), family.tokens, family.vae)


def condition_pixels(
    reads: int, picture: Tensor, mask: Tensor | None, height: int, width: int
) -> tuple[Tensor, Tensor | None]:
    """What is read beside the noise, for a picture (1 or B, H, W, 3) in [0, 1] and its mask
    (1 or B, 1, H, W), by a model that ``reads`` so many channels there: pixels (1 or B, 3, height,
    width) in [-1, 1], and the mask in their shape."""
    pixels = scaled_to(to_pixels(picture), height, width)
    if mask is None:
        return pixels, None
    mask = cut_to_shape(mask, height, width)
    if reads == PICTURE_AND_MASK:
        pixels = picture_to_fill(pixels, mask)
    return pixels, mask


def control_of(
    reads: int,
    picture: Picture | None,
    batch: int,
    condition: Tensor | None,
    condition_mask: Tensor | None,
    strength: float,
    end: float,
) -> ControlPicture | None:
    """A control picture as ``ReadPictures`` has it, beside a condition (1 or B, H, W, 3) and its
    mask (1 or B, 1, H, W); raises ``ValueError`` where the model, which ``reads`` so many channels
    beside the noise, does not read it, where it would see nothing of a condition, and for numbers
    out of range."""
    check_number(strength, "control_strength", -1000, 1000)
    check_span(0.0, end, "a control picture's")
    reads_control = reads == MASKED_AND_CONTROL
    if reads_control and condition is not None and condition_mask is None:
        raise ValueError(
            "condition is read where condition_mask keeps it, and there is no condition_mask: "
            "is it meant as control_picture?"
        )
    if picture is None:
        if (strength, end) != (1.0, 1.0):
            raise ValueError("control_strength and control_end belong to a control_picture")
        return None
    if not reads_control:
        raise ValueError(NO_CONTROL)
    pictures = rows_for(batch, as_pictures(picture, "control_picture"), "control_picture")
    return ControlPicture(to_pixels(pictures), strength, 0.0, end)

"""Inpaint a part of a picture at its own best size: cut it out with context, and put it back.

    crop = the mask's box, ``context`` times as large, of the target's shape, scaled to the target
    back = original + blend (drawn - original),   blend = blur(grow(mask))

Where ``blend`` is 0 the picture stays as it was, to the bit. A box that is larger than the picture
goes on with the picture's edges, of which nothing is put back.

Pictures are (B, H, W, 3) in [0, 1], masks (B, H, W) in [0, 1] with 1 where to draw anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import check_number
from .images import rows_for
from .latents import expand
from .masks import blend, blurred, dilated, scaled_masks
from .regions import Area
from .sizes import MOST_SIDE

#: Sides of what is drawn are multiples of this many pixels.
MULTIPLE = 16


@dataclass(frozen=True)
class CropSettings:
    """How a part is cut out.

    Args:
        width, height: of the crop in pixels, multiples of 16; 0 leaves the box as large as it is.
        context: sides of the box over those of the mask's box, at least 1.
        grow: pixels by which the mask is made larger.
        blur: radius in pixels over which what is drawn fades into the picture.

    Raises ``ValueError`` for numbers out of range.
    """

    width: int = 1024
    height: int = 1024
    context: float = 1.5
    grow: int = 16
    blur: int = 16

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            side = getattr(self, name)
            check_number(side, f"the crop's {name}", 0, MOST_SIDE, whole=True)
            if side % MULTIPLE:
                raise ValueError(f"the crop's {name} is {side}, expected a multiple of {MULTIPLE}")
        if bool(self.width) != bool(self.height):
            raise ValueError(
                f"the crop is {self.width}x{self.height}, expected both sides, or 0 for both"
            )
        check_number(self.context, "the crop's context", 1, 100)
        check_number(self.grow, "grow", 0, 1024, whole=True)
        check_number(self.blur, "blur", 0, 1024, whole=True)


@dataclass(frozen=True, eq=False)
class Stitch:
    """What puts crops back: the pictures (B, H, W, 3), each one's box in pixels, which may reach
    beyond the picture, and its weights (B, H, W)."""

    images: Tensor
    boxes: Sequence[Area]
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Crop:
    """What is drawn: pictures (B, h, w, 3), masks (B, h, w), and the way back."""

    images: Tensor
    masks: Tensor
    stitch: Stitch


def crop_for_inpaint(images: Tensor, masks: Tensor, settings: CropSettings) -> Crop:
    """Cut out what masks cover, with context around it.

    Args:
        images: (1 or B, H, W, 3).
        masks: (1 or B, h, w), of another size scaled. One that is 0 everywhere takes the whole
            picture, of which nothing will be put back.

    Raises ``ValueError`` where there are unlike numbers of pictures and masks.
    """
    batch = max(len(images), len(masks))
    images = expand(rows_for(batch, images, "image"), batch).float()
    height, width = images.shape[1:3]
    masks = scaled_masks(expand(rows_for(batch, masks, "mask"), batch).float(), height, width)
    masks = dilated(masks, settings.grow)
    weights = blurred(masks, settings.blur)
    sides = [box_sides(box_of(weight), settings) for weight in weights]
    if not settings.width:  # pictures of a batch have one size
        sides = [(max(h for h, _ in sides), max(w for _, w in sides))] * batch
    boxes = [
        placed_box(box_of(weight), size, height, width)
        for weight, size in zip(weights, sides, strict=True)
    ]
    target = (settings.height or boxes[0].height, settings.width or boxes[0].width)
    cut = [cut_out(images[i : i + 1], box) for i, box in enumerate(boxes)]
    covers = [cut_mask(masks[i : i + 1], box) for i, box in enumerate(boxes)]
    return Crop(
        torch.cat([resized(part, *target) for part in cut]),
        torch.cat([scaled_masks(part, *target) for part in covers]),
        Stitch(images, boxes, weights),
    )


def box_of(mask: Tensor) -> Area:
    """The box around what a mask (H, W) has above 0; all of it where that is nothing."""
    rows, columns = torch.where(mask > 0)
    if not len(rows):
        return Area(mask.shape[0], mask.shape[1], 0, 0)
    top, left = int(rows.min()), int(columns.min())
    return Area(int(rows.max()) - top + 1, int(columns.max()) - left + 1, top, left)


def box_sides(box: Area, settings: CropSettings) -> tuple[int, int]:
    """Height and width of a box with its context, in the shape of the crop."""
    height, width = box.height * settings.context, box.width * settings.context
    if not settings.width:
        return up(height), up(width)
    if height * settings.width < width * settings.height:
        height = width * settings.height / settings.width
    else:
        width = height * settings.width / settings.height
    return max(1, round(height)), max(1, round(width))


def up(side: float) -> int:
    """A side rounded up to whole tokens."""
    return max(MULTIPLE, -(-int(-(-side // 1)) // MULTIPLE) * MULTIPLE)


def placed_box(box: Area, size: tuple[int, int], height: int, width: int) -> Area:
    """A box of a size around the middle of another, moved into the picture as far as it fits."""
    starts = []
    for start, side, larger, whole in (
        (box.top, box.height, size[0], height),
        (box.left, box.width, size[1], width),
    ):
        place = start + (side - larger) // 2
        room = whole - larger
        starts.append(min(max(place, 0), room) if room >= 0 else room // 2)
    return Area(*size, *starts)


def cut_out(images: Tensor, box: Area) -> Tensor:
    """A box of pictures (B, H, W, 3); beyond their edges it has the nearest pixel."""
    rows = torch.arange(box.top, box.top + box.height).clamp(0, images.shape[1] - 1)
    columns = torch.arange(box.left, box.left + box.width).clamp(0, images.shape[2] - 1)
    return images[:, rows][:, :, columns]


def cut_mask(masks: Tensor, box: Area) -> Tensor:
    """A box of masks (B, H, W); beyond their edges it is 0."""
    height, width = masks.shape[-2:]
    part = cut_out(masks[..., None], box)[..., 0]
    rows = torch.arange(box.top, box.top + box.height)
    columns = torch.arange(box.left, box.left + box.width)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return part * inside


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] in another size; of the same size they are the same."""
    if images.shape[1:3] == (height, width):
        return images
    pixels = images.movedim(-1, 1)
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return pixels.clamp(0, 1).movedim(1, -1)


def stitch_back(drawn: Tensor, stitch: Stitch) -> Tensor:
    """Pictures (n B, H, W, 3) with crops (n B, h, w, 3) that were drawn put back, the first B into
    the B pictures, and so on.

    Raises ``ValueError`` for a number of crops that is no multiple of the pictures'.
    """
    batch = len(stitch.images)
    if len(drawn) % batch:
        raise ValueError(
            f"{len(drawn)} crops for {batch} pictures: expected as many, or a multiple"
        )
    height, width = stitch.images.shape[1:3]
    finished = expand(stitch.images, len(drawn)).clone()
    for number, part in enumerate(drawn):
        box, picture = stitch.boxes[number % batch], finished[number]
        top, left = max(0, box.top), max(0, box.left)
        bottom, right = min(height, box.top + box.height), min(width, box.left + box.width)
        part = resized(part[None].float().to(picture), box.height, box.width)[0]
        part = part[top - box.top : bottom - box.top, left - box.left : right - box.left]
        inside = picture[top:bottom, left:right]
        weights = stitch.weights[number % batch, top:bottom, left:right]
        picture[top:bottom, left:right] = blend(inside, part, weights)
    return finished

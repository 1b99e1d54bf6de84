"""Tells from pixels alone what a picture shows: its background, and each shape with its colour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from tools.pocket.scenes import COLOURS, SHAPES, Thing, paint

GRID = 64
LEAST_AREA = 0.004  # of the picture; less is a speck
LEAST_OVERLAP = 0.75  # intersection over union with the shape's own outline


@dataclass(frozen=True)
class Sight:
    """One thing seen; ``shape`` is None where it looks like none."""

    shape: str | None
    colour: str
    x: float
    y: float


def name_of(rgb: np.ndarray) -> str:
    """The nearest of the named colours."""
    return min(COLOURS, key=lambda name: float(np.sum((np.array(COLOURS[name]) - rgb) ** 2)))


def normalised(mask: np.ndarray) -> np.ndarray:
    """A mask cut to its bounding box and stretched to GRID x GRID."""
    rows, columns = np.nonzero(mask)
    cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    picture = Image.fromarray((cut * 255).astype(np.uint8))
    return np.asarray(picture.resize((GRID, GRID), Image.Resampling.BILINEAR)) > 127


@cache
def outlines() -> dict[str, np.ndarray]:
    """The normalised mask of every shape."""
    masks = {}
    for shape in SHAPES:
        picture = Image.new("L", (256, 256), 0)
        paint(ImageDraw.Draw(picture), Thing(shape, "", "", "", 0.4, 0.5, 0.5), 256, 255, 0)
        masks[shape] = normalised(np.asarray(picture) > 127)
    return masks


def shape_of(mask: np.ndarray, more: Mapping[str, np.ndarray]) -> str | None:
    """The shape whose outline overlaps most, if it overlaps enough; ``more`` are masks of shapes
    beside the known ones."""
    mine = normalised(mask)
    known = outlines() | {shape: normalised(other) for shape, other in more.items()}
    overlaps = {
        shape: (mine & outline).sum() / (mine | outline).sum() for shape, outline in known.items()
    }
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= LEAST_OVERLAP else None


def look(
    picture: np.ndarray, more: Mapping[str, np.ndarray] | None = None
) -> tuple[str, list[Sight]]:
    """Name the background and the things, largest first, of a picture (H, W, 3) uint8.

    ``more`` are masks of shapes beside the known ones, by name.
    """
    pixels = picture.astype(np.float32)
    side = picture.shape[0]
    rim = max(2, side // 64)
    border = np.concatenate(
        [
            pixels[:rim].reshape(-1, 3),
            pixels[-rim:].reshape(-1, 3),
            pixels[:, :rim].reshape(-1, 3),
            pixels[:, -rim:].reshape(-1, 3),
        ]
    )
    background = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - background, axis=-1)
    labels, count = ndimage.label(distance > 40)
    things = []
    for index in range(1, count + 1):
        region = labels == index
        if region.sum() < LEAST_AREA * side * side:
            continue
        core = ndimage.binary_erosion(region, iterations=2)
        colour = np.median(pixels[core if core.any() else region], axis=0)
        # edges are mixtures: a pixel belongs to the thing if it is more like it than like the rest
        near = np.linalg.norm(pixels - colour, axis=-1) < distance
        mask = ndimage.binary_dilation(region, iterations=2) & near
        y, x = ndimage.center_of_mass(mask)
        things.append(
            (mask.sum(), Sight(shape_of(mask, more or {}), name_of(colour), x / side, y / side))
        )
    things.sort(key=lambda item: -item[0])
    return name_of(background), [sight for _, sight in things]

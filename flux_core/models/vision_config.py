"""Sizes of vision encoders, read from shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import Shapes, count_whole

#: Widths whose attention heads are not 64 wide: SigLIP so400m, CLIP-H, CLIP-bigG.
HEAD_SIZES = {1152: 72, 1280: 80, 1664: 104}
PLAIN_HEAD = 64
PATCHES, PLACES = "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight"
CLASS, POOLING = "embeddings.class_embedding", "head.probe"
PROJECTION, WIDENING = "visual_projection.weight", "encoder.layers.0.mlp.fc1.weight"
#: Sides of SigLIP's pictures are multiples of this, also where patches do not fill them.
SIDE_STEP = 32


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of a vision encoder; defaults are those of SigLIP so400m at 384 pixels.

    ``projection`` is the width of CLIP's vector, 0 where there is none; ``siglip`` tells the two
    apart, and ``pooling`` whether SigLIP has its pooling head.
    """

    hidden_size: int = 1152
    mlp_hidden: int = 4304
    depth: int = 27
    image_size: int = 384
    patch_size: int = 14
    projection: int = 0
    siglip: bool = True
    pooling: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"a vision encoder of width {self.hidden_size} has no known number of heads"
            )

    @property
    def num_heads(self) -> int:
        return max(1, self.hidden_size // HEAD_SIZES.get(self.hidden_size, PLAIN_HEAD))

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def tokens(self) -> int:
        """Vectors that a picture becomes."""
        return self.grid**2 + (not self.siglip)

    @property
    def pooled_width(self) -> int:
        """Width of the vector of the whole picture, 0 where there is none."""
        if self.siglip:
            return self.hidden_size if self.pooling else 0
        return self.projection

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> VisionConfig:
        """Read the sizes from native shapes; raises ``KeyError`` on a missing key, ``ValueError``
        for patches or positions that no square picture has."""
        width, _, rows, columns = shapes[PATCHES]
        siglip = CLASS not in shapes
        patches = shapes[PLACES][0] - (not siglip)
        grid = math.isqrt(patches)
        if rows != columns or grid * grid != patches:
            raise ValueError(f"{patches} patches of {rows}x{columns} pixels, expected a square")
        side = grid * rows
        whole = -(-side // SIDE_STEP) * SIDE_STEP
        return cls(
            hidden_size=width,
            mlp_hidden=shapes[WIDENING][0],
            depth=count_whole(shapes, "encoder.layers.", "mlp.fc1.weight"),
            image_size=whole if siglip and whole // rows == grid else side,
            patch_size=rows,
            projection=shapes.get(PROJECTION, (0,))[0],
            siglip=siglip,
            pooling=POOLING in shapes,
        )

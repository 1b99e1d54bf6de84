"""Int8 storage: a scale a row, weights rotated by a block Hadamard transform first.

Rounding to 127 equal steps loses 0.8 % of a Gaussian row, a third of what float8 loses, but one
outlier coarsens the steps of its whole row. The rotation spreads it over a block of 256 first.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .format import RowFormat
from .hadamard import BLOCK, block_of
from .kernels import Int8Kitchen, Int8Tokens, Int8Triton
from .scales import best_scale

LIMIT = 127


@cache
def int8_in_blocks(largest: int) -> Int8:
    """The format with rotations of at most ``largest``; layers alike share one."""
    return Int8(largest)


class Int8(RowFormat):
    """Codes of the rotated weight; ``largest`` bounds the block, 1 leaves the rotation out."""

    name, storage, scaled = "int8", torch.int8, True
    kernels = (Int8Kitchen(), Int8Triton(), Int8Tokens())
    #: Of the scale at which nothing is clipped.
    factors = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7)

    def __init__(self, largest: int = BLOCK) -> None:
        self.largest = largest

    def encode(self, scaled: Tensor) -> Tensor:
        """The int8 numbers nearest to scaled weights of any shape."""
        return scaled.round().clamp_(-LIMIT, LIMIT).to(torch.int8)

    def row_scales(self, weight: Tensor) -> Tensor:
        """The scales (out, 1) float32 that lose least of a weight (out, in)."""
        return best_scale(weight, LIMIT, self.factors, self.encode)

    def block(self, in_features: int) -> int:
        return block_of(in_features, self.largest)

    def layer_note(self, in_features: int) -> dict[str, object] | None:
        block = self.block(in_features)
        note: dict[str, object] = {"format": "int8_tensorwise", "per_row": True}
        return note | {"convrot": True, "convrot_groupsize": block} if block > 1 else note

"""Float8 storage: a plain cast, or a cast after dividing each output row by its scale.

e4m3fn reaches 448 and has no infinity; e5m2 reaches 57344. A cast beyond the range would give NaN
(e4m3fn) or infinity (e5m2), so values are clamped first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .format import RowFormat
from .kernels import Float8Rows, Float8Tensor
from .scales import best_scale


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast x, of any shape, to a float8 dtype, values outside its range becoming its largest."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


class Float8Format(RowFormat):
    """Codes are float8 numbers."""

    kernels = (Float8Rows(), Float8Tensor())

    def encode(self, scaled: Tensor) -> Tensor:
        """The float8 numbers nearest to scaled weights of any shape."""
        return saturate(scaled, self.storage)


class PlainFloat8(Float8Format):
    """The number nearest to the weight, as DiffSynth-Studio and raw float8 files have it."""

    scaled = False

    def __init__(self, name: str, storage: torch.dtype) -> None:
        self.name, self.storage = name, storage


class ScaledFloat8(Float8Format):
    """e4m3fn with the float32 scale a row that loses least."""

    name, storage, scaled = "fp8_scaled", torch.float8_e4m3fn, True
    #: Relative precision repeats with every power of two, so one of them is searched; all are at
    #: least 1, so that nothing is clipped.
    factors = tuple(2 ** (i / 8) for i in range(8))

    def row_scales(self, weight: Tensor) -> Tensor:
        """The scales (out, 1) float32 that lose least of a weight (out, in)."""
        return best_scale(weight, torch.finfo(self.storage).max, self.factors, self.encode)

    def layer_note(self, in_features: int) -> dict[str, object] | None:
        # The host multiplies float8 with one scale a tensor; with one a row it has to dequantize.
        return {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}

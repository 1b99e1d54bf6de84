"""Float8 storage: a plain cast, or a cast after dividing each output row by its scale.

e4m3fn reaches 448 and has no infinity; e5m2 reaches 57344. A cast beyond the range would give NaN
(e4m3fn) or infinity (e5m2), so values are clamped first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .contract import Format


def saturate(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast to a float8 dtype, values outside its range becoming its largest."""
    limit = torch.finfo(dtype).max
    return x.clamp(-limit, limit).to(dtype)


class PlainFloat8(Format):
    """The number nearest to the weight, as DiffSynth-Studio and raw float8 files have it."""

    scaled = False

    def __init__(self, name: str, storage: torch.dtype) -> None:
        self.name, self.storage = name, storage

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return saturate(weight, self.storage), None

    def dequantize(self, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        return codes.to(dtype)


class ScaledFloat8(Format):
    """e4m3fn with a float32 scale a row, which puts the row's largest value at 448."""

    name, storage, scaled = "fp8_scaled", torch.float8_e4m3fn, True

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        wide = weight.float()
        largest = wide.abs().amax(dim=1, keepdim=True)
        limit = torch.finfo(self.storage).max
        scale = torch.where(largest > 0, largest / limit, torch.ones_like(largest))
        scale = scale.clamp_min(torch.finfo(torch.float32).tiny)  # rows of subnormals
        return saturate(wide / scale, self.storage), scale

    def dequantize(self, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        assert scale is not None
        return (codes.float() * scale).to(dtype)

"""What a storage format must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .hadamard import rotate
from .kernels import Kernel


class Format(ABC):
    """How a weight (out, in) is stored: as codes and, for some formats, a scale a row.

    ``kernels`` are the native ways to multiply with the codes, the fastest first; each is tried on
    the device before it is used.
    """

    name: str
    storage: torch.dtype
    scaled: bool
    kernels: tuple[Kernel, ...] = ()

    @abstractmethod
    def encode(self, scaled: Tensor) -> Tensor:
        """The codes nearest to weights in the basis of ``rotate``, divided by their scales."""

    def scales(self, weight: Tensor) -> Tensor | None:
        """Scales (out, 1) float32 of a float32 weight in the basis of ``rotate``."""
        return None

    def prepare(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """What ``encode`` is given for a weight (out, in), and the scales."""
        turned = self.rotate(weight.float())
        scale = self.scales(turned)
        return (turned if scale is None else turned / scale), scale

    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes (out, in) and scales (out, 1) float32 or None; finite for every finite weight."""
        scaled, scale = self.prepare(weight)
        return self.encode(scaled), scale

    def block(self, in_features: int) -> int:
        """The block in which weights of a width are rotated; 1 where they are not."""
        return 1

    def rotate(self, x: Tensor) -> Tensor:
        """Inputs (..., in) in the basis in which the codes hold the weight, or back from it."""
        return rotate(x, self.block(x.shape[-1]))

    def held(self, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in the basis of ``rotate``."""
        return codes.to(dtype) if scale is None else (codes.float() * scale).to(dtype)

    def dequantize(self, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) that the codes stand for, in ``dtype``."""
        if self.block(codes.shape[-1]) == 1:
            return self.held(codes, scale, dtype)
        return self.rotate(self.held(codes, scale, torch.float32)).to(dtype)

    def marker(self, in_features: int) -> dict[str, object] | None:
        """What the host's ``comfy_quant`` says of such a layer; None where a cast says it all."""
        return None

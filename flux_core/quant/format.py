"""What a storage format must be able to do.

A format names the tensors that it stores for a weight (out, in), so that layers, files and offload
need not know what they are. A new one is a file beside this and a line of the registry.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .codes import numbers_of
from .hadamard import rotate
from .kernels import Kernel

Sizes = tuple[int, ...]


class TensorSpec(NamedTuple):
    """One stored tensor: its shape, its dtype, and its name in a file after the layer's."""

    shape: Sizes
    dtype: torch.dtype
    file_name: str


class Format(ABC):
    """How a weight (out, in) is stored.

    ``kernels`` are the native ways to multiply with what is stored, the fastest first; each is
    tried on the device before it is used. A format that is no ``RowFormat`` is known in a file by
    the ``format`` of its ``layer_note``.
    """

    name: str
    kernels: tuple[Kernel, ...] = ()

    def __deepcopy__(self, memo: dict[int, object]) -> Format:
        """Formats never change, and copies of layers share them."""
        return self

    @abstractmethod
    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        """What is stored, by the names of a layer's buffers; one of the files' names is
        ``weight``."""

    @abstractmethod
    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """The tensors of a weight (out, in), by name; finite for every finite weight."""

    @abstractmethod
    def dequantize(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight (out, in) that the tensors stand for, in ``dtype``."""

    def weight_shape(self, shapes: Mapping[str, Sizes]) -> Sizes:
        """The shape (out, in) of a weight whose tensors have these shapes in a file."""
        return shapes["weight"]

    @property
    def weight_bits(self) -> float:
        """Bits that a weight takes in a file's ``weight``; scales come to them."""
        weight = next(s for s in self.tensors(256, 256).values() if s.file_name == "weight")
        return 8 * weight.dtype.itemsize * math.prod(weight.shape) / 256**2

    def block(self, in_features: int) -> int:
        """The block in which weights of a width are rotated; 1 where they are not."""
        return 1

    def layer_note(self, in_features: int) -> dict[str, object] | None:
        """What the host's ``comfy_quant`` says of such a layer; None where a cast says it all."""
        return None


class RowFormat(Format):
    """A code for each weight, (out, in), and for some formats a scale (out, 1) for each row."""

    storage: torch.dtype
    scaled: bool

    @abstractmethod
    def encode(self, scaled: Tensor) -> Tensor:
        """The codes nearest to weights in the basis of ``rotate``, divided by their scales.

        Weights may have any shape, as GPTQ rounds single columns.
        """

    def row_scales(self, weight: Tensor) -> Tensor | None:
        """Scales (out, 1) float32 of a float32 weight in the basis of ``rotate``."""
        return None

    def tensors(self, out_features: int, in_features: int) -> dict[str, TensorSpec]:
        specs = {"codes": TensorSpec((out_features, in_features), self.storage, "weight")}
        if self.scaled:
            specs["scale"] = TensorSpec((out_features, 1), torch.float32, "weight_scale")
        return specs

    def prepare(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """What ``encode`` is given for a weight (out, in), and the scales (out, 1) or None."""
        rotated = self.rotate(weight.float())
        scale = self.row_scales(rotated)
        return (rotated if scale is None else rotated / scale), scale

    def quantize(self, weight: Tensor) -> dict[str, Tensor]:
        """Codes of a weight (out, in) and, where the format has them, scales (out, 1), by name."""
        scaled, scale = self.prepare(weight)
        return row_tensors(self.encode(scaled), scale)

    def rotate(self, x: Tensor) -> Tensor:
        """Inputs (..., in) in the basis in which the codes hold the weight, or back from it."""
        return rotate(x, self.block(x.shape[-1]))

    def rotated_weight(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in the basis of ``rotate``."""
        codes, scale = tensors["codes"], tensors.get("scale")
        if scale is None:
            return numbers_of(codes, dtype)
        return (numbers_of(codes, torch.float32) * scale).to(dtype)

    def dequantize(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The weight (out, in) that codes and scales (out, 1) stand for, in ``dtype``."""
        if self.block(tensors["codes"].shape[-1]) == 1:
            return self.rotated_weight(tensors, dtype)
        return self.rotate(self.rotated_weight(tensors, torch.float32)).to(dtype)


def row_tensors(codes: Tensor, scale: Tensor | None) -> dict[str, Tensor]:
    """Codes (out, in) and scales (out, 1) as a ``RowFormat`` names them."""
    return {"codes": codes} if scale is None else {"codes": codes, "scale": scale}

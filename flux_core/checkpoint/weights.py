"""A file's tensors with the scales that belong to them.

Float8 files keep a scale beside a layer under one of two conventions: ``<layer>.scale_weight`` with
a ``scaled_fp8`` marker, or ``<layer>.weight_scale`` with ``.comfy_quant``. ``Weights`` hides both:
a tensor is read as ``Stored`` codes with their scale, and dequantized only where it must be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Shapes
from ..quant import Format
from .errors import CheckpointError
from .keymaps import Recipe
from .reader import Source

WEIGHT_SCALES = ("scale_weight", "weight_scale")
AUXILIARY = (*WEIGHT_SCALES, "scale_input", "input_scale", "comfy_quant")
#: Formats of ``comfy_quant`` that are a float8 tensor with one scale, or one a row.
KNOWN_QUANT = ("float8_e4m3fn", "float8_e5m2")


def is_auxiliary(name: str) -> bool:
    return name.rpartition(".")[2] in (*AUXILIARY, "scaled_fp8")


@dataclass(frozen=True)
class Stored:
    """A tensor as the file has it; its value is ``values * scale`` where there is a scale."""

    values: Tensor
    scale: Tensor | None = None

    def full(self, dtype: torch.dtype) -> Tensor:
        """The value in a full-precision dtype."""
        if self.scale is None:
            return self.values.to(dtype)
        return (self.values.float() * self.scale.float()).to(dtype)

    def encoded(self, format: Format) -> tuple[Tensor, Tensor | None]:
        """Codes and scales in a format; codes that are of this format already stay as they are."""
        same = self.values.dtype == format.storage
        if same and self.scale is None and not format.scaled:
            return self.values, None
        if same and self.scale is not None and format.scaled:
            rows = self.scale.float().reshape(-1, 1)
            return self.values, rows.expand(self.values.shape[0], 1).contiguous()
        return format.quantize(self.full(torch.float32))


class Weights:
    """Named tensors of one part, scales resolved."""

    def __init__(self, source: Source) -> None:
        self.source = source
        everything = source.shapes
        self.shapes: Shapes = {n: s for n, s in everything.items() if not is_auxiliary(n)}
        self.scales = {
            f"{layer}.weight": name
            for name in everything
            for layer, _, kind in [name.rpartition(".")]
            if kind in WEIGHT_SCALES
        }
        self.refuse_unknown_formats()

    def refuse_unknown_formats(self) -> None:
        for name in self.source.entries:
            if name.endswith(".comfy_quant"):
                raw = bytes(self.source.read(name).tolist())
                try:
                    format = json.loads(raw).get("format")
                except (ValueError, AttributeError) as error:
                    raise CheckpointError(f"{self.source.path}: {name!r} is unreadable") from error
                if format not in KNOWN_QUANT:
                    raise CheckpointError(
                        f"{self.source.path}: {name!r} says format {format!r}, "
                        f"expected one of {', '.join(KNOWN_QUANT)}"
                    )

    def read(self, name: str) -> Stored:
        scale = self.scales.get(name)
        values = self.source.read(name)
        self.refuse_not_finite(name, values)
        return Stored(values, None if scale is None else self.source.read(scale))

    def refuse_not_finite(self, name: str, values: Tensor) -> None:
        """A sum in float32 is NaN or infinite exactly where a member is, at one pass."""
        if not values.is_floating_point() or not values.numel():
            return
        wide = values if values.dtype.itemsize > 1 else values.to(torch.bfloat16)
        if not bool(wide.sum(dtype=torch.float64 if wide.dtype == torch.float64 else torch.float32)
                    .isfinite()):  # fmt: skip
            bad = int((~wide.isfinite()).sum())
            if bad:
                raise CheckpointError(
                    f"{self.source.path}: {name!r} holds {bad} values that are NaN or infinite, "
                    "expected none"
                )

    def make(self, recipe: Recipe) -> Stored:
        """One native tensor; raises ``KeyError`` where the file lacks a member."""
        parts = [self.read(name) for name in recipe.names]
        if recipe.way == "swap":
            (part,) = parts
            return Stored(swap(part.values), None if part.scale is None else rows_scale(part, True))
        if len(parts) == 1:
            return parts[0]
        if any(p.scale is not None for p in parts):
            scale = torch.cat([rows_scale(p) for p in parts])
        else:
            scale = None
        return Stored(torch.cat([p.values for p in parts]), scale)


def swap(x: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return torch.cat([second, first])


def rows_scale(part: Stored, swapped: bool = False) -> Tensor:
    """A part's scale as (rows, 1)."""
    scale = torch.ones(1) if part.scale is None else part.scale.float()
    rows = scale.reshape(-1, 1).expand(part.values.shape[0], 1)
    return swap(rows) if swapped else rows

"""A file's tensors with the scales that belong to them.

Files of one byte a weight keep a scale beside a layer under one of two conventions:
``<layer>.scale_weight`` with a ``scaled_fp8`` marker, or ``<layer>.weight_scale`` with a
``.comfy_quant`` tensor or ``_quantization_metadata`` in the header. ``Weights`` hides both: a
tensor is read as ``Stored`` codes with their scale, and dequantized only where it must be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.config import Shapes
from ..quant import FORMATS, Format
from ..quant.hadamard import rotate
from ..quant.int8 import Int8
from .errors import CheckpointError
from .keymaps import Recipe
from .reader import Source

WEIGHT_SCALES = ("scale_weight", "weight_scale")
AUXILIARY = (*WEIGHT_SCALES, "scale_input", "input_scale", "comfy_quant")
#: Formats of ``comfy_quant`` that are codes with one scale, or one a row.
KNOWN_QUANT = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
HEADER_KEY = "_quantization_metadata"


def is_auxiliary(name: str) -> bool:
    return name.rpartition(".")[2] in (*AUXILIARY, "scaled_fp8")


@dataclass(frozen=True)
class Stored:
    """A tensor as the file has it: ``values``, times ``scale`` where there is one.

    ``block`` is that of the Hadamard transform in which a weight was rotated, 1 for none.
    ``mapped``: the values lie in the file.
    """

    values: Tensor
    scale: Tensor | None = None
    block: int = 1
    mapped: bool = False

    def full(self, dtype: torch.dtype) -> Tensor:
        """The value in a full-precision dtype."""
        if self.scale is None:
            return self.values.to(dtype)
        return rotate(self.values.float() * self.scale.float(), self.block).to(dtype)

    def encoded(self, format: Format) -> tuple[Tensor, Tensor | None, Format]:
        """Codes and scales in a format; codes that are of this format already stay as they are.

        The format given back differs from the one asked for where the file's int8 was rotated in
        blocks of another size.
        """
        same = self.values.dtype == format.storage and format.scaled == (self.scale is not None)
        if not same:
            # encoding a large model takes a CPU minutes: it is done where it is fast
            worker = "cuda" if torch.cuda.is_available() else "cpu"
            return *format.quantize(self.to(torch.device(worker)).full(torch.float32)), format
        if self.scale is None:
            return self.values, None, format
        if self.block != format.block(self.values.shape[-1]):
            format = Int8(self.block)
        return self.values, rows_scale(self).contiguous(), format

    def to(self, device: torch.device) -> Stored:
        scale = None if self.scale is None else self.scale.to(device)
        return replace(self, values=self.values.to(device), scale=scale)


class Weights:
    """Named tensors of one part, scales resolved; left in their file where it is ``mapped``."""

    def __init__(self, source: Source, mapped: bool = False) -> None:
        self.source, self.mapped = source, mapped
        everything = source.shapes
        self.shapes: Shapes = {n: s for n, s in everything.items() if not is_auxiliary(n)}
        self.scales = {
            f"{layer}.weight": name
            for name in everything
            for layer, _, kind in [name.rpartition(".")]
            if kind in WEIGHT_SCALES
        }
        self.blocks = {f"{layer}.weight": b for layer, b in self.rotated_layers().items()}

    def rotated_layers(self) -> dict[str, int]:
        """Layers with a block of rotation above 1; refuses formats that are not known."""
        path = self.source.path
        try:
            header = json.loads(self.source.metadata.get(HEADER_KEY, "{}")).get("layers", {})
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: {HEADER_KEY!r} is unreadable") from error
        found = {}
        for layer, said in header.items():
            found[self.source.inner(layer)] = block_said(path, layer, said)
        for name in self.source.entries:
            if name.endswith(".comfy_quant"):
                raw = bytes(self.source.read(name).tolist())
                try:
                    said = json.loads(raw)
                except ValueError as error:
                    raise CheckpointError(f"{path}: {name!r} is unreadable") from error
                found[name.removesuffix(".comfy_quant")] = block_said(path, name, said)
        return {layer: block for layer, block in found.items() if block > 1}

    def read(self, name: str) -> Stored:
        scale = self.scales.get(name)
        found = self.source.map(name) if self.mapped else None
        values = self.source.read(name) if found is None else found
        self.refuse_not_finite(name, values)
        if values.dtype == torch.int8 and scale is None:
            raise CheckpointError(f"{self.source.path}: {name!r} is int8 without a scale beside it")
        read = None if scale is None else self.source.read(scale)
        return Stored(values, read, self.blocks.get(name, 1), mapped=found is not None)

    def precision_of(self, recipe: Recipe) -> str:
        """The precision that comes nearest to how the file holds a tensor."""
        dtypes = {self.source.entries[n].dtype for n in recipe.names if n in self.source.entries}
        scaled = any(name in self.scales for name in recipe.names)
        if len(dtypes) != 1:
            return "bf16"
        (dtype,) = dtypes
        fits = (f.name for f in FORMATS.values() if f.storage == dtype and f.scaled == scaled)
        return next(fits, "fp8_scaled" if dtype.itemsize == 1 else "bf16")

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
            scale = None if part.scale is None else swap(rows_scale(part))
            return replace(part, values=swap(part.values), scale=scale, mapped=False)
        if len(parts) == 1:
            return parts[0]
        if len({(p.values.dtype, p.block) for p in parts}) > 1:  # held unlike: no codes in common
            return Stored(torch.cat([p.full(torch.float32) for p in parts]))
        if any(p.scale is not None for p in parts):
            scale = torch.cat([rows_scale(p) for p in parts])
        else:
            scale = None
        return Stored(torch.cat([p.values for p in parts]), scale, parts[0].block)


def block_said(path: object, name: str, said: object) -> int:
    """The block of rotation that a layer's note gives, 1 for none."""
    format = said.get("format") if isinstance(said, dict) else None
    if not isinstance(said, dict) or format not in KNOWN_QUANT:
        raise CheckpointError(
            f"{path}: {name!r} says format {format!r}, expected one of {', '.join(KNOWN_QUANT)}"
        )
    if not said.get("convrot"):
        return 1
    block = said.get("convrot_groupsize", 256)
    if block not in (4, 16, 64, 256, 1024):
        raise CheckpointError(
            f"{path}: {name!r} is rotated in blocks of {block!r}, expected a power of four"
        )
    return block


def swap(x: Tensor) -> Tensor:
    first, second = x.chunk(2)
    return torch.cat([second, first])


def rows_scale(part: Stored) -> Tensor:
    """A part's scale as (rows, 1) float32."""
    scale = torch.ones(1) if part.scale is None else part.scale.float()
    return scale.reshape(-1, 1).expand(part.values.shape[0], 1)

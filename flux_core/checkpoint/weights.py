"""A file's tensors with the scales that belong to them.

Files of one byte a weight keep a scale beside a layer under one of two conventions:
``<layer>.scale_weight`` with a ``scaled_fp8`` marker, or ``<layer>.weight_scale`` with a
``.comfy_quant`` tensor or ``_quantization_metadata`` in the header. ``Weights`` hides both: a
tensor is read as ``Stored`` codes with their scale, and dequantized only where it must be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bounds import refuse_not_finite
from ..errors import CheckpointError
from ..files import parse_json, reading
from ..models.keymaps import Recipe
from ..quant import FORMATS, Format, RowFormat
from ..quant.hadamard import rotate
from ..quant.int8 import int8_in_blocks
from .foreign import INSTEAD
from .source import Source

WEIGHT_SCALES = ("scale_weight", "weight_scale", "weight_scale_inv")
AUXILIARY = (*WEIGHT_SCALES, "scale_input", "input_scale", "comfy_quant")
#: Formats of ``comfy_quant`` that are codes with one scale, or one a row.
KNOWN_QUANT = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
#: Bytes of the note of one layer.
LONGEST_NOTE = 100_000
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
        """The value in a full-precision dtype; any shape, (out, in) for a layer's weight."""
        if self.scale is None:
            return self.values.to(dtype)
        scale = self.scale.float()
        if self.by_block:
            for axis, sides in enumerate(zip(self.values.shape, scale.shape, strict=True)):
                scale = scale.repeat_interleave(sides[0] // sides[1], dim=axis)
        return rotate(self.values.float() * scale, self.block).to(dtype)

    @property
    def by_block(self) -> bool:
        """Whether parts of a row have scales of their own, which no format here stores."""
        return self.scale is not None and self.scale.ndim == 2 and self.scale.shape[1] > 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape, (out, in) for a layer's."""
        return tuple(self.values.shape)

    def has_in_file(self, tensor: Tensor) -> bool:
        """Whether a tensor, of any shape, is one that lies in the file."""
        return self.mapped and tensor.data_ptr() == self.values.data_ptr()

    def quantized(self, format: Format) -> tuple[dict[str, Tensor], Format]:
        """A format's tensors; what is of this format already stays as it is.

        The format given back differs from the one asked for where the file's int8 was rotated in
        blocks of another size.
        """
        if not (
            isinstance(format, RowFormat)
            and self.values.dtype == format.storage
            and format.scaled == (self.scale is not None)
            and not self.by_block
        ):
            # encoding a large model takes a CPU minutes: it is done where it is fast
            worker = "cuda" if torch.cuda.is_available() else "cpu"
            return format.quantize(self.to(torch.device(worker)).full(torch.float32)), format
        if self.scale is None:
            return {"codes": self.values}, format
        if self.block != format.block(self.values.shape[-1]):
            format = int8_in_blocks(self.block)
        return {"codes": self.values, "scale": rows_scale(self).contiguous()}, format

    def to(self, device: torch.device) -> Stored:
        scale = None if self.scale is None else self.scale.to(device)
        return replace(self, values=self.values.to(device), scale=scale)


@dataclass(frozen=True, kw_only=True)
class StoredAs(Stored):
    """A weight (out, in) of a format of its own; ``values`` are its ``weight`` in the file."""

    format: Format
    tensors: Mapping[str, Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.format.weight_shape({"weight": tuple(self.values.shape)})

    def has_in_file(self, tensor: Tensor) -> bool:
        """Whether a tensor, of any shape, is one of this weight's that lie in the file."""
        return self.mapped and any(tensor.data_ptr() == t.data_ptr() for t in self.tensors.values())

    def full(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) in a full-precision dtype."""
        return self.format.dequantize(self.tensors, dtype)

    def quantized(self, format: Format) -> tuple[dict[str, Tensor], Format]:
        if format.name == self.format.name:
            return dict(self.tensors), format
        return super().quantized(format)

    def to(self, device: torch.device) -> StoredAs:
        tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, values=self.values.to(device), tensors=tensors)


class Weights:
    """Named tensors of one part, scales resolved; left in their file where it is ``mapped``."""

    def __init__(self, source: Source, mapped: bool = False) -> None:
        self.source, self.mapped = source, mapped
        everything = source.shapes
        self.shapes: dict[str, tuple[int, ...]] = {
            n: s for n, s in everything.items() if not is_auxiliary(n)
        }
        self.scales = {
            f"{layer}.weight": name
            for name in everything
            for layer, _, kind in [name.rpartition(".")]
            if kind in WEIGHT_SCALES
        }
        #: The block of a rotated weight's rotation, and the format of one that has its own layout.
        self.blocks: dict[str, int] = {}
        self.formats: dict[str, Format] = {}
        for layer, (place, note) in self.layer_notes().items():
            format = format_of_note(note)
            if format is not None:
                self.take_format(layer, format)
            elif (block := rotation_block(source.path, place, note)) > 1:
                self.blocks[f"{layer}.weight"] = block

    def take_format(self, layer: str, format: Format) -> None:
        """Let a layer's tensors be one weight of a format."""
        name = f"{layer}.weight"
        self.formats[name] = format
        self.scales.pop(name, None)
        for file_name in names_in_file(format).values():
            if file_name != "weight":
                self.shapes.pop(f"{layer}.{file_name}", None)
        if name in self.shapes:
            self.shapes[name] = format.weight_shape({"weight": self.shapes[name]})

    def layer_notes(self) -> dict[str, tuple[str, object]]:
        """What the file notes of its layers: where, and the note."""
        path = self.source.path
        header: object = {}
        if HEADER_KEY in self.source.metadata:
            with reading(path, f"a checkpoint, for its {HEADER_KEY}"):
                raw = parse_json(self.source.metadata[HEADER_KEY])
                header = raw.get("layers", {}) if isinstance(raw, dict) else raw
        if not isinstance(header, dict):
            raise CheckpointError(f"{path}: {HEADER_KEY} is {header!r}, expected layers and notes")
        notes: dict[str, tuple[str, object]] = {}
        for layer, note in header.items():
            inner = self.source.inner(layer)
            if f"{inner}.weight" in self.source.entries:  # else it is of another part of the file
                notes[inner] = layer, note
        for name in self.source.entries:
            if name.endswith(".comfy_quant"):
                if self.source.entries[name].size > LONGEST_NOTE:
                    raise CheckpointError(f"{path}: {name!r} is no note: it is too long")
                with reading(path, f"a checkpoint, for {name!r}"):
                    note = parse_json(bytes(self.source.read(name).view(-1).tolist()))
                notes[name.removesuffix(".comfy_quant")] = name, note
        return notes

    def read_format(self, name: str, format: Format) -> Stored:
        """A weight of a format that has its own layout in the file."""
        layer = name.removesuffix(".weight")
        tensors = {}
        mapped = False
        for key, file_name in names_in_file(format).items():
            full = f"{layer}.{file_name}"
            if full not in self.source.entries:
                raise CheckpointError(
                    f"{self.source.path}: {name!r} is {format.name} without {full!r} beside it"
                )
            in_file = self.source.map(full) if self.mapped else None
            tensors[key] = self.source.read(full) if in_file is None else in_file
            mapped = mapped or in_file is not None
            refuse_not_finite(self.source.path, full, tensors[key])
        values = next(t for key, t in tensors.items() if names_in_file(format)[key] == "weight")
        return StoredAs(values, mapped=mapped, format=format, tensors=tensors)

    def read(self, name: str) -> Stored:
        """A tensor of the file, with what belongs to it."""
        if name in self.formats:
            return self.read_format(name, self.formats[name])
        scale = self.scales.get(name)
        in_file = self.source.map(name) if self.mapped else None
        values = self.source.read(name) if in_file is None else in_file
        refuse_not_finite(self.source.path, name, values)
        if not values.is_floating_point() and (scale is None or values.dtype != torch.int8):
            dtype = str(values.dtype).removeprefix("torch.")
            with_it = "without" if scale is None else "with"
            raise CheckpointError(
                f"{self.source.path}: {name!r} is {dtype} {with_it} a scale beside it, expected "
                "floating point, or int8 with one"
            )
        read = None if scale is None else self.read_scale(scale, tuple(values.shape))
        return Stored(values, read, self.blocks.get(name, 1), mapped=in_file is not None)

    def read_scale(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The scale of a weight (out, in) of a shape, brought to (), (out, 1) or (blocks of rows,
        blocks of inputs); raises ``CheckpointError`` for one that fits neither."""
        scale = self.source.read(name)
        if not scale.is_floating_point():
            raise CheckpointError(
                f"{self.source.path}: {name!r} is {scale.dtype}, expected floating point"
            )
        scale = scale.float()
        refuse_not_finite(self.source.path, name, scale)
        if scale.numel() == 1:
            return scale.reshape(())
        if len(shape) == 2:
            if scale.ndim == 3 and scale.shape[2] == 1:
                scale = scale[..., 0]
            if scale.ndim == 1 and len(scale) == shape[0]:
                return scale[:, None]
            if scale.ndim == 2 and not any(
                not s or side % s for side, s in zip(shape, scale.shape, strict=True)
            ):
                return (
                    scale
                    if scale.shape[1] > 1
                    else scale.repeat_interleave(shape[0] // scale.shape[0], dim=0)
                )
        raise CheckpointError(
            f"{self.source.path}: {name!r} has shape {tuple(scale.shape)}, expected one scale, or "
            f"one a row or a block of a weight of {shape}"
        )

    def precision_of(self, recipe: Recipe) -> str:
        """The precision that comes nearest to how the file holds a tensor."""
        formats = {f.name if (f := self.formats.get(n)) else "" for n in recipe.names}
        if formats != {""}:
            return max(formats)
        dtypes = {self.source.entries[n].dtype for n in recipe.names if n in self.source.entries}
        scaled = any(name in self.scales for name in recipe.names)
        if len(dtypes) != 1:
            return "bf16"
        (dtype,) = dtypes
        fits = (
            f.name
            for f in FORMATS.values()
            if isinstance(f, RowFormat) and f.storage == dtype and f.scaled == scaled
        )
        return next(fits, "fp8_scaled" if dtype.itemsize == 1 else "bf16")

    def make(self, recipe: Recipe) -> Stored:
        """One native tensor; raises ``KeyError`` where the file lacks a member."""
        parts = [self.read(name) for name in recipe.names]
        # rows of another layout are not told apart
        if recipe.transform == "swap" or len(parts) > 1:
            parts = [
                Stored(p.full(torch.float32)) if isinstance(p, StoredAs) or p.by_block else p
                for p in parts
            ]
        if recipe.transform == "swap":
            (part,) = parts
            scale = None if part.scale is None else swap(rows_scale(part))
            return replace(part, values=swap(part.values), scale=scale, mapped=False)
        if recipe.transform == "third":
            (part,) = parts
            whole = part.full(torch.float32) if part.scale is not None else part.values
            if len(whole) % 3:
                raise CheckpointError(
                    f"{self.source.path}: {recipe.names[0]!r} has {len(whole)} rows, expected a "
                    "multiple of three"
                )
            return Stored(whole.chunk(3)[recipe.third].contiguous())
        if len(parts) == 1:
            return parts[0]
        if len({(p.values.dtype, p.block) for p in parts}) > 1:  # held unlike: no codes in common
            return Stored(torch.cat([p.full(torch.float32) for p in parts]))
        if any(p.scale is not None for p in parts):
            scale = torch.cat([rows_scale(p) for p in parts])
        else:
            scale = None
        return Stored(torch.cat([p.values for p in parts]), scale, parts[0].block)


def names_in_file(format: Format) -> dict[str, str]:
    """The names of a format's tensors in a file, after the layer's, by those of a layer's buffers;
    no shape changes them."""
    return {key: spec.file_name for key, spec in format.tensors(256, 256).items()}


def format_of_note(note: object) -> Format | None:
    """The format with a layout of its own that a layer's note names; None for codes by row."""
    wanted = note.get("format") if isinstance(note, dict) else None
    for format in FORMATS.values():
        if not isinstance(format, RowFormat):
            own = format.layer_note(256)
            if own is not None and own["format"] == wanted:
                return format
    return None


def rotation_block(path: object, name: str, note: object) -> int:
    """The block of rotation that a layer's note gives, 1 for none; refuses unknown formats."""
    format = note.get("format") if isinstance(note, dict) else None
    if not isinstance(note, dict) or format not in KNOWN_QUANT:
        raise CheckpointError(
            f"{path}: {name!r} says format {format!r}, expected one of {', '.join(KNOWN_QUANT)}: "
            f"{INSTEAD}"
        )
    if not note.get("convrot"):
        return 1
    block = note.get("convrot_groupsize", 256)
    if block not in (4, 16, 64, 256, 1024):
        raise CheckpointError(
            f"{path}: {name!r} is rotated in blocks of {block!r}, expected a power of four"
        )
    return block


def swap(x: Tensor) -> Tensor:
    """The two halves of the rows of x (rows, ...) in the other order."""
    first, second = x.chunk(2)
    return torch.cat([second, first])


def rows_scale(part: Stored) -> Tensor:
    """A part's scale as (rows, 1) float32."""
    scale = torch.ones(1) if part.scale is None else part.scale.float()
    return scale.reshape(-1, 1).expand(part.values.shape[0], 1)

"""Branches whose LoRAs count differently from row to row of what a layer reads.

    y = W x + b + up ((down x) * scale * r),    r = what each LoRA counts at the row, now

A row is a token, or a picture where a layer reads the modulation vector. All branches of a model
read r from one place, so that another step, mask or schedule changes a few numbers there and none
in a layer, whether that is resident, streamed, or waiting in a ring's slot already.

Axis letters: B pictures, T tokens, K LoRAs, k of them in one layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.layers import RMSNorm
from .branch import Layer, LinearBranch, NormBranch
from .deltas import Delta

#: What a layer reads: tokens of the picture, of the text, of both behind each other, or vectors.
IMAGE, TEXT, JOINT, VECTOR = "image", "text", "joint", "vector"
READING = {
    IMAGE: re.compile(r"img_in|double_blocks\.\d+\.img_(attn|mlp)\..*|final_layer\.linear"),
    TEXT: re.compile(r"txt_in|double_blocks\.\d+\.txt_(attn|mlp)\..*"),
    JOINT: re.compile(r"single_blocks\.\d+\.(linear1|linear2|norm\..*)"),
}


def kind_of_rows(layer: str) -> str:
    """What a transformer's layer of a name reads."""
    return next((kind for kind, names in READING.items() if names.fullmatch(layer)), VECTOR)


class RowFactors:
    """What each of K LoRAs counts in the call of a model that is made now, by what a layer reads:
    (K,), or (rows, K) or (B, T, K). Nothing is said outside of a run: each counts whole."""

    def __init__(self) -> None:
        self.by_kind: dict[str, Tensor] = {}

    def __deepcopy__(self, memo: object) -> RowFactors:
        """Itself: a twin of a layer reads what the layer does."""
        return self

    def times(self, kind: str, strengths: Tensor, numbers: Tensor) -> Tensor:
        """Strengths (k,) with what the LoRAs of those numbers (k,) count, (k,) or (..., k)."""
        factors = self.by_kind.get(kind)
        return strengths if factors is None else strengths * factors[..., numbers]

    def size_key(self, kind: str) -> tuple[int, ...] | None:
        """The shape of what is said now to layers that read a ``kind`` of rows."""
        factors = self.by_kind.get(kind)
        return None if factors is None else tuple(factors.shape)


class RowLinearBranch(LinearBranch):
    """A ``LinearBranch`` with factors a row."""

    def __init__(
        self,
        layer: Layer,
        deltas: Sequence[tuple[int, Delta]],
        dtype: torch.dtype,
        factors: RowFactors,
        kind: str,
    ) -> None:
        """``factors`` are those for what layers of the ``kind`` read."""
        super().__init__(layer, deltas, dtype)
        self.row_factors, self.kind = factors, kind
        self.bias = self.gain = None  # sums over LoRAs, which differ from row to row
        several = [*self.dense, *(number for number, *_ in self.krons)]
        columns = [number for number, _ in self.column_gains]
        for name, numbers in (("scale", self.numbers), ("factor", several), ("column", columns)):
            self.register_buffer(f"{name}_numbers", torch.tensor(numbers, dtype=torch.long))
        for name, parts in (("bias", self.biases), ("gain", self.gains)):
            if parts:
                numbers = torch.tensor([number for number, _ in parts])
                self.register_buffer(f"{name}_numbers", numbers)
                self.register_buffer(f"{name}_strengths", torch.zeros(len(parts)))
                self.register_buffer(f"{name}_parts", torch.stack([part for _, part in parts]))

    def set_strengths(self, strengths: Sequence[float]) -> None:
        super().set_strengths(strengths)
        for name, parts in (("bias", self.biases), ("gain", self.gains)):
            if parts:
                values = torch.tensor([strengths[number] for number, _ in parts])
                self.get_buffer(f"{name}_strengths").copy_(values)

    @property
    def size_key(self) -> tuple[int, ...] | None:
        """What tells a call that takes as much memory from others."""
        return self.row_factors.size_key(self.kind)

    def now(self, name: str, strengths: Tensor) -> Tensor:
        """Strengths (k,) of some of its parts in the call that is made now, (k,) or (..., k)."""
        return self.row_factors.times(self.kind, strengths, self.get_buffer(f"{name}_numbers"))

    def scale_now(self) -> Tensor:
        """(R,) or (..., R)."""
        return self.now("scale", self.scale)

    def factor_now(self, index: int) -> Tensor:
        """(1,) or (..., 1)."""
        return self.now("factor", self.factors)[..., index : index + 1]

    def column_strength_now(self, index: int) -> Tensor:
        """(1,) or (..., 1)."""
        return self.now("column", self.column_strengths)[..., index : index + 1]

    def bias_now(self, dtype: torch.dtype) -> Tensor | None:
        """(out,) or (..., out)."""
        return self.summed("bias").to(dtype) if self.biases else None

    def gain_now(self) -> Tensor | None:
        """(out,) or (..., out) float32."""
        return self.summed("gain") if self.gains else None

    def summed(self, name: str) -> Tensor:
        """The LoRAs' biases or gains together, (out,) or (..., out) float32."""
        strengths = self.now(name, self.get_buffer(f"{name}_strengths"))
        return strengths @ self.get_buffer(f"{name}_parts")


class RowNormBranch(NormBranch):
    """A ``NormBranch`` with factors a token."""

    base: Tensor
    targets: Tensor
    strengths: Tensor
    numbers: Tensor

    def __init__(
        self,
        norm: RMSNorm,
        values: Sequence[tuple[int, Tensor]],
        factors: RowFactors,
        kind: str,
    ) -> None:
        """``factors`` are those for what layers of the ``kind`` read."""
        super().__init__(norm, values)
        self.row_factors, self.kind = factors, kind
        self.register_buffer("base", self.own.clone())
        self.register_buffer("targets", torch.stack([value for _, value in self.values]))
        self.register_buffer("strengths", torch.zeros(len(values)))
        self.register_buffer("numbers", torch.tensor([number for number, _ in values]))

    def set_strengths(self, strengths: Sequence[float]) -> None:
        super().set_strengths(strengths)
        self.strengths.copy_(torch.tensor([strengths[number] for number, _ in self.values]))

    @property
    def size_key(self) -> tuple[int, ...] | None:
        """What tells a call that takes as much memory from others."""
        return self.row_factors.size_key(self.kind)

    def scale_now(self) -> Tensor:
        """(head,), or (1 or B, T, head) where it differs from token to token."""
        strengths = self.row_factors.times(self.kind, self.strengths, self.numbers)
        scale = self.base
        for place in range(len(self.values)):
            weight = strengths[..., place : place + 1]
            scale = torch.lerp(scale, self.targets[place], weight)
        return scale

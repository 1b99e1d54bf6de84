"""LoRAs beside one layer: all of them in one branch, none of them in the weight.

    y = W x + b  +  up ((down x) * scale)  +  dense and Kronecker products  +  bias  +  DoRA's gain

``down`` and ``up`` hold the ranks of all LoRAs side by side, so that ten cost two products, and
``scale`` has each rank's strength: another strength changes numbers and no shape. With DoRA rows
(or columns) of the weight have a gain,

    W' = g (W + D),  g = magnitude / |W + D|:   y' = y + s ((g - 1) W x + g D x)

so its ``up`` is multiplied by g beforehand, and g - 1 is the gain on what the layer itself gave.

A control LoRA may be wider than its layer: the layer reads the first inputs, the LoRA all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.layers import RMSNorm
from ..quant import QuantizedLinear
from ..quant.products import Linear, linear, matmul
from .deltas import Delta

Layer = nn.Linear | QuantizedLinear


class Branch(nn.Module):
    """What LoRAs put beside a layer; all tensors are buffers of its own.

    Whoever places the layer's weights treats it apart: it comes and goes with a run.
    """

    #: What offloading makes of its tensors (``offload.blocks``).
    offload_role = "for a run"

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Give each LoRA a strength, by its number; only numbers change."""
        raise NotImplementedError

    def all_tensors(self) -> Iterator[Tensor]:
        """Its buffers, and the numbers that they are made of, each of any shape."""
        yield from self.buffers()
        for value in vars(self).values():
            for item in value if isinstance(value, list) else [value]:
                parts = item if isinstance(item, tuple) else (item,)
                yield from (part for part in parts if isinstance(part, Tensor))


class LinearBranch(Branch):
    """What several LoRAs add to one layer."""

    down: Tensor | None
    up: Tensor | None
    scale: Tensor
    bias: Tensor | None
    gain: Tensor | None
    factors: Tensor
    column_strengths: Tensor

    def __init__(self, layer: Layer, deltas: Sequence[tuple[int, Delta]], dtype: torch.dtype):
        """``deltas`` are numbered by the LoRA that each is of."""
        super().__init__()
        self.out_features = layer.out_features
        self.in_features = layer.in_features
        #: Inputs that the widest LoRA reads.
        self.width = max([layer.in_features, *(d.width for _, d in deltas)])
        downs: list[Tensor] = []
        ups: list[Tensor] = []
        #: LoRA's number of each rank, of each bias, gain, ...: strengths are looked up by it
        self.numbers: list[int] = []
        self.biases: list[tuple[int, Tensor]] = []
        self.gains: list[tuple[int, Tensor]] = []
        self.column_gains: list[tuple[int, Tensor]] = []
        self.krons: list[tuple[int, int, int]] = []  # number, first row, rows
        self.dense: list[int] = []
        for number, delta in deltas:
            start, count = delta.rows
            row_gain = column_gain = None
            if delta.magnitude is not None:
                g = dora_gain(layer, delta)
                row_gain, column_gain = (g, None) if g.shape[0] > 1 else (None, g)
            if delta.up is not None and delta.down is not None:
                up, down = delta.up, delta.down
                if row_gain is not None:
                    up = up * row_gain
                if column_gain is not None:
                    down = down * column_gain
                ups.append(self.padded(up, start))
                downs.append(self.widened(down))
                self.numbers += [number] * len(down)
            elif delta.magnitude is None and delta.kron is not None:
                for n, factor in enumerate(delta.kron):
                    self.register_buffer(f"kron{len(self.krons)}_{n}", factor.to(dtype))
                self.krons.append((number, start, count))
            elif (weight := delta.weight()) is not None:
                for g in (row_gain, column_gain):
                    weight = weight if g is None else weight * g
                whole = self.widened(self.padded(weight, start))
                self.register_buffer(f"dense{len(self.dense)}", whole.to(dtype))
                self.dense.append(number)
            if delta.bias is not None:
                self.biases.append((number, self.padded(delta.bias, start)))
            if row_gain is not None:
                self.gains.append((number, self.padded(row_gain.view(-1) - 1, start)))
            if column_gain is not None:
                only = torch.zeros(self.out_features)
                only[start : start + count] = 1
                self.column_gains.append((number, column_gain.view(-1) - 1))
                self.register_buffer(f"rows{len(self.column_gains) - 1}", only.to(dtype))
        self.register_buffer("down", torch.cat(downs).to(dtype) if downs else None)
        self.register_buffer("up", torch.cat(ups, dim=1).to(dtype) if ups else None)
        self.register_buffer("scale", torch.zeros(len(self.numbers)))
        several = len(self.dense) + len(self.krons)
        self.register_buffer("factors", torch.zeros(several))
        self.register_buffer("bias", self.zeros(dtype) if self.biases else None)
        self.register_buffer("gain", self.zeros(torch.float32) if self.gains else None)
        for i, (_, column) in enumerate(self.column_gains):
            self.register_buffer(f"columns{i}", column.to(dtype))
        self.register_buffer("column_strengths", torch.zeros(len(self.column_gains)))

    def twin_key(self) -> tuple[int | tuple[int, int], ...]:
        """How it computes, beyond what its tensors' layout says (``offload.blocks``)."""
        return self.width, *((start, count) for _, start, count in self.krons)

    def zeros(self, dtype: torch.dtype) -> Tensor:
        """A zero an output, (out,)."""
        return torch.zeros(self.out_features, dtype=dtype)

    def padded(self, x: Tensor, start: int) -> Tensor:
        """Rows (rows, ...) of a member of a fused layer, in those of the whole layer (out, ...)."""
        if len(x) == self.out_features:
            return x
        whole = x.new_zeros(self.out_features, *x.shape[1:])
        whole[start : start + len(x)] = x
        return whole

    def widened(self, x: Tensor) -> Tensor:
        """Columns (..., in) of a LoRA in those of the widest, (..., width)."""
        return F.pad(x, (0, self.width - x.shape[-1]))

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Give each LoRA a strength, by its number."""
        self.scale.copy_(torch.tensor([strengths[n] for n in self.numbers]))
        numbers = [*self.dense, *(number for number, *_ in self.krons)]
        self.factors.copy_(torch.tensor([strengths[n] for n in numbers]))
        self.column_strengths.copy_(torch.tensor([strengths[n] for n, _ in self.column_gains]))
        for total, parts in ((self.bias, self.biases), (self.gain, self.gains)):
            if total is not None:
                total.copy_(torch.stack([strengths[n] * part for n, part in parts]).sum(0))

    def scale_now(self) -> Tensor:
        """The strength of each rank, (R,), or (..., R) where it differs from row to row."""
        return self.scale

    def factor_now(self, index: int) -> Tensor:
        """The strength of a dense or Kronecker product, a scalar or (..., 1)."""
        return self.factors[index]

    def column_strength_now(self, index: int) -> Tensor:
        """The strength of a gain by columns, a scalar or (..., 1)."""
        return self.column_strengths[index]

    def bias_now(self, dtype: torch.dtype) -> Tensor | None:
        """What is added as a bias, (out,) or (..., out), in a dtype."""
        return self.bias

    def gain_now(self) -> Tensor | None:
        """The gain on what the layer itself gave, (out,) or (..., out) float32."""
        return self.gain

    def add(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """Add everything to y (..., out), which the layer made of x (..., in).

        x may be wider than the layer.
        """
        if self.width > x.shape[-1]:
            x = F.pad(x, (0, self.width - x.shape[-1]))
        out = y
        gain, bias = self.gain_now(), self.bias_now(x.dtype)
        if gain is not None:
            plain = y if layer.bias is None else y - layer.bias
            out = out + (plain.float() * gain).to(y.dtype)
        if self.down is not None and self.up is not None:
            inner = linear(x, self.down)
            out = out + linear((inner.float() * self.scale_now()).to(x.dtype), self.up)
        for i in range(len(self.dense)):
            product = linear(x, self.get_buffer(f"dense{i}"))
            out = out + product * self.factor_now(i).to(x.dtype)
        for i, (_, start, count) in enumerate(self.krons):
            product = kron_product(
                x[..., : self.in_features],
                self.get_buffer(f"kron{i}_0"),
                self.get_buffer(f"kron{i}_1"),
            )
            product = product * self.factor_now(len(self.dense) + i).to(x.dtype)
            out = out + F.pad(product, (start, self.out_features - start - count))
        for i in range(len(self.column_gains)):
            # W (x * (g - 1)): the layer itself, without its bias
            own = x[..., : self.in_features]
            product = plain_forward(layer, own * self.get_buffer(f"columns{i}"))
            product = product if layer.bias is None else product - layer.bias
            strength = self.get_buffer(f"rows{i}") * self.column_strength_now(i)
            out = out + product * strength.to(x.dtype)
        return out if bias is None else out + bias


class NormBranch(Branch):
    """The scale of a norm as LoRAs want it: overwritten, so that of several the last one counts."""

    scale: Tensor

    def __init__(self, norm: RMSNorm, values: Sequence[tuple[int, Tensor]]) -> None:
        super().__init__()
        self.values = [(number, value.float().cpu()) for number, value in values]
        self.own = norm.scale.detach().float().cpu()
        self.register_buffer("scale", self.own.clone())

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Move the scale (head,) to each LoRA's in turn, by its strength."""
        scale = self.own
        for number, value in self.values:
            scale = torch.lerp(scale, value, strengths[number])
        self.scale.copy_(scale)

    def scale_now(self) -> Tensor:
        """The scale (head,), or (..., head) where it differs from token to token."""
        return self.scale


def kron_product(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    """x (..., b * d) times (w1 x w2)^T for w1 (a, b) and w2 (c, d), without building it."""
    parts = linear(x.unflatten(-1, (w1.shape[1], w2.shape[1])), w2)  # (..., b, c)
    return matmul(w1, parts).flatten(-2)


def float_weight(layer: Layer) -> Tensor:
    """A layer's weight as it multiplies, (out, in) float32."""
    if isinstance(layer, QuantizedLinear):
        return layer.dequantize(torch.float32)
    return layer.weight.detach().float()


def dora_gain(layer: Layer, delta: Delta) -> Tensor:
    """DoRA's g of a delta, (rows, 1) or (1, in): magnitude over the norm after the addition."""
    start, count = delta.rows
    weight = float_weight(layer)[start : start + count].cpu()
    added = delta.weight()
    weight = weight if added is None else weight + added
    assert delta.magnitude is not None
    axis = 1 if delta.magnitude.shape[0] > 1 else 0
    return delta.magnitude / weight.norm(dim=axis, keepdim=True).clamp_min(1e-12)


def plain_forward(layer: Layer, x: Tensor) -> Tensor:
    """What a layer gives without its branch: x (..., in) to (..., out)."""
    if isinstance(layer, QuantizedLinear):
        return QuantizedLinear.forward(layer, x)
    return linear(x, layer.weight, layer.bias)


class BranchedLinear(Linear):
    """A Linear with a branch beside it; layers become one by their class alone."""

    branch: LinearBranch

    @property
    def width(self) -> int:
        return self.branch.width

    def forward(self, input: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        own = Linear.forward(self, input[..., : self.in_features])
        return self.branch.add(self, input, own)


class BranchedQuantizedLinear(QuantizedLinear):
    """A quantized Linear with a branch beside it."""

    branch: LinearBranch

    @property
    def width(self) -> int:
        return self.branch.width

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., out)."""
        own = QuantizedLinear.forward(self, x[..., : self.in_features])
        return self.branch.add(self, x, own)


class BranchedRMSNorm(RMSNorm):
    """A norm with another scale beside its own."""

    branch: NormBranch

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, H, head) to the same, normalised over its last axis."""
        scale = self.branch.scale_now()
        if scale.ndim == 1:
            return F.rms_norm(x.float(), x.shape[-1:], scale, eps=1e-6).to(x.dtype)
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=1e-6)
        return (normed * scale[..., None, :]).to(x.dtype)  # all heads of a token have its scale


BRANCHED = {
    Linear: BranchedLinear,
    QuantizedLinear: BranchedQuantizedLinear,
    RMSNorm: BranchedRMSNorm,
}
PLAIN = {branched: plain for plain, branched in BRANCHED.items()}


def attach(layer: nn.Module, branch: nn.Module) -> None:
    """Put a branch beside a layer: any module with ``LinearBranch``'s ``add``."""
    layer.branch = branch
    layer.__class__ = BRANCHED[type(layer)]  # type: ignore[index, assignment]


def detach(layer: nn.Module) -> None:
    """Take it away again: the layer is as it was."""
    if type(layer) in PLAIN:
        layer.__class__ = PLAIN[type(layer)]  # type: ignore[index, assignment]
        del layer.branch

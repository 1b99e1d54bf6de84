"""A Linear that keeps codes instead of a weight, and the walk that puts it into a model.

Norms, embedders and the last layer stay in high precision: they are 0.5 % of the bytes, and errors
made there reach every block.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .contract import Format
from .formats import FORMATS, full_dtype

#: Top-level modules whose linear layers are never quantized.
KEPT = (
    "img_in",
    "txt_in",
    "time_in",
    "vector_in",
    "guidance_in",
    "final_layer",
    "pos_embed_input",
    "controlnet_blocks",
    "controlnet_single_blocks",
)


class QuantizedLinear(nn.Module):
    """y = x dequantize(codes, scale)^T + bias, multiplied in the dtype of x.

    Buffers: ``codes`` (out, in) in the format's storage dtype, ``scale`` (out, 1) float32 or None;
    parameter ``bias`` (out,) or None. The buffers move between devices with the module and never
    change dtype: ``.to(dtype)`` reaches the bias alone.
    """

    codes: Tensor
    scale: Tensor | None

    #: transformers' T5 asks for a layer's ``weight`` to match its activations to it; there is none.
    weight = None

    def __init__(self, shape: tuple[int, int], bias: bool, format: Format, dtype: torch.dtype):
        super().__init__()
        self.format = format
        self.out_features, self.in_features = shape
        self.register_buffer("codes", torch.empty(shape, dtype=format.storage))
        scale = torch.empty(shape[0], 1, dtype=torch.float32) if format.scaled else None
        self.register_buffer("scale", scale)
        self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype)) if bias else None

    @classmethod
    def from_linear(cls, linear: nn.Linear, format: Format) -> QuantizedLinear:
        """Quantize a Linear's weight; raises ``ValueError`` where it is not finite."""
        weight = linear.weight.detach()
        if weight.device.type != "meta" and not bool(weight.isfinite().all()):
            raise ValueError("weight holds NaN or infinity")
        with torch.device("meta"):
            made = cls(
                (weight.shape[0], weight.shape[1]), linear.bias is not None, format, weight.dtype
            )
        if weight.device.type != "meta":
            made.codes, made.scale = format.quantize(weight)
        made.bias = linear.bias
        return made

    def _apply(self, fn, recurse=True):
        """Let a move reach everything, a change of dtype only the bias."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        codes, scale = self._buffers.pop("codes"), self._buffers.pop("scale")
        super()._apply(fn, recurse)
        self._buffers["codes"] = None if codes is None else keep_dtype(codes)
        self._buffers["scale"] = None if scale is None else keep_dtype(scale)
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.format.dequantize(self.codes, self.scale, x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, weight, bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, format={self.format.name}"


def linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Every Linear that may be quantized: its parent, its name there, itself."""
    for path, parent in module.named_modules():
        for name, child in parent.named_children():
            top = f"{path}.{name}".lstrip(".").split(".")[0]
            if isinstance(child, nn.Linear) and top not in KEPT:
                yield parent, name, child


def quantized_names(module: nn.Module) -> set[str]:
    """Names of the formats that a module already holds."""
    return {m.format.name for m in module.modules() if isinstance(m, QuantizedLinear)}


def quantize(module: nn.Module, precision: str) -> nn.Module:
    """Change how a transformer, ControlNet or T5 stores its linear layers, in place.

    ``bf16``, ``fp16`` and ``fp32`` cast the whole module. A float8 precision replaces its linear
    layers but those of embedders and the last one, and casts nothing else; embeddings keep their
    dtype. Quantizing again to the same precision changes nothing.

    Returns the module. Raises ``ValueError`` for an unknown precision, a weight that is not finite
    (the layer is named, nothing is changed), and a module that is quantized otherwise.
    """
    full_dtype(precision)  # refuses unknown names
    held = quantized_names(module)
    if held == {precision}:
        return module
    if held:
        raise ValueError(
            f"module is already quantized to {', '.join(sorted(held))}; "
            f"load it again to have it in {precision}"
        )
    if precision not in FORMATS:
        return module.to(full_dtype(precision))
    found = list(linears(module))
    for parent, name, linear in found:
        weight = linear.weight
        if weight.device.type != "meta" and not bool(weight.isfinite().all()):
            path = next(p for p, m in module.named_modules() if m is parent)
            raise ValueError(f"{path}.{name}.weight holds NaN or infinity: nothing was quantized")
    for parent, name, linear in found:
        made = QuantizedLinear.from_linear(linear, FORMATS[precision])
        made.train(linear.training)
        setattr(parent, name, made)
    return module

"""Multiplying with codes instead of weights.

    y = (x~ codes^T) * (token scale) * (row scale),   x~ = x / token scale, rounded as the codes are

A kernel multiplies rounded inputs with codes on 8-bit matrix units. Whether a device has it is not
looked up but tried (``kernel_trial``): a small product is compared with ``reference``, once a
device. So a missing instruction, an old library and a wrong result are all told the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from .hadamard import rotate

#: Inputs below this are as good as zero; it keeps their scale from becoming infinite.
SMALLEST_INPUT = 1e-12
E4M3_LIMIT = 448.0
INT8_LIMIT = 127.0


def token_scale(x: Tensor, limit: float) -> Tensor:
    """Scales (tokens, 1) float32 that put each token's largest value at ``limit``."""
    return x.abs().amax(dim=-1, keepdim=True).float().clamp_min(SMALLEST_INPUT) / limit


def to_float8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (tokens, in) as e4m3 codes and token scales."""
    scale = token_scale(x, E4M3_LIMIT)
    return (x.float() / scale).clamp(-E4M3_LIMIT, E4M3_LIMIT).to(torch.float8_e4m3fn), scale


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (tokens, in) as int8 codes and token scales."""
    scale = token_scale(x, INT8_LIMIT)
    return (x.float() / scale).round().clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8), scale


def output_scale(tensors: Mapping[str, Tensor]) -> Tensor:
    """Scales of the output's columns, (1, out) float32."""
    codes, scale = tensors["codes"], tensors.get("scale")
    if scale is None:
        return torch.ones(1, codes.shape[0], device=codes.device)
    return scale.reshape(1, -1)


class Kernel(ABC):
    """One native way to multiply."""

    name: str

    def refuses(self, out_features: int, in_features: int) -> str:
        """Why a layer of this shape does not fit; empty where it does."""
        if out_features % 16 or in_features % 16:
            return f"{out_features}x{in_features} is no multiple of 16"
        return ""

    @abstractmethod
    def quantize_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (tokens, in) as the codes and token scales that are multiplied."""

    @abstractmethod
    def multiply(self, x: Tensor, tensors: Mapping[str, Tensor], block: int) -> Tensor:
        """x (tokens, in), not rotated yet, times a format's tensors: (tokens, out)
        in x's dtype."""

    def reference(self, x: Tensor, tensors: Mapping[str, Tensor], block: int) -> Tensor:
        """The same from float32 products alone: (tokens, in) to (tokens, out) float32."""
        inputs, tokens = self.quantize_inputs(rotate(x, block))
        return inputs.float() @ tensors["codes"].float().T * tokens * output_scale(tensors)


class Float8Kernel(Kernel):
    """``torch._scaled_mm`` of float8 inputs and codes."""

    def quantize_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (tokens, in) as e4m3 codes and token scales (tokens, 1)."""
        return to_float8(x)

    def scaled_mm(self, x: Tensor, codes: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
        """x (tokens, in) times codes (out, in), both float8: (tokens, out)."""
        cpu = x.device.type == "cpu"
        return torch._scaled_mm(
            x,
            codes.t(),
            scale_a=scale_a,
            scale_b=scale_b,
            out_dtype=torch.float32 if cpu else torch.bfloat16,
            use_fast_accum=not cpu,
        )


class Float8Rows(Float8Kernel):
    """Scales a token and a row (H100, RTX 40 and newer)."""

    name = "float8, scales a row"

    def multiply(self, x: Tensor, tensors: Mapping[str, Tensor], block: int) -> Tensor:
        """x (tokens, in) times codes, scaled within the product: (tokens, out) in x's dtype."""
        inputs, tokens = to_float8(x)
        columns = output_scale(tensors).contiguous()
        return self.scaled_mm(inputs, tensors["codes"], tokens, columns).to(x.dtype)


class Float8Tensor(Float8Kernel):
    """One scale, the others applied to the output."""

    name = "float8, one scale"

    def multiply(self, x: Tensor, tensors: Mapping[str, Tensor], block: int) -> Tensor:
        """x (tokens, in) times codes, scaled after the product: (tokens, out) in x's dtype."""
        inputs, tokens = to_float8(x)
        one = torch.ones((), device=x.device)
        out = self.scaled_mm(inputs, tensors["codes"], one, one)
        return (out * tokens * output_scale(tensors)).to(x.dtype)


class Int8Tokens(Kernel):
    """``torch._int_mm`` (every NVIDIA card from the RTX 20 on, and CPUs)."""

    name = "int8"
    #: CUDA's product wants more than 16 tokens, in eights.
    least_tokens = 32

    def quantize_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (tokens, in) as int8 codes and token scales (tokens, 1)."""
        return to_int8(x)

    def multiply(self, x: Tensor, tensors: Mapping[str, Tensor], block: int) -> Tensor:
        """x (tokens, in), rotated here, times codes: (tokens, out) in x's dtype."""
        inputs, tokens = to_int8(rotate(x, block))
        count = len(inputs)
        missing = max(self.least_tokens - count, -count % 8) if x.device.type == "cuda" else 0
        if missing:
            inputs = F.pad(inputs, (0, 0, 0, missing))
        out = torch._int_mm(inputs, tensors["codes"].t())[:count]
        return (out * tokens * output_scale(tensors)).to(x.dtype)


class Int8Kitchen(Int8Tokens):
    """comfy-kitchen's fused rotation, rounding and product, where the host brings its kernels."""

    name = "int8, comfy-kitchen"

    def multiply(self, x: Tensor, tensors: Mapping[str, Tensor], block: int) -> Tensor:
        """x (tokens, in), rotated by the library, times codes: (tokens, out) in x's dtype."""
        import comfy_kitchen  # pyright: ignore[reportMissingImports]

        if x.device.type != "cuda":
            raise RuntimeError("comfy-kitchen has kernels of its own on CUDA only")
        if torch.compiler.is_compiling():  # which fuses the same by itself and sees no gap there
            return super().multiply(x, tensors, block)
        codes, scale = tensors["codes"], tensors["scale"]
        return comfy_kitchen.int8_linear(
            x, codes, scale, None, x.dtype, convrot=block > 1, convrot_groupsize=max(block, 4)
        )

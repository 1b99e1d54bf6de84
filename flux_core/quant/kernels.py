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

from . import fused
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
    if fused.serves(x):
        return fused.join_gelu(x, None, fused.FLOAT8)
    scale = token_scale(x, E4M3_LIMIT)
    return (x.float() / scale).clamp(-E4M3_LIMIT, E4M3_LIMIT).to(torch.float8_e4m3fn), scale


def to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs (tokens, in) as int8 codes and token scales."""
    if fused.serves(x):
        return fused.join_gelu(x, None, fused.INT8)
    scale = token_scale(x, INT8_LIMIT)
    return (x.float() / scale).round().clamp(-INT8_LIMIT, INT8_LIMIT).to(torch.int8), scale


def output_scale(tensors: Mapping[str, Tensor]) -> Tensor:
    """Scales of the output's columns, (1, out) float32."""
    codes, scale = tensors["codes"], tensors.get("scale")
    if scale is None:
        return torch.ones(1, codes.shape[0], device=codes.device)
    return scale.reshape(1, -1)


def with_bias(out: Tensor, bias: Tensor | None) -> Tensor:
    """A product (tokens, out) and a bias (out,) of its dtype."""
    return out if bias is None else out + bias


class Kernel(ABC):
    """One native way to multiply."""

    name: str
    #: How ``fused`` rounds inputs for it, where it takes them rounded already.
    rounding = fused.PLAIN
    #: Tokens, outputs and inputs of the products that are tried before it is used.
    trials: tuple[tuple[int, int, int], ...] = ((48, 32, 64),)

    def passes_32_bits(self, device: torch.device) -> bool:
        """Whether the product is a tensor of 32 bits before it is one of x's dtype."""
        return True

    def refuses(self, out_features: int, in_features: int) -> str:
        """Why a layer of this shape does not fit; empty where it does."""
        if out_features % 16 or in_features % 16:
            return f"{out_features}x{in_features} is no multiple of 16"
        return ""

    @abstractmethod
    def quantize_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (tokens, in) as the codes and token scales that are multiplied."""

    @abstractmethod
    def multiply_codes(
        self,
        inputs: fused.Rounded,
        tensors: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """Rounded inputs (tokens, in) times a format's tensors, and a bias (out,) of ``dtype``:
        (tokens, out) in ``dtype``."""

    def multiply(
        self, x: Tensor, tensors: Mapping[str, Tensor], block: int, bias: Tensor | None = None
    ) -> Tensor:
        """x (tokens, in), not rotated yet, times a format's tensors, and a bias (out,) of x's
        dtype: (tokens, out) in x's dtype."""
        inputs = fused.Rounded(*self.quantize_inputs(rotate(x, block)))
        return self.multiply_codes(inputs, tensors, bias, x.dtype)

    def reference(self, x: Tensor, tensors: Mapping[str, Tensor], block: int) -> Tensor:
        """The same from float32 products alone: (tokens, in) to (tokens, out) float32."""
        inputs, tokens = self.quantize_inputs(rotate(x, block))
        return inputs.float() @ tensors["codes"].float().T * tokens * output_scale(tensors)


class Float8Kernel(Kernel):
    """``torch._scaled_mm`` of float8 inputs and codes."""

    def quantize_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (tokens, in) as e4m3 codes and token scales (tokens, 1)."""
        return to_float8(x)

    def scaled_mm(
        self,
        x: Tensor,
        codes: Tensor,
        scale_a: Tensor,
        scale_b: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        """x (tokens, in) times codes (out, in), both float8, and a bias (out,): (tokens, out)."""
        cpu = x.device.type == "cpu"
        return torch._scaled_mm(
            x,
            codes.t(),
            scale_a=scale_a,
            scale_b=scale_b,
            bias=bias,
            out_dtype=torch.float32 if cpu else torch.bfloat16,
            use_fast_accum=not cpu,
        )


class Float8Rows(Float8Kernel):
    """Scales a token and a row (H100, RTX 40 and newer)."""

    name = "float8, scales a row"
    rounding = fused.FLOAT8

    def passes_32_bits(self, device: torch.device) -> bool:
        return device.type == "cpu"

    def multiply_codes(
        self,
        inputs: fused.Rounded,
        tensors: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """(tokens, in) to (tokens, out), scaled in the product, a bfloat16 bias added there."""
        columns = output_scale(tensors).contiguous()
        inside = bias is not None and dtype == torch.bfloat16 and inputs.codes.device.type != "cpu"
        added = bias if inside else None
        out = self.scaled_mm(inputs.codes, tensors["codes"], inputs.scales, columns, added)
        return with_bias(out.to(dtype), None if inside else bias)


class Float8Tensor(Float8Kernel):
    """One scale, the others applied to the output."""

    name = "float8, one scale"

    def multiply_codes(
        self,
        inputs: fused.Rounded,
        tensors: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """(tokens, in) to (tokens, out), scaled after the product."""
        one = torch.ones((), device=inputs.codes.device)
        out = self.scaled_mm(inputs.codes, tensors["codes"], one, one)
        return with_bias((out * inputs.scales * output_scale(tensors)).to(dtype), bias)


class Int8Tokens(Kernel):
    """``torch._int_mm`` (every NVIDIA card from the RTX 20 on, and CPUs)."""

    name = "int8"
    #: CUDA's product wants more than 16 tokens, in eights.
    least_tokens = 32

    def quantize_inputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (tokens, in) as int8 codes and token scales (tokens, 1)."""
        return to_int8(x)

    def multiply_codes(
        self,
        inputs: fused.Rounded,
        tensors: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """(tokens, in) to (tokens, out), scaled after a product of 32 bits."""
        codes, tokens = inputs
        count = len(codes)
        missing = max(self.least_tokens - count, -count % 8) if codes.is_cuda else 0
        if missing:
            codes = F.pad(codes, (0, 0, 0, missing))
        out = torch._int_mm(codes, tensors["codes"].t())[:count]
        return with_bias((out * tokens * output_scale(tensors)).to(dtype), bias)


class Int8Triton(Int8Tokens):
    """A product that scales what it writes, so that nothing of 32 bits is stored."""

    name = "int8, Triton"
    #: One for each size of tiles.
    trials = ((48, 32, 64), (200, 208, 128), (1100, 4224, 128))

    def refuses(self, out_features: int, in_features: int) -> str:
        """As every kernel, and no width that its loop does not divide."""
        return super().refuses(out_features, in_features) or (
            f"{in_features} inputs are no multiple of 64" if in_features % 64 else ""
        )

    def passes_32_bits(self, device: torch.device) -> bool:
        return False

    def multiply_codes(
        self,
        inputs: fused.Rounded,
        tensors: Mapping[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        """(tokens, in) to (tokens, out), scaled and the bias added in the product's last step."""
        if not torch.compiler.is_compiling() and not fused.ready(inputs.codes.device):
            raise RuntimeError("Triton's kernels are not to be had, or not right, on this device")
        rows = output_scale(tensors).contiguous()
        return fused.int8_product(inputs, tensors["codes"], rows, bias, dtype)


class Int8Kitchen(Int8Tokens):
    """comfy-kitchen's fused rotation, rounding and product, where the host brings its kernels."""

    name = "int8, comfy-kitchen"

    def multiply(
        self, x: Tensor, tensors: Mapping[str, Tensor], block: int, bias: Tensor | None = None
    ) -> Tensor:
        """x (tokens, in), rotated by the library, times codes, and a bias: (tokens, out)."""
        import comfy_kitchen  # pyright: ignore[reportMissingImports]

        if x.device.type != "cuda":
            raise RuntimeError("comfy-kitchen has kernels of its own on CUDA only")
        if torch.compiler.is_compiling():  # which fuses the same by itself and sees no gap there
            return super().multiply(x, tensors, block, bias)
        codes, scale = tensors["codes"], tensors["scale"]
        out = comfy_kitchen.int8_linear(
            x, codes, scale, None, x.dtype, convrot=block > 1, convrot_groupsize=max(block, 4)
        )
        return with_bias(out, bias)

"""A Linear that keeps codes instead of a weight and multiplies as its device best can."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import fused
from .codes import numbers_of
from .format import Format, RowFormat
from .gptq import gptq_quantize
from .kernel_trial import kernel_error
from .kernels import Kernel, with_bias
from .notices import warn_once
from .products import linear, matmul

#: How a quantized layer multiplies: ``auto`` is ``native`` where the device has matrix units for
#: the codes, and ``dequantize`` on a CPU, where nothing is won.
COMPUTES = ("auto", "dequantize", "native")


#: The most that one native product may take in 32 bits.
PRODUCT_BYTES = 128 * 2**20
#: Tokens that a part of a product is a multiple of.
ROWS = 256


class KernelChoice(NamedTuple):
    """How a layer multiplies on one device: a kernel, or None with the reason why none."""

    kernel: Kernel | None
    reason: str = ""

    def __str__(self) -> str:
        if self.kernel is not None:
            return f"native ({self.kernel.name})"
        return f"dequantize ({self.reason})"


class QuantizedLinear(nn.Module):
    """y = x dequantize(tensors)^T + bias, in the dtype of x.

    Buffers: what the format names, for a ``RowFormat`` ``codes`` (out, in) in its storage dtype and
    ``scale`` (out, 1) float32 or None; parameter ``bias`` (out,) or None. The buffers
    move between devices with the module and never change dtype: ``.to(dtype)`` reaches the bias
    alone. ``compute`` is one of ``COMPUTES``.
    """

    codes: Tensor
    scale: Tensor | None

    #: transformers' T5 asks for a layer's ``weight`` to match its activations to it; there is none.
    weight = None

    def __init__(self, shape: tuple[int, int], bias: bool, format: Format, dtype: torch.dtype):
        super().__init__()
        self.format = format
        self.out_features, self.in_features = shape
        specs = format.tensors(*shape)
        self.tensor_names = tuple(specs)
        for name, spec in specs.items():
            self.register_buffer(name, torch.empty(spec.shape, dtype=spec.dtype))
        if "scale" not in self._buffers:
            self.register_buffer("scale", None)
        self.bias = nn.Parameter(torch.empty(shape[0], dtype=dtype)) if bias else None
        self.compute = "auto"
        self.kernel_choices: dict[tuple[str, torch.dtype], KernelChoice] = {}

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, format: Format, second_moments: Tensor | None = None
    ) -> QuantizedLinear:
        """Quantize a Linear's weight, which must be finite: to the nearest codes, or by GPTQ where
        the ``second_moments`` (N, C, C) of its inputs are known."""
        weight = linear.weight.detach()
        with torch.device("meta"):
            layer = cls(
                (weight.shape[0], weight.shape[1]), linear.bias is not None, format, weight.dtype
            )
        if weight.device.type != "meta":
            if second_moments is None:
                layer.set_tensors(format.quantize(weight))
            else:
                layer.set_tensors(gptq_quantize(format, weight, second_moments))
        layer.bias = linear.bias
        return layer

    def tensors(self) -> dict[str, Tensor]:
        """What the format stores, by its names."""
        return {name: getattr(self, name) for name in self.tensor_names}

    def set_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what the format stores, by its names."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) that the layer stands for."""
        return self.format.dequantize(self.tensors(), dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Let a move reach everything, a change of dtype only the bias."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype == tensor.dtype:
                return moved
            return tensor.to(moved.device)

        stored = dict(self._buffers)
        self._buffers.clear()  # the same table stays: offload keeps it
        super()._apply(fn, recurse)
        self._buffers.update({n: t if t is None else keep_dtype(t) for n, t in stored.items()})
        return self

    def set_compute(self, compute: str) -> None:
        """Choose how to multiply; kernels that were tried for another choice are forgotten."""
        if compute == self.compute:
            return
        self.compute = compute
        self.kernel_choices = {}

    def kernel_choice(self, device: torch.device, dtype: torch.dtype) -> KernelChoice:
        """How this layer multiplies on a device; found once."""
        key = (device.type, dtype)
        if key not in self.kernel_choices:
            self.kernel_choices[key] = self.choose_kernel(device, dtype)
        return self.kernel_choices[key]

    def choose_kernel(self, device: torch.device, dtype: torch.dtype) -> KernelChoice:
        if self.compute == "dequantize":
            return KernelChoice(None, "as asked")
        if self.compute == "auto" and device.type == "cpu":
            return KernelChoice(None, "a CPU wins nothing by 8 bits")
        if not self.format.kernels:
            return KernelChoice(None, "the format has no kernel")
        reasons = []
        for kernel in self.format.kernels:
            reason = kernel.refuses(self.out_features, self.in_features) or kernel_error(
                kernel, self.format, device, dtype
            )
            if not reason:
                return KernelChoice(kernel)
            reasons.append(f"{kernel.name}: {reason}")
        choice = KernelChoice(None, "; ".join(reasons))
        warn_once(f"{self.format.name} on {device.type}: {choice}")
        return choice

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) to (..., out), in the dtype of x."""
        kernel = self.kernel_choice(x.device, x.dtype).kernel
        if kernel is None or x.requires_grad or not x.numel():
            return self.multiply_dequantized(x)
        out = self.multiply_native(kernel, x.reshape(-1, self.in_features))
        return out.view(*x.shape[:-1], self.out_features)

    def rounding(self, x: Tensor) -> int:
        """How ``fused`` may round inputs like x (..., in) for ``multiply_rounded``; ``PLAIN`` where
        this layer wants x itself, because of its arithmetic or because somebody listens to it."""
        heard = self._forward_pre_hooks or self._forward_hooks or "forward" in self.__dict__
        if type(self) is not QuantizedLinear or heard or not fused.serves(x, self.in_features):
            return fused.PLAIN
        kernel = self.kernel_choice(x.device, x.dtype).kernel
        turned = self.format.block(self.in_features) > 1
        return fused.PLAIN if kernel is None or turned else kernel.rounding

    def multiply_rounded(self, inputs: fused.Rounded, like: Tensor) -> Tensor:
        """The product with tokens rounded as ``rounding`` says, and the bias: (..., out), its first
        axes and dtype those of ``like`` (..., D)."""
        kernel = self.kernel_choice(like.device, like.dtype).kernel
        assert kernel is not None
        bias = None if self.bias is None else self.bias.to(like.dtype)
        out = kernel.multiply_codes(inputs, self.tensors(), bias, like.dtype)
        return out.view(*like.shape[:-1], self.out_features)

    def multiply_native(self, kernel: Kernel, x: Tensor) -> Tensor:
        """The kernel's product with x (tokens, in), and the bias, many tokens in parts.

        A product that passes through 32 bits would for all tokens of a large picture at once be
        the largest tensor of the run. A compiler fuses that away, and is left alone.
        """
        block, tensors = self.format.block(self.in_features), self.tensors()
        bias = None if self.bias is None else self.bias.to(x.dtype)
        rows = PRODUCT_BYTES // (4 * self.out_features)
        part = max(ROWS, rows // ROWS * ROWS)
        whole = torch.compiler.is_compiling() or not kernel.passes_32_bits(x.device)
        if whole or len(x) <= part:
            return kernel.multiply(x, tensors, block, bias)
        out = x.new_empty(len(x), self.out_features)
        for to, some in zip(out.split(part), x.split(part), strict=True):
            to.copy_(kernel.multiply(some, tensors, block))
        return with_bias(out, bias)

    def multiply_dequantized(self, x: Tensor) -> Tensor:
        """The product with x (..., in), in its dtype, bias added: (..., out).

        Codes are exact in bfloat16 and scaled weights are not, so the row scales are applied to the
        output, where they cost less as well. float16 has no room for that.
        """
        bias = None if self.bias is None else self.bias.to(x.dtype)
        format = self.format
        if not isinstance(format, RowFormat):
            return linear_remade(x, lambda: self.dequantize(x.dtype), bias)
        x = format.rotate(x)
        if self.scale is None or x.dtype == torch.float16:
            return linear_remade(x, lambda: format.rotated_weight(self.tensors(), x.dtype), bias)
        out = linear_remade(x, lambda: numbers_of(self.codes, x.dtype))
        scale = self.scale.to(x.dtype).view(-1)
        return out * scale if bias is None else torch.addcmul(bias, out, scale)

    def twin_key(self) -> Hashable:
        """Layers of one key and layout compute alike, so that one can read the other's buffers."""
        return self.format.name, self.format.block(self.in_features), self.compute

    def learn_from_twin(self, other: QuantizedLinear) -> None:
        """Take over how a twin of this layer multiplied, for the report."""
        self.kernel_choices.update(other.kernel_choices)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, format={self.format.name}"


class RemadeWeightLinear(torch.autograd.Function):
    """x W^T + b with a W that is made again for the backward pass instead of being kept, so that
    training through codes holds no second copy of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        """x (..., in) times the weight (out, in) of ``make``, and a bias (out,): (..., out)."""
        ctx.make = make
        return linear(x, make(), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        """The gradient (..., out) to those of x (..., in) and, where needed, of the bias (out,)."""
        (grad,) = grads
        of_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return matmul(grad, ctx.make()), None, of_bias


def linear_remade(x: Tensor, make: Callable[[], Tensor], bias: Tensor | None = None) -> Tensor:
    """x (..., in) times the weight (out, in) that a function makes, and a bias (out,): (..., out).

    x may have a gradient, the weight has none.
    """
    if x.requires_grad and torch.is_grad_enabled():
        return RemadeWeightLinear.apply(x, make, bias)  # pyright: ignore[reportReturnType]
    return linear(x, make(), bias)

"""A Linear that keeps codes instead of a weight and multiplies as its device best can."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .format import Format
from .gptq import gptq_codes
from .kernels import Kernel, kernel_error

log = logging.getLogger(__name__)

#: How a quantized layer multiplies: ``auto`` is ``native`` where the device has matrix units for
#: the codes, and ``dequantize`` on a CPU, where nothing is won.
COMPUTES = ("auto", "dequantize", "native")


#: The most that one native product may take in 32 bits.
PRODUCT_BYTES = 128 * 2**20


class KernelChoice(NamedTuple):
    """How a layer multiplies on one device: a kernel, or None with the reason why none."""

    kernel: Kernel | None
    reason: str = ""

    def __str__(self) -> str:
        if self.kernel is not None:
            return f"native ({self.kernel.name})"
        return f"dequantize ({self.reason})"


class QuantizedLinear(nn.Module):
    """y = x dequantize(codes, scale)^T + bias, in the dtype of x.

    Buffers: ``codes`` (out, in) in the format's storage dtype, ``scale`` (out, 1) float32 or None;
    parameter ``bias`` (out,) or None. The buffers move between devices with the module and never
    change dtype: ``.to(dtype)`` reaches the bias alone. ``compute`` is one of ``COMPUTES``.
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
            made = cls(
                (weight.shape[0], weight.shape[1]), linear.bias is not None, format, weight.dtype
            )
        if weight.device.type != "meta":
            if second_moments is None:
                made.codes, made.scale = format.quantize(weight)
            else:
                made.codes, made.scale = gptq_codes(format, weight, second_moments)
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

    def set_compute(self, compute: str) -> None:
        """Choose the arithmetic; what was found for another is forgotten."""
        self.compute = compute
        self.kernel_choices = {}

    def way(self, device: torch.device, dtype: torch.dtype) -> KernelChoice:
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
        reasons = []
        for kernel in self.format.kernels:
            reason = kernel.refuses(self.out_features, self.in_features) or kernel_error(
                kernel, device, self.format.storage, dtype
            )
            if not reason:
                return KernelChoice(kernel)
            reasons.append(f"{kernel.name}: {reason}")
        way = KernelChoice(None, "; ".join(reasons))
        tell_once(f"{self.format.name} on {device.type}: {way}")
        return way

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.way(x.device, x.dtype).kernel
        if kernel is None or x.requires_grad or not x.numel():
            return self.dequantized(x)
        out = self.multiplied(kernel, x.reshape(-1, self.in_features))
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)
        return out.unflatten(0, x.shape[:-1]) if x.ndim != 2 else out

    def multiplied(self, kernel: Kernel, x: Tensor) -> Tensor:
        """The kernel's product with x (tokens, in), many tokens in parts.

        A product passes through 32 bits, which for all tokens of a large picture at once would be
        the largest tensor of the run. A compiler fuses that away, and is left alone.
        """
        block = self.format.block(self.in_features)
        part = max(256, PRODUCT_BYTES // (4 * self.out_features) // 256 * 256)
        if torch.compiler.is_compiling() or len(x) <= part:
            return kernel.multiply(x, self.codes, self.scale, block)
        out = x.new_empty(len(x), self.out_features)
        for to, some in zip(out.split(part), x.split(part), strict=True):
            to.copy_(kernel.multiply(some, self.codes, self.scale, block))
        return out

    def dequantized(self, x: Tensor) -> Tensor:
        """The product in the dtype of x.

        Codes are exact in bfloat16 and scaled weights are not, so the row scales are applied to the
        output, where they cost less as well. float16 has no room for that.
        """
        bias = None if self.bias is None else self.bias.to(x.dtype)
        x = self.format.rotate(x)
        if self.scale is None or x.dtype == torch.float16:
            return product(x, lambda: self.format.held(self.codes, self.scale, x.dtype), bias)
        out, scale = product(x, lambda: self.codes.to(x.dtype)), self.scale.to(x.dtype).view(-1)
        return out * scale if bias is None else torch.addcmul(bias, out, scale)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, format={self.format.name}"


class Widened(torch.autograd.Function):
    """x W^T + b with a W that is made again for the backward pass instead of being kept, so that
    training through codes holds no second copy of the weights."""

    @staticmethod
    def forward(ctx, x: Tensor, make: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.make = make
        return F.linear(x, make(), bias)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, Tensor | None]:
        (grad,) = grads
        of_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return grad @ ctx.make(), None, of_bias


def product(x: Tensor, make: Callable[[], Tensor], bias: Tensor | None = None) -> Tensor:
    """x times the weight that a function makes; x may have a gradient, the weight has none."""
    if x.requires_grad and torch.is_grad_enabled():
        return Widened.apply(x, make, bias)  # pyright: ignore[reportReturnType]
    return F.linear(x, make(), bias)


_told: set[str] = set()


def tell_once(message: str) -> None:
    """Log a fallback the first time that it happens."""
    if message not in _told:
        _told.add(message)
        log.warning("%s", message)

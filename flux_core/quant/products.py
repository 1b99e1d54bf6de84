"""Products of 16 bits, also on a CPU that has no instructions for them.

torch multiplies bfloat16 and float16 number by number where a CPU (most desktops', say) lacks the
instructions: a hundred times slower than float32. There the products are made in float32 and
rounded once, which is what the instructions do. Everywhere else these are torch's own functions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def slow_dtypes() -> frozenset[torch.dtype]:
    """Dtypes of two bytes whose products this CPU has no instructions for."""
    supported = {
        torch.bfloat16: getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None),
        torch.float16: getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None),
    }
    return frozenset(dtype for dtype, ask in supported.items() if ask is None or not ask())


SLOW_DTYPES = slow_dtypes()


def is_slow(x: Tensor, weight: Tensor) -> bool:
    """Whether x (..., in) and a weight (out, in) are slow to multiply.

    Of unlike dtypes there is no product, and torch says so.
    """
    return x.dtype in SLOW_DTYPES and x.device.type == "cpu" and weight.dtype == x.dtype


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in) times a weight (out, in), and a bias (out,): (..., out)."""
    if not is_slow(x, weight):
        return F.linear(x, weight, bias)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """x (..., n) times y (..., n, m): (..., m)."""
    return (x.float() @ y.float()).to(x.dtype) if is_slow(x, y) else x @ y


class Linear(nn.Linear):
    """torch's, by ``linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return linear(input, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """torch's, in float32 where that is faster."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, in, H, W) to (B, out, H', W')."""
        if not is_slow(input, self.weight):
            return super().forward(input)
        bias = None if self.bias is None else self.bias.float()
        return self._conv_forward(input.float(), self.weight.float(), bias).to(input.dtype)


def use_fast_linears(module: nn.Module) -> None:
    """Let another library's module multiply as ours do."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear

"""Trying a kernel on a device: the one way to know whether it works there."""

from __future__ import annotations

from functools import cache

import torch

from .format import Format
from .kernels import Kernel

#: A kernel rounds as its reference does, and sums in another order.
TOLERANCE = 0.02


@cache
def kernel_error(kernel: Kernel, format: Format, device: torch.device, dtype: torch.dtype) -> str:
    """Why a kernel cannot multiply a format's tensors on a device, in words; empty where it can.

    ``dtype`` is that of the inputs. Products of all the kernel's ``trials`` are tried.
    """
    with torch.inference_mode():
        for sizes in kernel.trials:
            if reason := product_error(kernel, format, device, dtype, sizes):
                return reason
    return ""


def product_error(
    kernel: Kernel,
    format: Format,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, int, int],
) -> str:
    """What is wrong with a product of so many tokens, outputs and inputs; empty where nothing."""
    tokens, out_features, in_features = sizes
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, in_features, generator=generator).to(device, dtype)
    stored = format.quantize(torch.randn(out_features, in_features, generator=generator))
    tensors = {name: tensor.to(device) for name, tensor in stored.items()}
    try:
        output = kernel.multiply(x, tensors, format.block(in_features)).float()
    except Exception as error:  # whatever it is, it is the reason
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    expected = kernel.reference(x, tensors, format.block(in_features))
    off = float((output - expected).norm() / expected.norm())
    return "" if off < TOLERANCE else f"its result is {off:.0%} off the reference's"

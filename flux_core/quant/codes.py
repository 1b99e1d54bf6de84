"""Codes as numbers. torch casts e4m3fn on a CPU number by number, which takes as long as a product;
here whole vectors are cast.

    e4m3fn  s eeee mmm                  bias 7
    float16 s eeeee mmmmmmmmmm          bias 15

Shifted to where float16 has them, exponent and mantissa stand for 2^-8 times the number, subnormals
among them. NaN, all ones, becomes float16's by a carry into the exponent.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Codes that are cast at once, so that what is between takes next to nothing.
PART = 1 << 16
#: Below so many codes, torch's cast.
FEW = 1 << 20


def numbers_of(codes: Tensor, dtype: torch.dtype, always: bool = False) -> Tensor:
    """Codes of any shape cast to a dtype, as ``codes.to(dtype)`` does, to the bit but for those of
    NaN; ``always``: also where they are few."""
    quick = codes.dtype == torch.float8_e4m3fn and codes.device.type == "cpu"
    few = codes.numel() < FEW and not always
    if not quick or few or torch.compiler.is_compiling():
        return codes.to(dtype)
    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    for into, part in zip(out.view(-1).split(PART), codes.flatten().split(PART), strict=True):
        bits = part.view(torch.int8).to(torch.int16)  # the sign fills the upper byte
        bits.bitwise_left_shift_(7).bitwise_and_(~0x4000)
        bits.bitwise_or_((bits + 0x80).bitwise_and_(0x4000))
        # float16 to bfloat16 is slow again, by way of float32 it is not
        half = bits.view(torch.float16)
        into.copy_(half.float() if dtype == torch.bfloat16 else half)
    return out.mul_(256)

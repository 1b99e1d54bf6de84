"""The register of precisions by name."""

from __future__ import annotations

import torch

from .format import Format
from .fp8 import PlainFloat8, ScaledFloat8
from .int8 import Int8

FULL_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        PlainFloat8("fp8_e4m3fn", torch.float8_e4m3fn),
        PlainFloat8("fp8_e5m2", torch.float8_e5m2),
        ScaledFloat8(),
        Int8(),
    )
}
#: Those that come with FluxFit; one that is added to ``FORMATS`` later is accepted as well.
PRECISIONS = (*FULL_PRECISIONS, *FORMATS)


def full_dtype(precision: str) -> torch.dtype:
    """The dtype of everything that a precision does not quantize: bf16 where it quantizes."""
    precisions = (*FULL_PRECISIONS, *FORMATS)
    if precision not in precisions:
        raise ValueError(f"precision is {precision!r}, expected one of {', '.join(precisions)}")
    return FULL_PRECISIONS.get(precision, torch.bfloat16)

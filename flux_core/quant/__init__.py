"""Storage precision of linear layers: one file a family of formats, one quantized Linear."""

from .formats import FORMATS, PRECISIONS, Format, full_dtype
from .linear import QuantizedLinear, quantize, quantized_names

__all__ = [
    "FORMATS",
    "PRECISIONS",
    "Format",
    "QuantizedLinear",
    "full_dtype",
    "quantize",
    "quantized_names",
]

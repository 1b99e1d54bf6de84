"""Storage precision of linear layers: one file a family of formats, one quantized Linear."""

from .contract import Format
from .formats import FORMATS, PRECISIONS, full_dtype
from .linear import COMPUTES, QuantizedLinear
from .moments import record_moments
from .plan import Precision, PrecisionPlan
from .walk import arithmetic_of, quantize, quantized_linears, quantized_names, set_compute

__all__ = [
    "COMPUTES",
    "FORMATS",
    "PRECISIONS",
    "Format",
    "Precision",
    "PrecisionPlan",
    "QuantizedLinear",
    "arithmetic_of",
    "full_dtype",
    "quantize",
    "quantized_linears",
    "quantized_names",
    "record_moments",
    "set_compute",
]

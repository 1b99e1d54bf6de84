"""Storage precision of linear layers: one file a family of formats, one quantized Linear."""

from .apply import kernels_used, quantize, quantized_linears, quantized_names, set_compute
from .format import Format, RowFormat, TensorSpec
from .hadamard import forget_matrices
from .linear import COMPUTES, QuantizedLinear
from .precision import Precision, PrecisionPlan
from .registry import FORMATS, PRECISIONS, full_dtype

__all__ = [
    "COMPUTES",
    "FORMATS",
    "PRECISIONS",
    "Format",
    "Precision",
    "PrecisionPlan",
    "QuantizedLinear",
    "RowFormat",
    "TensorSpec",
    "forget_matrices",
    "full_dtype",
    "kernels_used",
    "quantize",
    "quantized_linears",
    "quantized_names",
    "set_compute",
]

"""The float8 formats: range and errors."""

from __future__ import annotations

import torch
from torch import nn

from flux_core.quant import FORMATS, QuantizedLinear
from tests import tiny_models


def linear_of(row: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(8, 3)
    with torch.no_grad():
        linear.weight.copy_(row.expand(3, 8))
    return linear


def test_plain_casts_saturate_at_their_largest_number():
    row = torch.tensor([1e6, -1e6, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    for precision, largest in (("fp8_e4m3fn", 448.0), ("fp8_e5m2", 57344.0)):
        layer = QuantizedLinear.from_linear(linear_of(row), FORMATS[precision])
        assert layer.codes.float()[0, :4].tolist() == [largest, -largest, 0.0, 1.0]


def test_scaled_is_better_than_plain_where_weights_are_small():
    weight = 0.002 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    errors = {
        name: tiny_models.relative(f.dequantize(f.quantize(weight), torch.float32), weight)
        for name, f in FORMATS.items()
    }
    assert errors["fp8_scaled"] < 0.5 * errors["fp8_e4m3fn"]

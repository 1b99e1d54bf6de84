"""What holds for every format."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flux_core.quant import FORMATS, QuantizedLinear
from tests import tiny_models

FLOAT8 = sorted(FORMATS)


ROWS = {
    "zeros": torch.zeros(8),
    "one enormous": torch.tensor([1e30, 1.0, -1.0, 1e-3, 0.0, 2.0, 3.0, 4.0]),
    "beyond e4m3": torch.tensor([500.0, -500.0, 448.0, -448.0, 1.0, 2.0, 3.0, 4.0]),
    "beyond e5m2": torch.tensor([1e5, -1e5, 57344.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
    "subnormals": torch.full((8,), 1e-40),
    "tiny": torch.full((8,), 3e-38),
    "common": torch.linspace(-0.1, 0.1, 8),
}


def linear_of(row: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(8, 3)
    with torch.no_grad():
        linear.weight.copy_(row.expand(3, 8))
    return linear


@pytest.mark.parametrize("precision", FLOAT8)
@pytest.mark.parametrize("rows", ROWS)
def test_no_weight_becomes_nan_or_infinite(rows, precision):
    layer = QuantizedLinear.from_linear(linear_of(ROWS[rows]), FORMATS[precision])
    back = layer.dequantize(torch.float32)
    assert back.isfinite().all()
    assert layer(torch.ones(2, 8)).isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1e4), st.integers(0, 2**31))
def test_relative_error_stays_in_the_format_s_own(deviation, seed):
    weight = deviation * torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    scaled = FORMATS["fp8_scaled"]
    back = scaled.dequantize(scaled.quantize(weight), torch.float32)
    assert tiny_models.relative(back, weight) < 0.04  # three bits of mantissa: 2.6 % of a Gaussian

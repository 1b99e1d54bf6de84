"""Codes become the numbers that torch's cast makes of them."""

from __future__ import annotations

import pytest
import torch

from flux_core.quant import FORMATS, QuantizedLinear, codes
from flux_core.quant.codes import numbers_of

EVERY = torch.arange(256, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
def test_every_code_to_the_bit(storage, dtype, monkeypatch):
    monkeypatch.setattr(codes, "PART", 100)  # parts, and a rest
    every = EVERY.view(storage)
    wide = EVERY.repeat(3).view(storage).view(16, 48)
    for stored in (every.view(16, 16), wide[:, 1::2], wide.T, every[:0]):
        expected, numbers = stored.to(dtype), numbers_of(stored, dtype, always=True)
        assert numbers.dtype == dtype and numbers.shape == expected.shape
        assert torch.equal(numbers.isnan(), expected.isnan())
        whole = expected.isfinite()
        assert torch.equal(numbers[whole], expected[whole])
        assert torch.equal(numbers[whole].signbit(), expected[whole].signbit())


@pytest.mark.parametrize("precision", ["fp8_e4m3fn", "fp8_scaled"])
def test_large_layers_multiply_as_small_ones_do(precision, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(64, 96).requires_grad_(False)
    x = torch.randn(5, 64, generator=generator)
    layer = QuantizedLinear.from_linear(linear, FORMATS[precision])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        expected = layer(x.to(dtype)), layer.dequantize(dtype)
        with monkeypatch.context() as patch:
            patch.setattr(codes, "FEW", 0)
            assert all(map(torch.equal, (layer(x.to(dtype)), layer.dequantize(dtype)), expected))

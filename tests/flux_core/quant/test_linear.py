"""The quantized layer: casts, products, gradients."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from flux_core import (
    FluxTransformer,
    kernels_used,
    quantize,
    set_compute,
)
from flux_core.quant import FORMATS, QuantizedLinear, notices
from flux_core.quant import linear as linear_module
from tests import tiny_models


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_through_codes_are_those_of_the_dequantized_layer(name, dtype):
    torch.manual_seed(0)
    plain = nn.Linear(64, 48).to(dtype)
    quantized = QuantizedLinear.from_linear(copy.deepcopy(plain), FORMATS[name])
    with torch.no_grad():
        plain.weight.copy_(quantized.dequantize(torch.float32))
    x, grad = torch.randn(2, 5, 64).to(dtype), torch.randn(2, 5, 48).to(dtype)
    gradients_seen = []
    for layer in (plain, quantized):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.backward(grad)
        gradients_seen.append((out, given.grad, layer.bias.grad))
    for expected, got in zip(*gradients_seen, strict=True):
        assert tiny_models.relative(got, expected) < (1e-5 if dtype == torch.float32 else 5e-3)


def test_a_backward_pass_keeps_no_second_copy_of_the_weights():
    layer = quantize(nn.Sequential(nn.Linear(512, 512, bias=False)), "fp8_scaled")
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(torch.randn(4, 512, requires_grad=True))
    assert all(t.numel() <= 512 * 4 for t in held)


def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer()


def test_casting_a_quantized_module_leaves_its_codes(tmp_path):
    model = quantize(transformer(), "fp8_scaled")
    layer = model.double_blocks[0].img_attn.qkv
    codes, scale = layer.codes.clone(), layer.scale.clone()
    model.to(torch.float16)
    assert layer.codes.dtype == torch.float8_e4m3fn and torch.equal(layer.codes, codes)
    assert layer.scale.dtype == torch.float32 and torch.equal(layer.scale, scale)
    assert layer.bias.dtype == torch.float16


def random(*shape: int, seed: int = 0, deviation: float = 1.0) -> torch.Tensor:
    return deviation * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(out_features: int, in_features: int, seed: int = 1) -> nn.Linear:
    new_layer = nn.Linear(in_features, out_features)
    with torch.no_grad():
        new_layer.weight.copy_(random(out_features, in_features, seed=seed, deviation=0.02))
        new_layer.bias.copy_(random(out_features, seed=seed + 1))
    return new_layer


def test_a_shape_that_no_kernel_takes_falls_back_and_says_so_once(caplog):
    notices._warned.clear()
    model = nn.Sequential(*(linear(20, 20) for _ in range(3)))
    set_compute(quantize(model, "fp8_scaled"), "native")
    with caplog.at_level(logging.WARNING):
        model(random(4, 20))
    assert caplog.text.count("20x20 is no multiple of 16") == 2  # two kernels, one line
    assert len(caplog.records) == 1
    (line,) = kernels_used(model)
    assert line.startswith("fp8_scaled, dequantize (float8, scales a row: 20x20 is no multiple")
    assert kernels_used(model)[line] == 3


@pytest.mark.parametrize("precision", sorted(FORMATS))
def test_many_tokens_are_multiplied_in_parts_with_the_same_result(precision, monkeypatch):
    layer = QuantizedLinear.from_linear(linear(32, 64), FORMATS[precision])
    layer.set_compute("native")
    x = random(2, 300, 64)
    whole = layer(x)
    monkeypatch.setattr(linear_module, "PRODUCT_BYTES", 1)
    assert torch.equal(layer(x), whole)


def test_gradients_go_through_a_quantized_layer():
    quantized = QuantizedLinear.from_linear(linear(32, 64), FORMATS["int8"])
    quantized.set_compute("native")
    x = random(3, 64).requires_grad_()
    quantized(x).square().sum().backward()
    exact = random(3, 64).requires_grad_()
    linear(32, 64)(exact).square().sum().backward()
    assert tiny_models.relative(x.grad, exact.grad) < 0.05


def test_compute_is_checked():
    with pytest.raises(ValueError, match="'fast', expected one of auto, dequantize, native"):
        set_compute(nn.Sequential(), "fast")

"""Products of 16 bits on a CPU that has no instructions for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import AutoEncoder
from flux_core.models.text_encoders import ClipEncoder, T5Encoder
from flux_core.quant import FORMATS, QuantizedLinear, products
from flux_core.quant.products import Conv2d, Linear, linear, matmul
from tests import tiny_models
from tests.flux_core.models.test_text_encoders import clip_model, t5_model

DTYPES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def without_instructions(monkeypatch):
    monkeypatch.setattr(products, "SLOW_DTYPES", frozenset(DTYPES))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


LINEAR, CONV = torch.nn.Linear(16, 4), torch.nn.Conv2d(3, 5, 3, padding=1)
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: linear(x, x[:3], x[:3, 0]),
    "no bias": lambda x: linear(x, x[:3]),
    "matmul": lambda x: matmul(x, x.T),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CALLS)
def test_they_are_made_in_float32_and_rounded_once(name, dtype):
    x = random(8, 16).to(dtype)
    assert torch.equal(CALLS[name](x), CALLS[name](x.float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [(Linear(16, 4), LINEAR, (8, 16)), (Conv2d(3, 5, 3, padding=1), CONV, (2, 3, 8, 8))],
    ids=["linear", "conv"],
)
def test_layers_multiply_as_torch_s_in_float32(ours, theirs, shape, dtype):
    ours.float().load_state_dict(theirs.state_dict())
    x, wide = random(*shape).to(dtype), ours.to(dtype)
    assert torch.equal(wide(x), theirs.to(dtype).float()(x.float()).to(dtype))
    theirs.float()


def test_of_what_torch_does_itself_nothing_is_changed():
    x, half = random(4, 4), random(4, 4).bfloat16()
    assert torch.equal(linear(x, x), F.linear(x, x)) and torch.equal(matmul(x, x), x @ x)
    assert linear(half.to("meta"), half.to("meta")).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):  # a mistake stays one
        linear(x, half)


@pytest.mark.parametrize("format", FORMATS)
def test_a_quantized_layer_and_its_gradients_are_those_of_float32(format):
    layer = QuantizedLinear.from_linear(torch.nn.Linear(64, 32), FORMATS[format])
    x = random(5, 64).bfloat16().requires_grad_()
    y = layer(x)
    y.sum().backward()
    weight = layer.dequantize(torch.bfloat16).float()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert torch.allclose(x.grad.float(), weight.sum(0).expand(5, 64), rtol=0.03, atol=0.03)
    assert tiny_models.relative(y, F.linear(x.float(), weight, layer.bias)) < 0.01


@pytest.mark.parametrize(
    "module",
    [
        tiny_models.flux_transformer(),
        AutoEncoder(tiny_models.VAE),
        ClipEncoder(clip_model().config),
        T5Encoder(t5_model().config),
    ],
    ids=lambda module: module.part if hasattr(module, "part") else "clip_l",
)
def test_every_layer_of_every_model_multiplies_so(module):
    theirs = [
        name
        for name, layer in module.named_modules()
        if type(layer) in (torch.nn.Linear, torch.nn.Conv2d)
    ]
    assert not theirs

"""Products of 16 bits on a CPU that has no instructions for them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flux_core.quant import FORMATS, QuantizedLinear, cpu_products
from flux_core.quant.cpu_products import Float32Products, fast_products, with_fast_products

CPU = torch.device("cpu")
DTYPES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def without_instructions(monkeypatch):
    monkeypatch.setattr(cpu_products, "SLOW_DTYPES", frozenset(DTYPES))


@pytest.fixture
def multiplied(monkeypatch) -> list[torch.dtype]:
    """The dtypes that products were really made in."""
    dtypes: list[torch.dtype] = []

    def noting(function):
        def call(*args, **kwargs):
            dtypes.append(args[0].dtype)
            return function(*args, **kwargs)

        return call

    products = {function: noting(function) for function in cpu_products.PRODUCTS}
    original = Float32Products.__torch_function__

    def torch_function(self, func, types, args=(), kwargs=None):
        if func not in products:
            return original(self, func, types, args, kwargs)
        monkeypatch.setattr(cpu_products, "PRODUCTS", {*products, products[func]})
        return original(self, products[func], types, args, kwargs)

    monkeypatch.setattr(Float32Products, "__torch_function__", torch_function)
    return dtypes


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


CALLS = {
    "linear": lambda x: F.linear(x, x[:3], x[:3, 0]),
    "matmul": lambda x: x @ x.T,
    "einsum": lambda x: torch.einsum("ab,cb->ac", x, x),
    "bmm": lambda x: torch.bmm(x[None], x.T[None]),
    "conv2d": lambda x: F.conv2d(x[None, None], x[None, None, :3, :3], padding=1),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [n for n in CALLS if n != "einsum"])
def test_they_are_made_in_float32_and_rounded_once(name, dtype, multiplied):
    x = random(8, 16, dtype=dtype)
    expected = CALLS[name](x.float()).to(dtype)
    with fast_products(CPU):
        assert torch.equal(CALLS[name](x), expected)
    assert multiplied == [torch.float32]


def test_an_einsum_is_rounded_once_too():
    x = random(8, 16, dtype=torch.bfloat16)
    with fast_products(CPU):
        assert torch.equal(CALLS["einsum"](x), CALLS["einsum"](x.float()).bfloat16())


def test_other_dtypes_and_devices_are_left_alone(multiplied):
    x, half = random(4, 4), random(4, 4, dtype=torch.bfloat16)
    with fast_products(CPU):
        assert torch.equal(x @ x, x.mm(x)) and (half.to("meta") @ half.to("meta")).is_meta
        with pytest.raises(RuntimeError):
            F.linear(x, half)  # a mistake stays one
    assert multiplied == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    assert type(fast_products(torch.device("meta"))) is not Float32Products


@pytest.mark.parametrize("format", FORMATS)
def test_gradients_of_layers_are_as_in_float32(format):
    layer = QuantizedLinear.from_linear(torch.nn.Linear(64, 32), FORMATS[format])
    x = random(5, 64, dtype=torch.bfloat16).requires_grad_()
    with fast_products(CPU):
        layer(x).sum().backward()
    assert x.grad is not None
    weight = layer.dequantize(torch.bfloat16).float()
    assert torch.allclose(x.grad.float(), weight.sum(0).expand(5, 64), rtol=0.03, atol=0.03)


def test_a_method_has_it_by_its_inputs_and_on_a_fast_cpu_is_itself(monkeypatch, multiplied):
    def method(_, x, *, y=None):
        return x @ y

    x = random(4, 4, dtype=torch.bfloat16)
    fast = with_fast_products(method)
    assert torch.equal(fast(None, x, y=x), (x.float() @ x.float()).bfloat16())
    assert multiplied == [torch.float32]
    monkeypatch.setattr(cpu_products, "SLOW_DTYPES", frozenset())
    assert with_fast_products(method) is method

"""Native kernels: equal to their references, finite, with small errors."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flux_core import FluxTransformer, quantize, set_compute
from flux_core.quant import FORMATS, QuantizedLinear
from flux_core.quant.kernels import Float8Rows, Float8Tensor, Int8Tokens
from tests import tiny_models

NATIVE = [
    (Float8Rows(), "fp8_scaled"),
    (Float8Rows(), "fp8_e4m3fn"),
    (Float8Rows(), "fp8_e5m2"),
    (Float8Tensor(), "fp8_scaled"),
    (Float8Tensor(), "fp8_e5m2"),
    (Int8Tokens(), "int8"),
]


CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0, deviation: float = 1.0) -> torch.Tensor:
    return deviation * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(out_features: int, in_features: int, seed: int = 1) -> nn.Linear:
    new_layer = nn.Linear(in_features, out_features)
    with torch.no_grad():
        new_layer.weight.copy_(random(out_features, in_features, seed=seed, deviation=0.02))
        new_layer.bias.copy_(random(out_features, seed=seed + 1))
    return new_layer


@pytest.mark.parametrize(("kernel", "precision"), NATIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernel_equals_its_reference(kernel, precision, dtype):
    format = FORMATS[precision]
    tensors = format.quantize(random(96, 128, deviation=0.02))
    x = random(7, 128, seed=2).to(dtype)
    result = kernel.multiply(x, tensors, format.block(128))
    expected = kernel.reference(x, tensors, format.block(128))
    assert result.dtype == dtype
    assert tiny_models.relative(result, expected) < (1e-5 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("precision", sorted(FORMATS))
def test_native_loses_little_more_than_dequantize(precision):
    layer, x = linear(256, 512), random(64, 512, seed=3)
    expected = layer(x)
    quantized = QuantizedLinear.from_linear(layer, FORMATS[precision])
    errors = {}
    for compute in ("dequantize", "native"):
        quantized.set_compute(compute)
        errors[compute] = tiny_models.relative(quantized(x), expected)
        assert (quantized.kernel_choice(CPU, x.dtype).kernel is not None) == (compute == "native")
    assert errors["dequantize"] < errors["native"] < 1.5 * errors["dequantize"]


HARD = {
    "zeros": lambda x: x * 0,
    "one enormous": lambda x: torch.where(torch.arange(x.shape[-1]) == 3, 1e4, x),
    "all of 1e4": lambda x: x.sign() * 1e4,
    "subnormals": lambda x: x * 1e-39,
}


@settings(max_examples=80, deadline=None)
@given(
    precision=st.sampled_from(sorted(FORMATS)),
    compute=st.sampled_from(["auto", "dequantize", "native"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    rows=st.sampled_from(sorted(HARD)),
    inputs=st.sampled_from(sorted(HARD)),
    batch=st.integers(0, 3),
    tokens=st.sampled_from([1, 5, 33]),
    shape=st.sampled_from([(32, 64), (16, 16), (24, 40), (7, 13), (3, 1)]),
)
def test_nothing_becomes_nan_or_infinite(
    precision, compute, dtype, rows, inputs, batch, tokens, shape
):
    layer = linear(*shape)
    with torch.no_grad():
        layer.weight[: max(1, shape[0] // 2)] = HARD[rows](layer.weight[: max(1, shape[0] // 2)])
    quantized = QuantizedLinear.from_linear(layer, FORMATS[precision])
    quantized.set_compute(compute)
    x = HARD[inputs](random(batch, tokens, shape[1], seed=5)).to(dtype)
    out = quantized(x)
    assert out.shape == (batch, tokens, shape[0]) and out.dtype == dtype
    assert out.isfinite().all()


def outliers(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of standard deviation 0.02 with one in ten thousand 25 times as large."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if p.ndim == 2:
                p.copy_(0.02 * torch.randn(p.shape, generator=generator))
                rare = torch.rand(p.shape, generator=generator) < 1e-4
                p[rare] *= 25
            elif name.endswith("bias"):
                p.zero_()
    return module


def test_errors_of_the_whole_transformer_keep_their_bounds():
    kwargs = tiny_models.inputs()
    errors = {}
    original = outliers(FluxTransformer(tiny_models.DEV))
    for precision in ("fp32", *sorted(FORMATS)):
        model = quantize(copy.deepcopy(original), precision)
        for compute in ("dequantize", "native"):
            set_compute(model, compute)
            with torch.no_grad():
                errors[precision, compute] = model(**kwargs)
    exact = errors["fp32", "dequantize"]
    lost = {key: tiny_models.relative(value, exact) for key, value in errors.items()}
    plain = lost["fp8_e4m3fn", "dequantize"]
    assert lost["fp8_scaled", "dequantize"] <= 0.85 * plain
    assert lost["int8", "dequantize"] <= 0.45 * plain
    for precision in FORMATS:
        assert lost[precision, "native"] <= 1.5 * lost[precision, "dequantize"]


def test_nothing_is_compiled_again_for_other_values():
    model = set_compute(
        quantize(outliers(FluxTransformer(tiny_models.ONE_OF_EACH)), "int8"), "native"
    ).eval()
    kwargs = tiny_models.inputs()
    with torch.no_grad():
        eager = model(**kwargs)  # finds the arithmetic
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert tiny_models.relative(compiled(**kwargs), eager) < 1e-5
        with torch.compiler.set_stance("fail_on_recompile"):
            for share in (0.2, 0.9):
                compiled(**kwargs | {"timesteps": kwargs["timesteps"] * share})
                compiled(**kwargs | {"txt": kwargs["txt"] * share, "y": kwargs["y"] * share})
    torch._dynamo.reset()

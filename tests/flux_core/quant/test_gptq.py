"""Codes chosen by GPTQ for what a layer reads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_core.quant import FORMATS
from flux_core.quant.gptq import damped, gptq_codes, gptq_quantize, loss, second_moments_of
from tests import tiny_models

CPU = torch.device("cpu")


def correlated(tokens: int, width: int, rank: int = 8) -> torch.Tensor:
    """Inputs that go together: a few directions and a little noise."""
    return torch.randn(tokens, rank) @ torch.randn(rank, width) + 0.1 * torch.randn(tokens, width)


def output_error(format, tensors, weight, x) -> float:
    back = format.dequantize(tensors, torch.float32)
    return tiny_models.relative(x @ back.T, x @ weight.T)


@pytest.mark.parametrize("width", [256, 512, 48])
@pytest.mark.parametrize("name", FORMATS)
def test_less_is_lost_on_inputs_that_were_not_seen(name, width):
    torch.manual_seed(0)
    format, weight = FORMATS[name], 0.1 * torch.randn(64, width)
    x = correlated(2048, width)
    seen, other = x[:1024], x[1024:]
    rounded = gptq_quantize(format, weight, second_moments_of(seen) / len(seen))
    nearest = format.quantize(weight)
    assert rounded["codes"].dtype == format.storage and rounded["codes"].shape == weight.shape
    if format.scaled:
        assert torch.equal(rounded["scale"], nearest["scale"])
    lost = [output_error(format, tensors, weight, other) for tensors in (rounded, nearest)]
    assert lost[0] < 0.6 * lost[1]


@pytest.mark.parametrize("name", FORMATS)
def test_inputs_that_do_not_go_together_take_the_nearest(name):
    format, weight = FORMATS[name], torch.randn(16, 512)
    rounded, scale = gptq_codes(format, weight, 3.0 * torch.eye(256).expand(2, 256, 256))
    tensors = format.quantize(weight)
    nearest, expected = tensors["codes"], tensors.get("scale")
    # rotated there and back the identity is one to rounding, and a tie may fall either way
    assert (rounded.float() != nearest.float()).float().mean() < 1e-3
    assert (scale is None and expected is None) or torch.equal(scale, expected)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.integers(0, 2**31), st.sampled_from([16, 48, 256, 512]))
def test_no_row_loses_more_and_every_code_is_finite(name, seed, width):
    torch.manual_seed(seed)
    format, weight = FORMATS[name], torch.randn(6, width)
    weight[0], weight[1, 0], weight[2] = 0, 1e6, 1e-39
    x = correlated(64, width)
    x[:, 3] = 0
    x[:, 5] *= 1e3
    second_moments = second_moments_of(x) / len(x)
    codes, scale = gptq_codes(format, weight, second_moments)
    nearest = format.quantize(weight)["codes"]
    assert codes.float().isfinite().all()
    scaled, _ = format.prepare(weight)
    turned = format.rotate(format.rotate(second_moments).transpose(1, 2))
    assert (loss(scaled, codes, turned) <= loss(scaled, nearest, turned)).all()
    assert scale is None or scale.isfinite().all()


def test_inputs_that_were_all_zero_serve():
    weight = torch.randn(4, 64)
    format = FORMATS["int8"]
    assert torch.equal(damped(torch.zeros(1, 64, 64)), torch.eye(64)[None])
    codes, _ = gptq_codes(format, weight, torch.zeros(1, 64, 64))
    assert torch.equal(codes, format.quantize(weight)["codes"])

"""Float8 storage: what it does to numbers, and to modules."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flux_core import FluxControlNet, FluxTransformer, load_t5, load_transformer, quantize
from flux_core.models.config import ControlNetConfig
from flux_core.quant import FORMATS, QuantizedLinear
from tests import tiny_models as tiny
from tests.flux_core.models.test_parity import t5_model

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


def test_plain_casts_saturate_at_their_largest_number():
    row = torch.tensor([1e6, -1e6, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    for precision, largest in (("fp8_e4m3fn", 448.0), ("fp8_e5m2", 57344.0)):
        layer = QuantizedLinear.from_linear(linear_of(row), FORMATS[precision])
        assert layer.codes.float()[0, :4].tolist() == [largest, -largest, 0.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-6, 1e4), st.integers(0, 2**31))
def test_relative_error_stays_in_the_format_s_own(deviation, seed):
    weight = deviation * torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
    scaled = FORMATS["fp8_scaled"]
    back = scaled.dequantize(scaled.quantize(weight), torch.float32)
    assert tiny.relative(back, weight) < 0.04  # three bits of mantissa: 2.6 % of a Gaussian


def test_scaled_is_better_than_plain_where_weights_are_small():
    weight = 0.002 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    errors = {
        name: tiny.relative(f.dequantize(f.quantize(weight), torch.float32), weight)
        for name, f in FORMATS.items()
    }
    assert errors["fp8_scaled"] < 0.5 * errors["fp8_e4m3fn"]


def transformer() -> FluxTransformer:
    return tiny.randomise(FluxTransformer(tiny.DEV))  # type: ignore[return-value]


@pytest.mark.parametrize("precision", FLOAT8)
def test_transformer_still_draws_the_same(precision):
    model, kwargs = transformer(), tiny.inputs()
    with torch.no_grad():
        before = model(**kwargs)
        assert quantize(model, precision) is model
        after = model(**kwargs)
    assert after.isfinite().all()
    assert 0 < tiny.relative(after, before) < (0.15 if precision == "fp8_e5m2" else 0.08)


def test_blocks_and_modulation_are_stored_in_a_byte_and_the_rest_is_not():
    model = quantize(transformer(), "fp8_e4m3fn")
    codes = [n for n, m in model.named_modules() if isinstance(m, QuantizedLinear)]
    assert "double_blocks.0.img_mod.lin" in codes and "single_blocks.4.linear2" in codes
    assert all(n.startswith(("double_blocks", "single_blocks")) for n in codes)
    assert not [n for n, m in model.named_modules() if "_blocks" in n and type(m) is nn.Linear]
    assert isinstance(model.img_in, nn.Linear) and isinstance(model.final_layer.linear, nn.Linear)


@pytest.mark.parametrize("precision", FLOAT8)
def test_a_second_call_changes_nothing_and_another_precision_is_refused(precision):
    model = quantize(transformer(), precision)
    before = copy.deepcopy(model.state_dict())
    quantize(model, precision)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for other in {*FLOAT8, "bf16"} - {precision}:
        with pytest.raises(ValueError, match=f"already quantized to {precision}"):
            quantize(model, other)


def test_nan_weights_are_refused_by_name_and_nothing_is_quantized():
    model = transformer()
    with torch.no_grad():
        model.single_blocks[2].linear1.weight[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"single_blocks\.2\.linear1"):
        quantize(model, "fp8_scaled")
    assert not [m for m in model.modules() if isinstance(m, QuantizedLinear)]


def test_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="'int3', expected one of bf16"):
        quantize(transformer(), "int3")


def test_mode_embedding_keeps_its_meaning_and_its_dtype():
    config = ControlNetConfig(**{**tiny.UPSCALER.__dict__, "num_modes": 10})
    net = tiny.randomise(FluxControlNet(config))
    kwargs = tiny.inputs()
    cond = torch.randn(kwargs["img"].shape, generator=torch.Generator().manual_seed(3))
    quantize(net, "fp8_e4m3fn")
    assert net.controlnet_mode_embedder.weight.dtype == torch.float32
    with torch.no_grad():
        by_mode = [net(**kwargs, cond=cond, mode=mode).double[0] for mode in (0, 6)]
        as_tensor = net(**kwargs, cond=cond, mode=torch.tensor([6, 6])).double[0]
    assert not torch.equal(*by_mode)
    assert torch.equal(by_mode[1], as_tensor)
    for wrong in (10, -1, None):
        with pytest.raises(ValueError, match="mode from 0 to 9"):
            net(**kwargs, cond=cond, mode=wrong)


@pytest.mark.parametrize("precision", FLOAT8)
def test_t5_is_quantized_but_its_embedding(precision, tmp_path):
    theirs = t5_model()
    state = theirs.state_dict()
    state.pop("encoder.embed_tokens.weight", None)
    path = tiny.save(state, tmp_path / "t.safetensors")
    ours = load_t5(path, precision=precision)
    assert ours.shared.weight.dtype == torch.bfloat16
    ids = torch.randint(0, 200, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = ours.float()(ids)
    assert result.isfinite().all()
    assert tiny.relative(result, theirs(input_ids=ids).last_hidden_state.detach()) < 0.15


def test_casting_a_quantized_module_leaves_its_codes(tmp_path):
    model = quantize(transformer(), "fp8_scaled")
    layer = model.double_blocks[0].img_attn.qkv
    codes, scale = layer.codes.clone(), layer.scale.clone()
    model.to(torch.float16)
    assert layer.codes.dtype == torch.float8_e4m3fn and torch.equal(layer.codes, codes)
    assert layer.scale.dtype == torch.float32 and torch.equal(layer.scale, scale)
    assert layer.bias.dtype == torch.float16


def test_loading_quantizes_as_quantize_does(tmp_path):
    theirs = tiny.diffusers_transformer()
    path = tiny.save(theirs.state_dict(), tmp_path / "m.safetensors")
    kwargs = tiny.inputs()
    for precision in FLOAT8:
        loaded = load_transformer(path, precision=precision)
        after = quantize(load_transformer(path, precision="fp32"), precision)
        pairs = zip(loaded.modules(), after.modules(), strict=True)
        for a, b in ((a, b) for a, b in pairs if isinstance(a, QuantizedLinear)):
            assert torch.equal(a.codes, b.codes)
        assert loaded(**kwargs).isfinite().all()

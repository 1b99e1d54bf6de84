"""Quantizing whole modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from flux_core import FluxControlNet, FluxTransformer, load_t5, quantize
from flux_core.models.config import ControlNetConfig
from flux_core.quant import FORMATS, QuantizedLinear
from tests import tiny_models
from tests.flux_core.models.test_text_encoders import t5_model

FLOAT8 = sorted(FORMATS)


def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer()


@pytest.mark.parametrize("precision", FLOAT8)
def test_transformer_still_draws_the_same(precision):
    model, kwargs = transformer(), tiny_models.inputs()
    with torch.no_grad():
        before = model(**kwargs)
        assert quantize(model, precision) is model
        after = model(**kwargs)
    assert after.isfinite().all()
    assert 0 < tiny_models.relative(after, before) < (0.15 if precision == "fp8_e5m2" else 0.08)


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
    config = ControlNetConfig(**{**tiny_models.UPSCALER.__dict__, "num_modes": 10})
    net = tiny_models.randomise(FluxControlNet(config))
    kwargs = tiny_models.inputs()
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
    path = tiny_models.save(state, tmp_path / "t.safetensors")
    ours = load_t5(path, precision=precision)
    assert ours.shared.weight.dtype == torch.bfloat16
    ids = torch.randint(0, 200, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result = ours.float()(ids)
    assert result.isfinite().all()
    assert tiny_models.relative(result, theirs(input_ids=ids).last_hidden_state.detach()) < 0.15

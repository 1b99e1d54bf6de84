"""Quantized files: written, read back to the bit, and read without building the 16-bit model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import load as bench_load
from flux_core import (
    CheckpointError,
    FluxControlNet,
    FluxTransformer,
    PrecisionPlan,
    load_controlnet,
    load_t5,
    load_transformer,
    quantize,
    save_module,
)
from flux_core.checkpoint.reader import open_source
from flux_core.checkpoint.save import PLAN_KEY
from flux_core.models.config import TransformerConfig
from flux_core.quant import FORMATS, QuantizedLinear
from flux_core.quant.int8 import Int8
from tests import tiny_models
from tests.flux_core.models.test_text_encoders import t5_model

LAYER = "double_blocks.0.img_attn.qkv"
SMALL = replace(tiny_models.DEV, depth=1, depth_single_blocks=2)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return set(first) == set(second) and all(
        torch.equal(first[k].view(torch.uint8), second[k].view(torch.uint8)) for k in first
    )


def transformer(precision: str) -> FluxTransformer:
    return quantize(tiny_models.flux_transformer(SMALL).bfloat16(), precision)


@pytest.mark.parametrize("precision", sorted(FORMATS))
@pytest.mark.parametrize("asked", ["the same", "as_stored"])
def test_what_is_saved_is_loaded_to_the_bit(precision, asked, tmp_path):
    model = transformer(precision)
    path = save_module(model, tmp_path / "m.safetensors")
    again = load_transformer(path, precision=precision if asked == "the same" else asked)
    assert same(model, again)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize("precision", sorted(FORMATS))
def test_controlnet_and_t5_are_saved_too(precision, tmp_path):
    net = quantize(
        tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER)).bfloat16(), precision
    )
    path = save_module(net, tmp_path / "c.safetensors")
    assert same(net, load_controlnet(path, precision="as_stored"))
    state = t5_model().state_dict()
    state.pop("encoder.embed_tokens.weight", None)
    t5 = load_t5(tiny_models.save(state, tmp_path / "t.safetensors"), precision=precision)
    path = save_module(t5, tmp_path / "q.safetensors")
    assert same(t5, load_t5(path, precision="as_stored"))


def test_layers_are_marked_as_the_host_marks_them(tmp_path):
    noted = {}
    for precision in sorted(FORMATS):
        path = save_module(transformer(precision), tmp_path / f"{precision}.safetensors")
        tensors = load_file(path)
        marker = tensors.get(f"{LAYER}.comfy_quant")
        parsed_note = None if marker is None else json.loads(bytes(marker.tolist()))
        noted[precision] = parsed_note
        scale = tensors.get(f"{LAYER}.weight_scale")
        if parsed_note is None:
            assert scale is None
        else:
            assert scale is not None and scale.dtype == torch.float32
            assert scale.shape == (tensors[f"{LAYER}.weight"].shape[0], 1)
    width = tiny_models.DEV.hidden_size
    block = FORMATS["int8"].block(width)
    assert noted == {
        "fp8_e4m3fn": None,
        "fp8_e5m2": None,
        "fp8_scaled": {"format": "float8_e4m3fn", "full_precision_matrix_mult": True},
        "int8": {
            "format": "int8_tensorwise",
            "per_row": True,
            "convrot": True,
            "convrot_groupsize": block,
        },
    }


def test_int8_of_the_host_with_another_block_and_one_scale_a_tensor(tmp_path):
    """Rotated in blocks of 16, and not rotated with a single scale: both mean what they say."""
    model = transformer("bf16")
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    name = "double_blocks.0.img_attn.proj"
    shape = tensors[f"{name}.weight"].shape
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for note, format in (
        ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 16}, Int8(16)),
        ({"format": "int8_tensorwise"}, Int8(1)),
    ):
        codes, scale = format.quantize(weight).values()
        if "convrot" not in note:
            scale = weight.abs().max().reshape(()) / 127
            codes = (weight / scale).round().to(torch.int8)
        file = tensors | {
            f"{name}.weight": codes,
            f"{name}.weight_scale": scale,
            f"{name}.comfy_quant": torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8),
        }
        path = tiny_models.save(file, tmp_path / "m.safetensors")
        for precision in ("as_stored", "int8", "fp32"):
            loaded = load_transformer(path, precision=precision)
            layer = loaded.get_submodule(name)
            if isinstance(layer, QuantizedLinear):
                assert torch.equal(layer.codes, codes)
            x = torch.randn(5, shape[1], generator=torch.Generator().manual_seed(1))
            expected = torch.nn.functional.linear(x, weight, tensors[f"{name}.bias"].float())
            assert tiny_models.relative(layer(x.to(torch.float32)), expected) < 0.02


def test_a_rotation_that_makes_no_sense_is_refused(tmp_path):
    path = save_module(transformer("int8"), tmp_path / "m.safetensors")
    tensors = load_file(path)
    for note, message in (
        ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 7}, "blocks of 7"),
        ({"format": "nvfp4"}, "format 'nvfp4', expected one of"),
    ):
        raw = torch.tensor(list(json.dumps(note).encode()), dtype=torch.uint8)
        broken = tiny_models.save(
            tensors | {f"{LAYER}.comfy_quant": raw}, tmp_path / "b.safetensors"
        )
        with pytest.raises(CheckpointError, match=message):
            load_transformer(broken)
    tensors.pop(f"{LAYER}.weight_scale")
    with pytest.raises(CheckpointError, match="int8 without a scale"):
        load_transformer(tiny_models.save(tensors, tmp_path / "b.safetensors"))


def test_a_quantized_file_is_loaded_at_any_precision(tmp_path):
    path = save_module(transformer("int8"), tmp_path / "m.safetensors")
    kwargs = tiny_models.inputs()
    with torch.no_grad():
        expected = load_transformer(path, precision="fp32")(**kwargs)
        for precision in ("fp8_scaled", "int8", "bf16"):
            noted = load_transformer(path, precision=precision)(**kwargs)
            assert tiny_models.relative(noted.float(), expected) < 0.06


def test_a_plan_decides_by_layer_and_travels_with_the_file(tmp_path):
    plan = PrecisionPlan("int8", {LAYER: "bf16", "single_blocks.0.linear1": "fp8_scaled"})
    written = tmp_path / "plan.json"
    written.write_text(plan.to_json())
    assert PrecisionPlan.load(written) == plan
    model = transformer(plan)
    kinds = {n: m.format.name for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    assert LAYER not in kinds
    assert kinds["single_blocks.0.linear1"] == "fp8_scaled"
    assert kinds["single_blocks.1.linear1"] == "int8"
    path = save_module(model, tmp_path / "m.safetensors", metadata={"mine": "kept"})
    metadata = open_source(path).metadata
    assert metadata["mine"] == "kept"
    assert PrecisionPlan.from_json(metadata[PLAN_KEY]) == plan
    assert same(model, load_transformer(path, precision="as_stored"))
    plain = save_module(transformer("bf16"), tmp_path / "p.safetensors")
    assert same(model, load_transformer(plain, precision=plan))


def test_a_plan_that_is_none_is_refused(tmp_path):
    for text, message in (
        ("{", "is no precision plan"),
        ("[]", "is no precision plan"),
        ('{"fluxfit_precision_plan": 9}', "expected 'fluxfit_precision_plan': 1, found 9"),
        ('{"fluxfit_precision_plan": 1, "precision": "int3"}', "'int3', expected one of"),
    ):
        path = tmp_path / "plan.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as raised:
            PrecisionPlan.load(path)
        assert "plan.json" in str(raised.value)
    with pytest.raises(ValueError, match="names 'nowhere', which the module does not have"):
        transformer(PrecisionPlan("int8", {"nowhere": "bf16"}))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = save_module(transformer("int8"), tmp_path / "m.safetensors")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flux_core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_module(transformer("fp8_scaled"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_loading_a_quantized_file_takes_its_size_and_little_more(tmp_path):
    """300 MB of int8: the 16-bit model would take 300 MB more."""
    config = TransformerConfig(hidden_size=2048, depth=2, depth_single_blocks=0)
    path = bench_load.write(tmp_path / "large.safetensors", config, "int8")
    size = path.stat().st_size
    assert size > 250e6
    assert bench_load.growth(path)[0] < size + 150e6


def test_comfy_kitchen_reads_our_int8_as_we_do():
    tensor = pytest.importorskip("comfy_kitchen.tensor")
    weight = 0.02 * torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    format = FORMATS["int8"]
    codes, scale = format.quantize(weight).values()
    layout = tensor.TensorWiseINT8Layout
    params = layout.Params(
        scale=scale,
        orig_dtype=torch.float32,
        orig_shape=(64, 512),
        convrot=True,
        convrot_groupsize=format.block(512),
    )
    theirs = layout.dequantize(codes, params)
    assert (
        tiny_models.relative(
            theirs, format.dequantize({"codes": codes, "scale": scale}, torch.float32)
        )
        < 1e-6
    )

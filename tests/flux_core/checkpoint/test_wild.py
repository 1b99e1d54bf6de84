"""Checkpoints as people have them: packed another way, with scales of every shape, in old names."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from flux_core import (
    CheckpointError,
    FluxTransformer,
    PrecisionPlan,
    load_transformer,
    load_vae,
)
from flux_core.checkpoint.inspect import describe_file
from flux_core.checkpoint.reader import SafetensorsFile
from tests import tiny_models

PREFIXES = ("", "model.diffusion_model.")


def one_of_each_block() -> FluxTransformer:
    return tiny_models.flux_transformer(tiny_models.ONE_OF_EACH)


def packed(kind: str) -> dict[str, torch.Tensor]:
    """A transformer whose matrices are packed as some library packs them."""
    tensors: dict[str, torch.Tensor] = {}
    byte = torch.uint8
    for name, value in one_of_each_block().state_dict().items():
        layer = name.removesuffix(".weight")
        if value.ndim != 2:
            tensors[name] = value.bfloat16()
            continue
        half = torch.zeros(value.numel() // 2, 1, dtype=byte)
        rows = torch.ones(len(value))
        tensors |= {
            "bitsandbytes NF4": {
                name: half,
                f"{name}.absmax": rows,
                f"{name}.quant_map": torch.rand(16),
                f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(90, dtype=byte),
            },
            "bitsandbytes FP4": {
                name: half,
                f"{name}.quant_state.bitsandbytes__fp4": torch.zeros(90, dtype=byte),
            },
            "bitsandbytes int8": {name: value.to(torch.int8), f"{layer}.SCB": rows},
            "SVDQuant": {f"{layer}.qweight": half, f"{layer}.smooth_factor": rows},
            "AWQ as nunchaku": {f"{layer}.qweight": half, f"{layer}.wzeros": rows},
            "AWQ or GPTQ": {f"{layer}.qweight": half, f"{layer}.qzeros": half},
            "NVFP4": {
                name: half,
                f"{layer}.weight_scale": rows,
                f"{layer}.weight_scale_2": rows[:1],
            },
            "integers with zero points": {
                name: value.to(torch.int8),
                f"{layer}.weight_scale": rows[:, None],
                f"{layer}.weight_zero_point": rows[:, None],
            },
            "MXFP8": {
                name: value.to(torch.float8_e4m3fn),
                f"{layer}.weight_scale": torch.ones(len(value), value.shape[1] // 32).to(byte),
            },
            "MXFP8 of exponents": {
                name: value.to(torch.float8_e4m3fn),
                f"{layer}.weight_scale": torch.ones(len(value), value.shape[1] // 32).to(
                    torch.float8_e8m0fnu
                ),
            },
            "HQQ": {f"{layer}.W_q": half},
            "optimum-quanto": {f"{name}._data": half, f"{name}._scale": rows},
        }[kind]
    return tensors


KINDS = (
    "bitsandbytes NF4",
    "bitsandbytes FP4",
    "bitsandbytes int8",
    "SVDQuant",
    "AWQ as nunchaku",
    "AWQ or GPTQ",
    "NVFP4",
    "integers with zero points",
    "MXFP8",
    "MXFP8 of exponents",
    "HQQ",
    "optimum-quanto",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_weights_packed_another_way_are_refused_by_that_name(kind, prefix, tmp_path):
    path = tiny_models.save(packed(kind), tmp_path / "m.safetensors", prefix)
    name = kind.removesuffix(" of exponents")
    for precision in ("bf16", "as_stored"):
        with pytest.raises(CheckpointError, match=f"{name}.*get it in bf16"):
            load_transformer(path, precision=precision)
    assert name in describe_file(path)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.bool])
@pytest.mark.parametrize("scaled", [False, True])
def test_integers_are_no_weights_but_int8_with_a_scale(dtype, scaled, tmp_path):
    tensors, layer = one_of_each_block().state_dict(), "double_blocks.0.img_attn.qkv"
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(dtype)
    if scaled:
        tensors[f"{layer}.weight_scale"] = torch.ones(len(tensors[f"{layer}.weight"]), 1)
    path = tiny_models.save(tensors, tmp_path / "m.safetensors")
    if scaled and dtype == torch.int8:
        assert load_transformer(path, precision="fp32")
        return
    with pytest.raises(CheckpointError, match=rf"{layer}.weight' is \w+ with(out)? a scale"):
        load_transformer(path, precision="fp32")


def test_what_float16_does_not_hold_is_refused(tmp_path):
    tensors = one_of_each_block().state_dict()
    tensors["img_in.weight"] = 1e7 * tensors["img_in.weight"]
    path = tiny_models.save(tensors, tmp_path / "m.safetensors")
    assert load_transformer(path, precision="bf16")
    mixed = PrecisionPlan("fp16", {"single_blocks.0.linear1": "fp8_scaled"})
    for precision in ("fp16", mixed):
        with pytest.raises(CheckpointError, match=r"'img_in.weight' has values beyond what float"):
            load_transformer(path, precision=precision)
        tensors["img_in.weight"] = tensors["img_in.weight"].clamp(-1, 1)
        bounded = tiny_models.save(tensors, tmp_path / "n.safetensors")
        assert load_transformer(bounded, precision=precision)
        tensors["img_in.weight"] = 1e7 * tensors["img_in.weight"]


@pytest.mark.parametrize("prefix", ["dit.", "net.", "module.", "_orig_mod.", "pipe.dit."])
def test_what_programs_put_before_a_models_names(prefix, tmp_path):
    tensors = one_of_each_block().state_dict()
    path = tiny_models.save(tensors, tmp_path / "m.safetensors", prefix)
    loaded = load_transformer(path, precision="fp32").state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in tensors.items())


@pytest.mark.parametrize("format", ["nvfp4", "mxfp8", "svdquant_w4a4", "awq_w4a16", 7, None])
def test_notes_of_formats_that_are_not_read_name_them(format, tmp_path):
    tensors = one_of_each_block().state_dict()
    layer = "double_blocks.0.img_attn.qkv"
    note = json.dumps({"format": format}).encode()
    tensors[f"{layer}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
    path = tiny_models.save(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=f"says format {format!r}.*get it in bf16"):
        load_transformer(path)
    assert repr(format) in describe_file(path)


def test_notes_about_another_parts_layers_do_not_matter(tmp_path):
    tensors = one_of_each_block().state_dict()
    notes = {
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q": {
            "format": "nvfp4"
        },
        "double_blocks.900.img_attn.qkv": {"format": "mxfp8"},
    }
    for prefix in PREFIXES:
        path = tmp_path / "m.safetensors"
        metadata = {"_quantization_metadata": json.dumps({"layers": notes})}
        save_file({prefix + k: v.clone() for k, v in tensors.items()}, path, metadata=metadata)
        loaded = load_transformer(path, precision="fp32").state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in tensors.items())
    for raw in ("[", "[1]", '{"layers": 3}', '{"layers": {"double_blocks.0.img_attn.qkv": 3}}'):
        metadata = {"_quantization_metadata": raw}
        save_file({k: v.clone() for k, v in tensors.items()}, path, metadata=metadata)
        with pytest.raises(CheckpointError, match="m.safetensors"):
            load_transformer(path)


def scales_of(weight: torch.Tensor, shape: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A scale as a file has it, and spread over a weight (out, in)."""
    if shape.startswith("tensor"):
        scale = weight.abs().max() / 448
        return scale.reshape({"tensor": (), "tensor 1": (1,), "tensor 11": (1, 1)}[shape]), scale
    if shape.endswith("rows"):
        scale = weight.abs().amax(1) / 448
        return (scale if shape == "flat rows" else scale[:, None]), scale[:, None]
    if shape == "column blocks":  # (rows, blocks, 1) as sd-scripts writes them
        scale = weight.unflatten(1, (-1, 16)).abs().amax(2, keepdim=True) / 448
        return scale, scale.expand(-1, -1, 16).flatten(1)
    if shape == "row blocks":  # (blocks, 1)
        scale = weight.unflatten(0, (-1, 32)).abs().amax((1, 2)) / 448
        return scale[:, None], scale.repeat_interleave(32)[:, None]
    scale = weight.unflatten(0, (-1, 32)).unflatten(2, (-1, 16)).abs().amax((1, 3)) / 448
    return scale, scale.repeat_interleave(32, 0).repeat_interleave(16, 1)


SHAPES = (
    "tensor",
    "tensor 1",
    "tensor 11",
    "rows",
    "flat rows",
    "column blocks",
    "row blocks",
    "blocks",
)


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("shape", SHAPES)
def test_scales_of_every_shape_mean_the_same_at_every_precision(shape, suffix, tmp_path):
    tensors, meant = {}, {}
    for name, value in one_of_each_block().state_dict().items():
        tensors[name] = meant[name] = value
        if value.ndim == 2 and "blocks" in name:
            scale, spread = scales_of(value, shape)
            codes = (value / spread).to(torch.float8_e4m3fn)
            tensors |= {name: codes, name.removesuffix("weight") + suffix: scale}
            meant[name] = codes.float() * spread
    path = tiny_models.save(tensors, tmp_path / "m.safetensors")
    loaded = load_transformer(path, precision="fp32").state_dict()
    assert all(tiny_models.relative(loaded[k], v) < 1e-6 for k, v in meant.items())
    stored = load_transformer(path, precision="as_stored")
    layer = stored.get_submodule("double_blocks.0.img_attn.qkv")
    off = tiny_models.relative(
        layer.dequantize(torch.float32), meant["double_blocks.0.img_attn.qkv.weight"]
    )
    assert off < (0.04 if shape.endswith("blocks") and shape != "row blocks" else 1e-6)


@pytest.mark.parametrize("shape", [(7,), (3, 1), (5, 5), (0,), (2, 2, 2)])
def test_scales_that_fit_nothing_are_refused(shape, tmp_path):
    tensors = one_of_each_block().state_dict()
    name = "double_blocks.0.img_attn.qkv"
    tensors[f"{name}.weight"] = tensors[f"{name}.weight"].to(torch.float8_e4m3fn)
    tensors[f"{name}.weight_scale"] = torch.ones(shape)
    if shape == (3, 1):
        tensors[f"{name}.weight_scale"] = torch.ones(5, 1)
    path = tiny_models.save(tensors, tmp_path / "m.safetensors")
    for precision in ("fp32", "as_stored"):
        with pytest.raises(CheckpointError, match="weight_scale' has shape"):
            load_transformer(path, precision=precision)


@pytest.mark.parametrize(
    "tensors",
    [
        {"1.weight": (64, 16, 3, 3), "1.bias": (64,), "3.conv.0.weight": (64, 64, 3, 3)},
        {"decoder.layers.0.weight": (64, 16, 3, 3), "encoder.layers.0.weight": (64, 3, 3, 3)},
        {"decoder.1.weight": (64, 16, 3, 3), "decoder.3.conv.0.weight": (64, 64, 3, 3)},
        {"taesd_decoder.1.weight": (64, 16, 3, 3)},
    ],
)
def test_the_tiny_autoencoder_is_refused_by_name(tensors, tmp_path):
    file = {name: torch.zeros(shape) for name, shape in tensors.items()}
    path = tiny_models.save(file, tmp_path / "v.safetensors")
    with pytest.raises(CheckpointError, match="found TAESD"):
        load_vae(path)
    assert "TAESD" in describe_file(path)


def test_the_vaes_attention_is_read_in_its_older_names(tmp_path):
    model = tiny_models.diffusers_vae()
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in model.state_dict().items():
        for new, old in older.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[name] = tensor
    new = load_vae(
        tiny_models.save(model.state_dict(), tmp_path / "n.safetensors"), dtype=torch.float32
    )
    old = load_vae(tiny_models.save(tensors, tmp_path / "o.safetensors"), dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))


@pytest.mark.parametrize(
    "name", ["._m.safetensors", "m.safetensors.incomplete", "m.safetensors.part", "m.crdownload"]
)
def test_what_lies_beside_a_model_is_told_from_it(name, tmp_path):
    path = tiny_models.save(one_of_each_block().state_dict(), tmp_path / "m.safetensors")
    (tmp_path / name).write_bytes(path.read_bytes()[:4000])
    load_transformer(tmp_path)  # the one file in the folder that is meant
    with pytest.raises(CheckpointError, match="not finished|macOS"):
        load_transformer(tmp_path / name)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"PK\x03\x04" + bytes(60), "pickle"),
        (b"\x80\x02}q\x00" + bytes(60), "pickle"),
    ],
)
def test_what_is_no_checkpoint_at_all_is_told(content, message, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_transformer(tmp_path / "m.safetensors")


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580, 0x4B50])
def test_a_header_as_long_as_a_pickle_begins_is_a_header(length, tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + bytes(4))
    assert list(SafetensorsFile(path).entries) == ["x"]


def test_names_alone_build_nothing(tmp_path):
    tensors = one_of_each_block().state_dict()
    tensors |= {f"double_blocks.{i}.x": torch.zeros(1) for i in range(1, 4000)}
    path = tiny_models.save(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="double_blocks.1.img_attn.qkv.weight"):
        load_transformer(path)


def test_a_file_replaced_while_it_is_read_gives_its_own_weights(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.zeros(8), "b": torch.zeros(8)}, path)
    source = SafetensorsFile(path)
    save_file({"x": torch.ones(100), "b": torch.ones(8)}, tmp_path / "new")
    (tmp_path / "new").replace(path)
    assert not source.read("a").any() and not source.read("b").any()

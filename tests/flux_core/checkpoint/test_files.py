"""Files as people have them: float8 ones with and without scales, and broken or foreign ones."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flux_core import (
    CheckpointError,
    load_clip_l,
    load_controlnet,
    load_t5,
    load_text_encoders,
    load_transformer,
    load_vae,
)
from flux_core.checkpoint.inspect import describe_file
from flux_core.models.config import TransformerConfig
from flux_core.models.transformer import FluxTransformer
from flux_core.quant import QuantizedLinear
from tests import tiny_models as tiny
from tests.flux_core.models.test_parity import clip_model

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A native fp32 file and its tensors."""
    folder = tmp_path_factory.mktemp("native")
    path = tiny.save(tiny.diffusers_transformer().state_dict(), folder / "d.safetensors")
    state = load_transformer(path, precision="fp32").state_dict()
    return tiny.save(state, folder / "n.safetensors"), state


def is_block_weight(name: str) -> bool:
    return "_blocks." in name and name.endswith(".weight")


def layer(model):
    return model.double_blocks[1].img_mlp[0]


class TestFloat8Files:
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_raw_codes_are_kept_to_the_bit(self, dtype, native, tmp_path):
        state = {k: v.to(dtype) if is_block_weight(k) else v for k, v in native[1].items()}
        path = tiny.save(state, tmp_path / "raw.safetensors")
        precision = {torch.float8_e4m3fn: "fp8_e4m3fn", torch.float8_e5m2: "fp8_e5m2"}[dtype]
        codes = layer(load_transformer(path, precision=precision)).codes
        assert torch.equal(codes.float(), state["double_blocks.1.img_mlp.0.weight"].float())
        full = load_transformer(path, precision="fp32").state_dict()
        assert all(torch.equal(full[k], v.float()) for k, v in state.items())

    @pytest.mark.parametrize("convention", ["scale_weight", "weight_scale"])
    def test_scaled_codes_are_kept_and_mean_what_they_say(self, convention, native, tmp_path):
        state, scale = {}, torch.tensor(0.02)
        for name, value in native[1].items():
            if not is_block_weight(name):
                state[name] = value
                continue
            stem = name.removesuffix(".weight")
            state[name] = (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            state[f"{stem}.{convention}"] = scale
            if convention == "scale_weight":
                state[f"{stem}.scale_input"] = torch.tensor(1.0)
            else:
                info = json.dumps({"format": "float8_e4m3fn"}).encode()
                state[f"{stem}.comfy_quant"] = torch.tensor(list(info), dtype=torch.uint8)
        if convention == "scale_weight":
            state["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        path = tiny.save(state, tmp_path / "scaled.safetensors")
        held = layer(load_transformer(path, precision="fp8_scaled"))
        assert torch.equal(held.codes.float(), state["double_blocks.1.img_mlp.0.weight"].float())
        assert torch.equal(held.scale, torch.full_like(held.scale, 0.02))
        full = layer(load_transformer(path, precision="fp32")).weight
        assert tiny.relative(full, native[1]["double_blocks.1.img_mlp.0.weight"]) < 0.04

    def test_diffusers_rows_with_scales_of_their_own_are_fused(self, native, tmp_path):
        state = {}
        for i, (name, value) in enumerate(tiny.diffusers_transformer().state_dict().items()):
            state[name] = value
            if "transformer_blocks." in name and name.endswith(".weight") and value.ndim == 2:
                scale = 0.001 * (1 + i % 7)
                state[name] = (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
                state[f"{name.removesuffix('.weight')}.weight_scale"] = torch.tensor(scale)
        path = tiny.save(state, tmp_path / "s.safetensors")
        full = load_transformer(path, precision="fp32").state_dict()
        scaled = load_transformer(path, precision="fp8_scaled")
        for name, module in scaled.named_modules():
            if isinstance(module, QuantizedLinear):
                back = module.dequantize(torch.float32)
                assert torch.equal(back, full[f"{name}.weight"])
                assert tiny.relative(back, native[1][f"{name}.weight"]) < 0.2

    def test_unknown_quantization_is_refused(self, native, tmp_path):
        info = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
        state = native[1] | {"double_blocks.0.img_mlp.0.comfy_quant": info}
        path = tiny.save(state, tmp_path / "q.safetensors")
        with pytest.raises(CheckpointError, match=r"'nvfp4', expected one of float8_e4m3fn"):
            load_transformer(path)


class TestBadFiles:
    def test_truncated(self, native, tmp_path):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(native[0].read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors: is truncated.* ends at byte"):
            load_transformer(path)

    @pytest.mark.parametrize("length", [10**6, 2**62])
    def test_header_larger_than_the_file(self, length, tmp_path):
        path = tmp_path / "h.safetensors"
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CheckpointError, match=rf"claims {length} bytes, but the file holds 2"):
            load_transformer(path)

    def test_header_that_is_no_json(self, tmp_path):
        path = tmp_path / "j.safetensors"
        path.write_bytes(struct.pack("<Q", 4) + b"{{{{")
        with pytest.raises(CheckpointError, match="header cannot be read"):
            load_transformer(path)

    def test_offsets_that_lie(self, tmp_path):
        header = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}
        raw = json.dumps(header).encode()
        path = tmp_path / "o.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
        with pytest.raises(CheckpointError, match="takes 16 bytes, the header gives it 8"):
            load_transformer(path)

    @pytest.mark.parametrize("data", [b"", b"abc"])
    def test_too_short(self, data, tmp_path):
        path = tmp_path / "s.safetensors"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"is {len(data)} bytes, too short"):
            load_transformer(path)

    def test_pickles_are_not_opened(self, tmp_path):
        for name, write in (
            ("torch.safetensors", lambda p: torch.save({"a": torch.ones(1)}, p)),
            ("plain.safetensors", lambda p: p.write_bytes(pickle.dumps({"a": 1}))),
        ):
            write(tmp_path / name)
            with pytest.raises(CheckpointError, match="is a pickle"):
                load_transformer(tmp_path / name)

    def test_missing_file(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            load_vae(tmp_path / "none.safetensors")

    def test_missing_shard(self, tmp_path):
        folder = tiny.save_shards(tiny.diffusers_transformer().state_dict(), tmp_path / "f")
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"1 of 3 shards.*model-00002-of-00003"):
            load_transformer(folder)

    def test_one_shard_stands_for_all(self, tmp_path):
        folder = tiny.save_shards(tiny.diffusers_transformer().state_dict(), tmp_path / "f")
        one = load_transformer(folder / "model-00002-of-00003.safetensors")
        whole = load_transformer(folder)
        pairs = zip(one.parameters(), whole.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_an_index_cannot_point_outside_its_folder(self, native, tmp_path):
        index = {"weight_map": {"img_in.weight": f"../{native[0].name}"}}
        path = tmp_path / "m.index.json"
        path.write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="missing beside it"):
            load_transformer(path)

    def test_nan_weights(self, native, tmp_path):
        state = {k: v.clone() for k, v in native[1].items()}
        state["single_blocks.1.linear1.weight"][2, 3] = float("nan")
        path = tiny.save(state, tmp_path / "nan.safetensors")
        for precision in ("bf16", "fp8_scaled"):
            with pytest.raises(
                CheckpointError, match=r"nan\.safetensors.*single_blocks\.1\.linear1.* 1 values"
            ):
                load_transformer(path, precision=precision)

    def test_missing_tensors_are_named(self, native, tmp_path):
        state = dict(native[1])
        del state["single_blocks.2.linear2.weight"]
        with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ tensors: single_blocks\.2"):
            load_transformer(tiny.save(state, tmp_path / "m.safetensors"))

    def test_a_tensor_of_another_shape_is_named(self, native, tmp_path):
        state = native[1] | {"single_blocks.2.linear2.weight": torch.zeros(3, 3)}
        with pytest.raises(CheckpointError, match=r"linear2\.weight.*\(3, 3\), expected \("):
            load_transformer(tiny.save(state, tmp_path / "m.safetensors"))

    def test_unused_tensors_are_reported(self, native, tmp_path, caplog):
        path = tiny.save(native[1] | {"something.else": torch.zeros(2)}, tmp_path / "u.safetensors")
        load_transformer(path)
        assert "1 tensors" in caplog.text and "something.else" in caplog.text


STRANGERS = {
    "SDXL": {
        "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
    },
    "Stable Diffusion 1": {"model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3)},
    "Stable Diffusion 3": {"joint_blocks.0.x_block.attn.qkv.weight": (8, 8)},
    "LoRA": {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 8)},
    "no known model": {"foo": (1,)},
}


class TestForeignModels:
    @pytest.mark.parametrize("family", STRANGERS)
    def test_the_family_is_told(self, family, tmp_path):
        state = {name: torch.zeros(shape) for name, shape in STRANGERS[family].items()}
        path = tiny.save(state, tmp_path / "x.safetensors")
        with pytest.raises(
            CheckpointError, match=f"expected a FLUX.1 transformer, found.*{family}"
        ):
            load_transformer(path)
        assert family in describe_file(path)

    def test_parts_of_flux_in_the_wrong_place(self, native, tmp_path):
        net = tiny.save(tiny.diffusers_controlnet().state_dict(), tmp_path / "c.safetensors")
        with pytest.raises(CheckpointError, match="found a FLUX.1 ControlNet"):
            load_transformer(net)
        with pytest.raises(CheckpointError, match="ControlNet, found a FLUX.1 transformer"):
            load_controlnet(native[0])
        with pytest.raises(CheckpointError, match="a T5 encoder, found a FLUX.1 transformer"):
            load_t5(native[0])

    def test_clip_g_is_not_clip_l(self, tmp_path):
        name = "text_model.embeddings.token_embedding.weight"
        path = tiny.save({name: torch.zeros(4, 1280)}, tmp_path / "g.safetensors")
        with pytest.raises(
            CheckpointError, match=r"CLIP-L text encoder, found CLIP-G \(width 1280\)"
        ):
            load_clip_l(path)

    def test_a_vae_of_four_channels(self, tmp_path):
        state = {
            "decoder.conv_in.weight": torch.zeros(8, 4, 3, 3),
            "decoder.mid.block_1.conv1.weight": torch.zeros(8, 8, 3, 3),
        }
        with pytest.raises(CheckpointError, match="found a VAE with 4 latent channels"):
            load_vae(tiny.save(state, tmp_path / "v.safetensors"))

    def test_missing_tokenizers_say_where_to_put_them(self, tmp_path):
        state = {
            "text_model." + k.removeprefix("text_model."): v
            for k, v in clip_model().state_dict().items()
        }
        path = tiny.save(state, tmp_path / "c.safetensors")
        with pytest.raises(FileNotFoundError, match="expected the folder .*tokenizer"):
            load_text_encoders(path, path)


def test_inspect_says_parts_precision_and_size(native, tmp_path):
    vae = load_vae(tiny.save(tiny.diffusers_vae().state_dict(), tmp_path / "v.safetensors"))
    both = {f"model.diffusion_model.{k}": v.bfloat16() for k, v in native[1].items()}
    both |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
    text = describe_file(tiny.save(both, tmp_path / "all.safetensors"))
    assert "transformer (native layout under 'model.diffusion_model.')" in text
    assert "100% bfloat16" in text and "depth=3" in text and "guidance_embed=True" in text
    assert "vae (native layout under 'vae.')" in text and "MiB" in text


MEASURE = """
import resource, sys, torch
from flux_core import load_transformer
from flux_core.quant.apply import module_bytes
torch.set_num_threads(1)
small, large, precision = sys.argv[1:]
load_transformer(small, precision=precision)  # what the first load of all takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_transformer(large, precision=precision)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) * 1024, module_bytes(model))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("precision", ["fp8_scaled", "bf16"])
def test_a_load_holds_the_result_and_one_tensor_more(precision, native, tmp_path):
    """Peak memory of a process that opens a float32 file of 300 MB."""
    config = TransformerConfig(hidden_size=512, depth=6, depth_single_blocks=6)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in FluxTransformer(config).state_dict().items()}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    path = tiny.save(state, tmp_path / "large.safetensors")
    assert path.stat().st_size > 300e6
    command = [sys.executable, "-c", MEASURE, str(native[0]), str(path), precision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    grown, result = map(int, done.stdout.split())
    largest = max(v.numel() * 4 for v in state.values())
    # the largest tensor is there as it was read and, while it is encoded, in a few copies
    assert grown < result + 6 * largest, (grown / 2**20, result / 2**20, largest / 2**20)

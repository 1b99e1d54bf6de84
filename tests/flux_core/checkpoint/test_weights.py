"""Float8 weights as files have them."""

from __future__ import annotations

import json

import pytest
import torch

from flux_core import (
    CheckpointError,
    load_transformer,
)
from flux_core.quant import QuantizedLinear
from tests import tiny_models


def is_block_weight(name: str) -> bool:
    return "_blocks." in name and name.endswith(".weight")


def layer(model):
    return model.double_blocks[1].img_mlp[0]


class TestFloat8Files:
    @pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
    def test_raw_codes_are_kept_to_the_bit(self, dtype, native, tmp_path):
        state = {k: v.to(dtype) if is_block_weight(k) else v for k, v in native[1].items()}
        path = tiny_models.save(state, tmp_path / "raw.safetensors")
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
        path = tiny_models.save(state, tmp_path / "scaled.safetensors")
        held = layer(load_transformer(path, precision="fp8_scaled"))
        assert torch.equal(held.codes.float(), state["double_blocks.1.img_mlp.0.weight"].float())
        assert torch.equal(held.scale, torch.full_like(held.scale, 0.02))
        full = layer(load_transformer(path, precision="fp32")).weight
        assert tiny_models.relative(full, native[1]["double_blocks.1.img_mlp.0.weight"]) < 0.04

    def test_diffusers_rows_with_scales_of_their_own_are_fused(self, native, tmp_path):
        state = {}
        for i, (name, value) in enumerate(tiny_models.diffusers_transformer().state_dict().items()):
            state[name] = value
            if "transformer_blocks." in name and name.endswith(".weight") and value.ndim == 2:
                scale = 0.001 * (1 + i % 7)
                state[name] = (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
                state[f"{name.removesuffix('.weight')}.weight_scale"] = torch.tensor(scale)
        path = tiny_models.save(state, tmp_path / "s.safetensors")
        full = load_transformer(path, precision="fp32").state_dict()
        scaled = load_transformer(path, precision="fp8_scaled")
        for name, module in scaled.named_modules():
            if isinstance(module, QuantizedLinear):
                back = module.dequantize(torch.float32)
                assert torch.equal(back, full[f"{name}.weight"])
                assert tiny_models.relative(back, native[1][f"{name}.weight"]) < 0.2

    def test_unknown_quantization_is_refused(self, native, tmp_path):
        info = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
        state = native[1] | {"double_blocks.0.img_mlp.0.comfy_quant": info}
        path = tiny_models.save(state, tmp_path / "q.safetensors")
        with pytest.raises(CheckpointError, match=r"'nvfp4', expected one of float8_e4m3fn"):
            load_transformer(path)


class TestBadFiles:
    def test_nan_weights(self, native, tmp_path):
        state = {k: v.clone() for k, v in native[1].items()}
        state["single_blocks.1.linear1.weight"][2, 3] = float("nan")
        path = tiny_models.save(state, tmp_path / "nan.safetensors")
        for precision in ("bf16", "fp8_scaled"):
            with pytest.raises(
                CheckpointError, match=r"nan\.safetensors.*single_blocks\.1\.linear1.* 1 values"
            ):
                load_transformer(path, precision=precision)

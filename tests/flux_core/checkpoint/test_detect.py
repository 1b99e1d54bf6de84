"""Files of other models and of other parts."""

from __future__ import annotations

import pytest
import torch

from flux_core import (
    CheckpointError,
    load_clip_l,
    load_controlnet,
    load_t5,
    load_transformer,
    load_vae,
)
from flux_core.checkpoint.inspect import describe_file
from tests import tiny_models

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
        path = tiny_models.save(state, tmp_path / "x.safetensors")
        with pytest.raises(
            CheckpointError, match=f"expected a FLUX.1 transformer, found.*{family}"
        ):
            load_transformer(path)
        assert family in describe_file(path)

    def test_a_controlnet_for_flux_2_is_named(self, tmp_path):
        """Its layout: github.com/aigc-apps/VideoX-Fun."""
        block = "control_transformer_blocks.0"
        names = [
            "control_img_in.weight",
            *(f"{block}.{n}.weight" for n in ("before_proj", "after_proj", "attn.to_q")),
            *(f"{block}.{n}.weight" for n in ("attn.add_q_proj", "ff.linear_in", "ff.linear_out")),
        ]
        state = {name: torch.zeros(8, 8) for name in names}
        for prefix in ("", "module."):
            path = tiny_models.save(state, tmp_path / "fun.safetensors", prefix)
            with pytest.raises(CheckpointError, match=r"found a ControlNet for FLUX\.2 dev \(Fun-"):
                load_controlnet(path)

    def test_parts_of_flux_in_the_wrong_place(self, native, tmp_path):
        net = tiny_models.save(
            tiny_models.diffusers_controlnet().state_dict(), tmp_path / "c.safetensors"
        )
        with pytest.raises(CheckpointError, match="found a FLUX.1 ControlNet"):
            load_transformer(net)
        with pytest.raises(CheckpointError, match="ControlNet, found a FLUX.1 transformer"):
            load_controlnet(native[0])
        with pytest.raises(CheckpointError, match="a T5 encoder, found a FLUX.1 transformer"):
            load_t5(native[0])

    def test_clip_g_is_not_clip_l(self, tmp_path):
        name = "text_model.embeddings.token_embedding.weight"
        path = tiny_models.save({name: torch.zeros(4, 1280)}, tmp_path / "g.safetensors")
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
            load_vae(tiny_models.save(state, tmp_path / "v.safetensors"))

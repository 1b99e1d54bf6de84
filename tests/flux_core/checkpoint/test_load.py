"""What is looked for beside the weights."""

from __future__ import annotations

import pytest

from flux_core import (
    load_text_encoders,
)
from tests import tiny_models
from tests.flux_core.models.test_text_encoders import clip_model

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
    def test_missing_tokenizers_say_where_to_put_them(self, tmp_path):
        state = {
            "text_model." + k.removeprefix("text_model."): v
            for k, v in clip_model().state_dict().items()
        }
        path = tiny_models.save(state, tmp_path / "c.safetensors")
        with pytest.raises(FileNotFoundError, match="expected the folder .*tokenizer"):
            load_text_encoders(path, path)

"""What a file holds, in words."""

from __future__ import annotations

from flux_core import (
    load_vae,
)
from flux_core.checkpoint.inspect import describe_file
from tests import tiny_models


def test_inspect_says_parts_precision_and_size(native, tmp_path):
    vae = load_vae(
        tiny_models.save(tiny_models.diffusers_vae().state_dict(), tmp_path / "v.safetensors")
    )
    both = {f"model.diffusion_model.{k}": v.bfloat16() for k, v in native[1].items()}
    both |= {f"vae.{k}": v for k, v in vae.state_dict().items()}
    text = describe_file(tiny_models.save(both, tmp_path / "all.safetensors"))
    assert "transformer (native layout under 'model.diffusion_model.')" in text
    assert "100% bfloat16" in text and "depth=3" in text and "guidance_embed=True" in text
    assert "vae (native layout under 'vae.')" in text and "MiB" in text

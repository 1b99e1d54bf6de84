"""`inspect`."""

from __future__ import annotations

import pytest

from tests.cli.command_line import POCKET, call


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("diffusion_models/fluxfit_pocket.safetensors", "transformer (native layout)"),
        ("controlnet/fluxfit_pocket_upscaler.safetensors", "controlnet (diffusers layout)"),
        ("vae/fluxfit_pocket_vae.safetensors", "vae (native layout)"),
        ("text_encoders/fluxfit_pocket_clip_l.safetensors", "clip_l (native layout)"),
        ("text_encoders/fluxfit_pocket_t5.safetensors", "t5 (native layout)"),
    ],
)
def test_inspect_tells_every_part_of_the_pocket_model(file, kind, tmp_path):
    done = call("inspect", str(POCKET / file), cwd=tmp_path)
    assert done.returncode == 0 and kind in done.stdout and "bfloat16" in done.stdout
    assert ("FLUX.1-dev: " in done.stdout) is kind.startswith("transformer")

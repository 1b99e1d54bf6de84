"""`inspect`."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flux_core import load_transformer
from flux_core.receipts import KEY, png_bytes
from tests.cli.command_line import POCKET, call


def facts(file, folder) -> dict:
    """What `inspect --json` says."""
    done = call("inspect", str(file), "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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


def test_a_file_is_told_in_numbers_too(tmp_path):
    file = POCKET / "diffusion_models/fluxfit_pocket.safetensors"
    data = facts(file, tmp_path)
    (part,) = data["parts"]
    transformer = load_transformer(file)
    count = sum(p.numel() for p in transformer.parameters())
    assert part["kind"] == "transformer" and part["family"] == "FLUX.1-dev"
    assert part["parameters"] == count and part["dtypes"] == {"bfloat16": count}
    assert data["holds"] == "a FLUX.1 transformer" and data["bytes"] >= 2 * count
    (clip,) = facts(POCKET / "text_encoders/fluxfit_pocket_clip_l.safetensors", tmp_path)["parts"]
    assert (clip["kind"], clip["family"], clip["config"]) == ("clip_l", None, None)


def lora(width: int, ranks: dict[int, float | None]) -> dict[str, torch.Tensor]:
    """A LoRA on projections of images, a rank and an alpha a block."""
    tensors = {}
    for block, (rank, alpha) in enumerate(ranks.items()):
        name = f"lora_unet_double_blocks_{block}_img_attn_proj"
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, width)
        tensors[f"{name}.lora_up.weight"] = torch.randn(width, rank)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def test_a_lora_has_a_rank_an_alpha_and_models_that_it_fits(tmp_path):
    pocket = load_transformer(POCKET / "diffusion_models/fluxfit_pocket.safetensors")
    width = pocket.config.hidden_size
    save_file(lora(width, {4: 8.0}), tmp_path / "pocket.safetensors")
    data = facts(tmp_path / "pocket.safetensors", tmp_path)["lora"]
    assert data["ranks"] == [{"rank": 4, "layers": 1}] and data["alphas"][0]["alpha"] == 8.0
    assert data["fits"] == ["the pocket model"] and data["layers"] == {"transformer": 1}
    # dev's width; klein 4B has it too
    save_file(lora(3072, {2: None, 3: 1.0}), tmp_path / "dev.safetensors")
    text = call("inspect", "dev.safetensors", cwd=tmp_path).stdout
    assert "rank 2 (1), 3 (1), alpha 2 (1), 1 (1)" in text
    assert "fits FLUX.1-dev, FLUX.1-schnell, FLUX.1-lite, Flex.1, Flex.2, Chroma," in text
    assert "pocket" not in text.splitlines()[-1]


def picture(folder, receipt: dict) -> None:
    """A black picture ``a.png`` with a receipt, as a person may have changed it."""
    texts = {KEY: json.dumps({"version": 1} | receipt)}
    (folder / "a.png").write_bytes(png_bytes(np.zeros((2, 3, 3), np.uint8), texts))


@pytest.mark.parametrize(
    "receipt",
    [
        {"did": [{"kind": "ran", "seconds": "x"}]},
        {"did": [{"kind": "ran", "models": 1}]},
        {"did": [{"kind": "ran", "peak": [1]}]},
        {"did": [{"kind": "draw", "loras": 5}]},
        {"did": [{"kind": "draw", "loras": [5]}]},
        {"did": [{"kind": "draw", "sigmas": 5}]},
        {"did": [{"kind": "decode", "pixels": 5}]},
        {"did": [5]},
        {"files": {"a": 1}},
        {"files": {"a": {"bytes": "x"}}},
        {"job": {"values": 5}},
        {"pixels": 5},
    ],
)
def test_a_damaged_receipt_is_told_in_a_line_that_names_the_file(receipt, tmp_path):
    picture(tmp_path, receipt)
    done = call("inspect", "a.png", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stdout
    assert done.stderr.startswith("fluxfit: a.png: cannot be read as a picture with a receipt (")
    assert "Error" not in done.stderr


def test_pixels_that_nothing_is_known_of_are_not_as_saved(tmp_path):
    picture(tmp_path, {"device": "cpu"})
    done = call("inspect", "a.png", cwd=tmp_path)
    assert "as saved" not in done.stdout and "does not say which pixels" in done.stdout
    assert facts("a.png", tmp_path)["changed"] is None
    picture(tmp_path, {"pixels": "0" * 64})
    assert facts("a.png", tmp_path)["changed"] is True

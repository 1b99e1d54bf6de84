"""A pipeline opened from files, of each family, and what is missing told."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from flux_core import FluxPipeline
from flux_core.pocket import pocket_file
from tests import kin_files

TRANSFORMER = pocket_file("diffusion_models")
CLIP_L, T5 = (pocket_file("text_encoders", name) for name in ("_clip_l", "_t5"))
VAE = pocket_file("vae", "_vae")
SMALL = {"width": 64, "height": 48, "steps": 1}
PROMPT = "a red circle"
POCKET = {"clip_l": CLIP_L, "t5": T5, "vae": VAE}


def checkpoint(path, *parts: str):
    """The pocket model's parts in one file, as the host's checkpoints have them."""
    prefixes = {
        "model.diffusion_model.": TRANSFORMER,
        "text_encoders.clip_l.transformer.": CLIP_L,
        "text_encoders.t5xxl.transformer.": T5,
        "vae.": VAE,
    }
    tensors = {
        prefix + name: tensor
        for prefix, file in prefixes.items()
        if not parts or prefix in parts
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, path)
    return path


def test_files_one_by_one_are_the_pocket_model():
    opened = FluxPipeline.from_files(TRANSFORMER, **POCKET, device="cpu")
    drawn = opened(PROMPT, **SMALL).images
    assert torch.equal(drawn, FluxPipeline.from_pocket(device="cpu")(PROMPT, **SMALL).images)


def test_a_checkpoint_brings_the_parts_that_are_not_given(tmp_path):
    for folder, inner in (("tokenizer", "tokenizer"), ("tokenizer_2", "tokenizer_2")):
        (tmp_path / folder).symlink_to(T5.parent / inner)
    whole = checkpoint(tmp_path / "whole.safetensors")
    expected = FluxPipeline.from_pocket(device="cpu")(PROMPT, **SMALL).images
    drawn = FluxPipeline.from_files(whole, device="cpu")(PROMPT, **SMALL)
    assert torch.equal(drawn.images, expected)
    part = checkpoint(tmp_path / "part.safetensors", "model.diffusion_model.", "vae.")
    drawn = FluxPipeline.from_files(str(part), clip_l=CLIP_L, t5=str(T5), device="cpu")
    assert torch.equal(drawn(PROMPT, **SMALL).images, expected)
    with pytest.raises(ValueError, match=r"drawn with clip_l, t5, vae: clip_l and t5 are not give"):
        FluxPipeline.from_files(part)


def test_flux_2_is_a_repository_or_its_folders(tmp_path):
    files = kin_files.flux2_files(tmp_path)
    drawn = FluxPipeline.from_files(tmp_path, device="cpu")(PROMPT, **SMALL, seed=3)
    assert drawn.images.shape == (1, 48, 64, 3)
    opened = FluxPipeline.from_files(
        files["transformer"],
        text_encoder=files["language_model"],
        vae=files["vae"],
        precision="fp32",
        policy="stream",
        device="cpu",
    )
    assert opened(PROMPT, **SMALL).images.isfinite().all() and opened.policy.mode == "stream"
    with pytest.raises(ValueError, match=r"t5 is given, and FLUX.2-klein is drawn with text_enc"):
        FluxPipeline.from_files(files["transformer"], t5=T5, vae=VAE)


def test_chroma_reads_t5_alone(tmp_path):
    files = kin_files.chroma_files(tmp_path)
    opened = FluxPipeline.from_files(**files, text_precision="int8", device="cpu")
    assert opened(PROMPT, **SMALL).images.shape == (1, 48, 64, 3)
    with pytest.raises(ValueError, match="clip_l is given, and Chroma is drawn with t5, vae alon"):
        FluxPipeline.from_files(**files, clip_l=CLIP_L)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"clip_l and t5 and vae are not given, and the file holds a FLUX.1 transformer alone"),
        ({**POCKET, "vae": T5}, r"t5\.safetensors: expected a FLUX.1 VAE"),
        ({**POCKET, "vae": "nothing.safetensors"}, r"nothing.safetensors: no such file"),
        ({**POCKET, "precision": "int4"}, "'int4', expected one of"),
        ({**POCKET, "policy": "fast"}, "'fast', expected one of auto"),
        ({**POCKET, "policy": 5}, "policy is 5, expected an OffloadPolicy"),
        ({**POCKET, "device": "nonsense"}, "device is 'nonsense', expected cpu, cuda"),
        ({**POCKET, "device": 1.5}, "device is 1.5, expected cpu, cuda"),
        ({**POCKET, "tokenizers": "nowhere"}, "nowhere"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        FluxPipeline.from_files(TRANSFORMER, **options)
    assert "\n" not in str(raised.value)


def test_another_device_is_drawn_on_from_then_on():
    pipeline = FluxPipeline.from_pocket(device="cpu", policy="none")
    drawn = pipeline(PROMPT, **SMALL).images
    assert pipeline.to("cpu") is pipeline
    assert torch.equal(pipeline(PROMPT, **SMALL).images, drawn)
    moved = pipeline.to("meta")
    assert moved.device == torch.device("meta")
    assert torch.equal(moved.to("cpu")(PROMPT, **SMALL).images, drawn)
    with pytest.raises(ValueError, match="device is 'fast'"):
        pipeline.to("fast")

"""FLUX.2's autoencoder against diffusers' with the packing and statistics of its pipelines."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

from flux_core import CheckpointError, OffloadPolicy, load_vae
from flux_core.checkpoint.inspect import describe_file
from flux_core.models.vae import AutoEncoder
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.vae import decode, decode_pictures, encode_pixels, vae_work
from tests import tiny_models
from tests.flux2_models import diffusers_vae, their_latents, their_pixels


def pictures(height: int = 64, width: int = 48, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


def respelled(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Native names with the convolutions outside of encoder and decoder, as some files have it."""
    return {
        name.replace("encoder.quant", "quant").replace("decoder.post", "post"): value
        for name, value in state.items()
    }


@pytest.fixture
def opened(tmp_path) -> AutoEncoder:
    path = tiny_models.save(diffusers_vae().state_dict(), tmp_path / "opened.safetensors")
    return load_vae(path, dtype=torch.float32)


@pytest.mark.parametrize("layout", ["diffusers", "native", "native, around"])
@pytest.mark.parametrize("decoder", [None, (16, 32, 64, 64)])
@torch.no_grad()
def test_it_equals_diffusers_both_ways(layout, decoder, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    theirs = diffusers_vae(decoder)
    path = tiny_models.save(theirs.state_dict(), tmp_path / "v.safetensors")
    if layout != "diffusers":
        state = load_vae(path, dtype=torch.float32).state_dict()
        state = respelled(state) if "around" in layout else state
        path = tiny_models.save(state, tmp_path / "n.safetensors", "vae.")
    ours = load_vae(path, dtype=torch.float32)
    assert not caplog.records
    latents = their_latents(theirs, pictures())
    assert latents.shape == (2, 128, 4, 3) and ours.config.compression == 16
    assert tiny_models.relative(ours.encode(pictures()), latents) < 1e-5
    assert tiny_models.relative(ours.decode(latents), their_pixels(theirs, latents)) < 1e-5


@torch.no_grad()
def test_tiles_are_close_to_the_whole_and_as_large_in_pixels(opened):
    z = torch.randn(1, 128, 12, 10, generator=torch.Generator().manual_seed(0))
    whole = opened.decode(z)
    work = vae_work(opened, 64, 64, 1)
    assert work.fit is not None and work.fit(0)[0] == 16  # of 256 pixels
    plan = OffloadRunner(OffloadPolicy(), "cpu").plan([opened], work)
    tiled = decode(opened, z, dataclasses.replace(plan, tile=8), torch.device("cpu"))
    assert tiled.shape == whole.shape == (1, 3, 192, 160)
    assert tiny_models.relative(tiled, whole) < 0.2


def test_pictures_go_there_and_back_under_every_policy(opened):
    pixels = pictures(count=1)
    with torch.no_grad():
        expected = opened.encode(pixels)
    for mode in ("none", "component", "stream"):
        runner = OffloadRunner(OffloadPolicy(mode, separate_memory=True), "cpu")
        latents = encode_pixels(runner, opened, pixels)
        assert torch.equal(latents, expected)
        (decoded,) = decode_pictures(runner, opened, [latents])
        assert decoded.shape == (1, 64, 48, 3)


@torch.no_grad()
def test_memory_is_predicted(opened):
    z = torch.zeros(1, 128, 16, 16)
    work = vae_work(opened, 16, 16, 1)
    with LiveBytes() as counted:
        opened.decode(z)
    assert abs(work.activations - counted.peak) < 0.05 * counted.peak


def test_what_does_not_fit_is_one_line(opened, tmp_path):
    with pytest.raises(ValueError, match="picture is 40x64, sides must be multiples of 16"):
        opened.encode(pictures(64, 40))
    with pytest.raises(ValueError, match="latents have 16 channels, this VAE decodes 128"):
        opened.decode(torch.zeros(1, 16, 8, 8))
    state = opened.state_dict()
    path = tiny_models.save(state, tmp_path / "vae.safetensors")
    assert "vae (native layout)" in describe_file(path)
    without = {name: value for name, value in state.items() if not name.startswith("bn.")}
    with pytest.raises(CheckpointError, match="found a VAE with 32 latent channels"):
        load_vae(tiny_models.save(without, tmp_path / "other.safetensors"))

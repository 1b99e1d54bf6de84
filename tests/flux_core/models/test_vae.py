"""The autoencoder against diffusers, both ways."""

from __future__ import annotations

import pytest
import torch

from flux_core import load_vae
from tests import tiny_models


@pytest.mark.parametrize("layout", ["diffusers", "native"])
def test_vae_equals_diffusers_both_ways(layout, tmp_path):
    theirs = tiny_models.diffusers_vae()
    ours = load_vae(
        tiny_models.save(theirs.state_dict(), tmp_path / "v.safetensors"), dtype=torch.float32
    )
    if layout == "native":
        path = tiny_models.save(ours.state_dict(), tmp_path / "n.safetensors")
        ours = load_vae(path, dtype=torch.float32)
    g = torch.Generator().manual_seed(5)
    pictures = torch.rand(2, 3, 48, 32, generator=g) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(pictures).latent_dist.mean
        assert tiny_models.relative(ours.encode(pictures), latents) < 1e-4
        assert tiny_models.relative(ours.decode(latents), theirs.decode(latents).sample) < 1e-4
    assert ours.config.ch_mult == (1, 2, 4, 4)

"""Layers over bands of rows: the numbers of the plain way, and much less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flux_core import AutoEncoder
from flux_core.models import banded
from flux_core.models.config import VAEConfig
from flux_core.sampling.vae import vae_work
from tests import tiny_models


@pytest.fixture
def small_bands(monkeypatch):
    """Bands of a few rows for pictures of any size."""
    monkeypatch.setattr(banded, "LIMIT", 1000)
    monkeypatch.setattr(banded, "BAND", 1500)


def reference(norm: nn.GroupNorm, conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return conv(F.silu(norm(x)))


@pytest.mark.parametrize("height", [1, 2, 3, 16, 37])
@pytest.mark.parametrize("batch", [1, 3])
def test_bands_give_the_numbers_of_the_whole(small_bands, height, batch):
    generator = torch.Generator().manual_seed(0)
    norm, conv = nn.GroupNorm(4, 16, eps=1e-6), nn.Conv2d(16, 24, 3, padding=1)
    tiny_models.randomise(norm, 1, 0.5), tiny_models.randomise(conv, 2, 0.2)
    x = 3 + torch.randn(batch, 16, height, 70, generator=generator)
    with torch.no_grad():
        assert len(banded.bands(x)) == height or height == 1
        wanted = reference(norm.double(), conv.double(), x.double())
        output = banded.norm_silu_conv(norm.float(), conv.float(), x)
        assert tiny_models.relative(output, wanted) < 1e-6
        wanted = conv.double()(F.interpolate(x.double(), scale_factor=2.0, mode="nearest"))
        assert tiny_models.relative(banded.enlarge_conv(conv.float(), x), wanted) < 1e-6


def test_statistics_hold_where_the_mean_is_large(small_bands):
    norm = nn.GroupNorm(2, 8, eps=1e-6)
    x = 1000 + torch.randn(2, 8, 40, 60, generator=torch.Generator().manual_seed(0))
    mean, deviation = banded.group_statistics(norm, x)
    grouped = x.double().unflatten(1, (2, -1)).flatten(2)
    assert tiny_models.relative(mean[..., 0], grouped.mean(-1)) < 1e-6
    assert (
        tiny_models.relative(deviation[..., 0], (grouped.var(-1, correction=0) + 1e-6).rsqrt())
        < 1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_autoencoder_in_bands_is_the_plain_one(dtype, monkeypatch):
    vae = tiny_models.randomise(AutoEncoder(tiny_models.VAE)).to(dtype)
    latents = torch.randn(1, 16, 24, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = vae.decode(latents)
        again = vae.encode(plain.clamp(-1, 1))
        monkeypatch.setattr(banded, "LIMIT", 2000)
        monkeypatch.setattr(banded, "BAND", 20000)
        assert len(banded.bands(plain)) > 5
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        assert tiny_models.relative(vae.decode(latents), plain) < tolerance
        assert tiny_models.relative(vae.encode(plain.clamp(-1, 1)), again) < tolerance


def decode_bytes() -> int:
    with torch.device("meta"):
        vae = AutoEncoder(VAEConfig()).bfloat16()
    return vae_work(vae, 128, 128, 1).activations


def test_a_picture_of_1024_takes_less_than_the_plain_way(monkeypatch):
    in_bands = decode_bytes()
    monkeypatch.setattr(banded, "LIMIT", 2**60)
    plain = decode_bytes()
    print(f"{in_bands / 1e9:.2f} GB in bands, {plain / 1e9:.2f} GB plain")
    assert in_bands < 0.75 * plain and in_bands < 1.25e9

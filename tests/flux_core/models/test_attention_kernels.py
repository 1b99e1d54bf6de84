"""Attention comes out alike whatever the process says of torch's slow kernel, as a host does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import OffloadPolicy
from flux_core.models.config import VAEConfig
from flux_core.models.vae import AutoEncoder
from flux_core.offload import OffloadRunner
from flux_core.sampling.vae import decode_pictures, encode_pixels

SETTINGS = torch.backends.cuda
VAES = {
    "FLUX.1": VAEConfig(ch=32, ch_mult=(1, 2)),
    "FLUX.2": VAEConfig(ch=32, ch_mult=(1, 2), z_channels=32, patch=2, quant_conv=True),
}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    allowed = SETTINGS.fp16_bf16_reduction_math_sdp_allowed()
    yield
    SETTINGS.allow_fp16_bf16_reduction_math_sdp(allowed)


def both_ways(function: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """What a function gives before a host has imported its memory management, and after."""
    results = []
    for allowed in (False, True):
        SETTINGS.allow_fp16_bf16_reduction_math_sdp(allowed)
        results.append(function())
    return results[0], results[1]


def autoencoder(name: str) -> AutoEncoder:
    torch.manual_seed(0)
    return AutoEncoder(VAES[name]).bfloat16().requires_grad_(False)


def test_the_setting_changes_what_the_slow_kernel_gives():
    """Else the tests below would prove nothing."""
    q, k, v = torch.randn(3, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    q, k, v = (each.mT for each in (q, k, v))
    plain, reduced = both_ways(lambda: F.scaled_dot_product_attention(q, k, v))
    assert not torch.equal(plain, reduced)


@pytest.mark.parametrize("name", VAES)
def test_a_vae_gives_the_same_bits(name):
    vae, runner = autoencoder(name), OffloadRunner(OffloadPolicy(), "cpu")
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(1, vae.config.latent_channels, 16, 12, generator=generator)
    plain, reduced = both_ways(lambda: decode_pictures(runner, vae, [latents])[0])
    assert torch.equal(plain, reduced) and plain.std() > 0
    pixels = torch.rand(1, 3, 64, 48, generator=generator) * 2 - 1
    plain, reduced = both_ways(lambda: encode_pixels(runner, vae, pixels))
    assert torch.equal(plain, reduced) and plain.std() > 0

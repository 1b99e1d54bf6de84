"""Pixels, latents and tokens: sizes, packing, and noise as the host draws it."""

from __future__ import annotations

import torch

from flux_core.models.config import VAEConfig
from flux_core.models.geometry import TokenGeometry
from flux_core.sampling.latents import (
    host_noise,
    image_ids,
    image_tokens,
    latent_size,
    pack,
    text_ids,
    token_grid,
    unpack,
    zero_latents,
)
from flux_core.sampling.references import reference_tokens


def test_sizes_from_pixels_to_tokens():
    assert latent_size(768, 1024) == (96, 128)
    assert token_grid(96, 128) == (48, 64)
    assert image_tokens(*latent_size(768, 1024)) == 48 * 64 == 768 * 1024 // 256


def test_packed_latents_are_as_many_tokens_and_come_back():
    latents = torch.randn(2, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    tokens = pack(latents)
    assert tokens.shape == (2, image_tokens(4, 6), 64)
    assert torch.equal(unpack(tokens, 4, 6), latents)
    ids = image_ids(4, 6, index=1)
    assert ids.shape == (image_tokens(4, 6), 3)
    assert ids[-1].tolist() == [1, 1, 2]


def test_a_picture_of_a_batch_has_its_own_noise():
    batch = host_noise((3, 16, 4, 4), 5)
    assert torch.equal(host_noise((1, 16, 4, 4), 5, [0]), batch[:1])
    again = host_noise((2, 16, 4, 4), 5, [2, 0])
    assert torch.equal(again[1], batch[0]) and not torch.equal(again[0], batch[1])


class TestAFamilyOfAnotherGeometry:
    """Sixteen pixels a latent, a latent a token, four axes, text along the last of them."""

    VAE = VAEConfig(z_channels=32, patch=2, scale_factor=1.0, shift_factor=0.0)
    TOKENS = TokenGeometry(1, 4, 3, 10.0, "index")

    def test_sizes_channels_and_tokens(self):
        assert latent_size(768, 1024, self.VAE) == (48, 64)
        assert zero_latents(self.VAE, 2, 64, 96).shape == (2, 128, 4, 6)
        assert image_tokens(48, 64, geometry=self.TOKENS) == 768 * 1024 // 256

    def test_tokens_are_latents_row_by_row(self):
        latents = torch.randn(2, 128, 3, 5, generator=torch.Generator().manual_seed(0))
        tokens = pack(latents, self.TOKENS)
        assert torch.equal(tokens, latents.flatten(2).transpose(1, 2))
        assert torch.equal(unpack(tokens, 3, 5, self.TOKENS), latents)

    def test_positions(self):
        ids = image_ids(3, 5, index=2, geometry=self.TOKENS)
        assert ids.shape == (15, 4) and ids[-1].tolist() == [2, 2, 4, 0]
        assert text_ids(7, self.TOKENS).tolist() == [[0, 0, 0, i] for i in range(7)]
        assert not text_ids(7).count_nonzero() and text_ids(7).shape == (7, 3)

    def test_references_are_a_step_apart_where_nothing_else_is_asked(self):
        latents = [torch.zeros(1, 128, 2, 3), torch.zeros(1, 128, 1, 1)]
        tokens, ids = reference_tokens(latents, None, 4, 4, 2, self.TOKENS)
        assert tokens.shape == (2, 7, 128)
        assert ids[:, 0].tolist() == [10.0] * 6 + [20.0]
        _, same_layer = reference_tokens(latents, "uxo", 4, 4, 2, self.TOKENS)
        assert same_layer[0].tolist() == [0, 4, 4, 0]

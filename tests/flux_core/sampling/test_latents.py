"""Pixels, latents and tokens: sizes, packing, and noise as the host draws it."""

from __future__ import annotations

import torch

from flux_core.sampling.latents import (
    host_noise,
    image_ids,
    image_tokens,
    latent_size,
    pack,
    token_grid,
    unpack,
)


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

"""Our VAE behind the host's methods."""

from __future__ import annotations

import torch
from fluxfit.nodes import accounts

from flux_core import OffloadPolicy


class TestVAE:
    def test_tiles_give_nearly_the_whole_picture(self, loaded):
        vae = loaded[2]
        latents = vae.encode(torch.rand(1, 128, 128, 3).round())
        whole = vae.decode(latents)
        tiles = vae.decode_tiled(latents, tile_x=12, tile_y=12, overlap=4, tile_t=None)
        assert tiles.shape == whole.shape and (tiles - whole).abs().mean() < 0.05
        again = vae.encode_tiled(whole, tile_x=96, tile_y=96, overlap=32, tile_t=64)
        assert again.shape == latents.shape

    def test_sides_are_cut_to_multiples_of_eight(self, loaded):
        assert loaded[2].encode(torch.rand(1, 70, 37, 4)).shape == (1, 16, 8, 4)
        assert loaded[2].spacial_compression_decode() == 8

    def test_the_vae_decodes_in_tiles_where_the_budget_asks_for_it(self, loaded):
        latents = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
        whole = loaded[2].decode(latents)
        assert accounts.latest().parts["VAE decoder"].tile is None
        small = type(loaded[2])(
            loaded[2].first_stage_model, OffloadPolicy("component", vram_budget=60_000_000)
        )
        tiled = small.decode(latents)
        assert accounts.latest().parts["VAE decoder"].tile in (32, 48)
        assert tiled.shape == whole.shape and not torch.equal(tiled, whole)

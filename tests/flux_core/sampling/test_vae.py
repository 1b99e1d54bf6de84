"""Decoding within a budget."""

from __future__ import annotations

import pytest
import torch

from flux_core import AutoEncoder
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.plan import cost_of
from flux_core.sampling.vae import decode, vae_work
from tests import tiny_models
from tests.flux_core.offload.cpu_as_card import CPU, card_policy


def test_a_vae_takes_what_was_predicted_and_tiles_where_it_must():
    vae = tiny_models.randomise(AutoEncoder(tiny_models.VAE))
    latents = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    work = vae_work(vae, 64, 64, 1)
    work.fit(0)  # counted before, as the counting itself would be counted too
    pictures, tiles = [], []
    for budget in (None, cost_of(vae).rest + work.activations // 3):
        runner = OffloadRunner(card_policy("component", vram_budget=budget), CPU)
        with torch.no_grad(), LiveBytes() as counted:
            pictures.append(
                runner.run("VAE", [vae], lambda plan: decode(vae, latents, plan, CPU), work)
            )
        tiles.append(runner.report.parts["VAE"].tile)
        if budget is None:
            assert counted.peak == pytest.approx(cost_of(vae).rest + work.activations, rel=0.03)
        else:  # the result is put together on the host, which here is the same
            assert counted.peak - 3 * pictures[0].nbytes <= budget
    assert tiles == [None, 32] and not torch.equal(*pictures)
    assert "in tiles of 256 pixels, blended" in str(runner.report)
    assert tiny_models.relative(pictures[1], pictures[0]) < 0.3

"""Modulations that are computed before the run."""

from __future__ import annotations

import torch

from flux_core import (
    OffloadPolicy,
)
from flux_core.offload.modulations import PrecomputedModulations
from tests import tiny_models
from tests.flux_core.offload.pocket_pictures import pocket_picture


def test_precomputed_modulations_are_those_of_the_step_and_others_are_live():
    model = tiny_models.flux_transformer()
    kwargs = tiny_models.inputs()
    with torch.no_grad():
        vecs = {
            (sigma, "positive"): model.embed_vector(
                torch.full((2,), sigma), kwargs["y"], kwargs["guidance"]
            )
            for sigma in (0.9, 0.5, 0.1)
        }
        precomputed = PrecomputedModulations(model, vecs)
        for sigma in (0.5, 0.9):
            assert precomputed.select((sigma, "positive"))
            given = kwargs | {"timesteps": torch.full((2,), sigma)}
            expected = model(**given)
            model.precomputed = precomputed
            assert tiny_models.relative(model(**given), expected) < 1e-5
            model.precomputed = None
        assert not precomputed.select((0.7, "positive"))


def test_a_long_run_is_precomputed_in_windows(monkeypatch):
    expected = pocket_picture("bf16", OffloadPolicy("none"))
    monkeypatch.setattr("flux_core.offload.modulations.WINDOW", 2)
    latents_drawn = pocket_picture("bf16", OffloadPolicy("none"))
    assert tiny_models.relative(latents_drawn, expected) < 0.02
    assert torch.equal(pocket_picture("bf16", OffloadPolicy("stream")), latents_drawn)

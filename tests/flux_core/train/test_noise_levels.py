"""Noise levels: how they are drawn, and how much each counts."""

from __future__ import annotations

import math

import pytest
import torch

from flux_core.train.config import TIMESTEPS, WEIGHTINGS, ObjectiveConfig
from flux_core.train.noise_levels import draw_times, loss_weights


def times(count: int = 20_000, tokens: int = 1024, **more) -> torch.Tensor:
    return draw_times(ObjectiveConfig(**more), count, tokens, torch.Generator().manual_seed(0))


def test_noise_levels_are_drawn_as_named():
    assert abs(float(times(timesteps="uniform").mean()) - 0.5) < 0.01
    logits = torch.logit(times(timesteps="logit_normal", mean=0.7, scale=0.5))
    assert abs(float(logits.mean()) - 0.7) < 0.02 and abs(float(logits.std()) - 0.5) < 0.02
    plain = times(timesteps="sigmoid")
    shifted = times(timesteps="shift", shift=3.0)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain), atol=1e-5)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        drawn = times(timesteps="resolution_shift", tokens=tokens)
        factor = math.exp(mu)
        assert torch.allclose(drawn, factor * plain / (1 + (factor - 1) * plain), atol=1e-4)


@pytest.mark.parametrize("name", TIMESTEPS)
def test_levels_are_inside_and_repeat_with_the_seed(name):
    drawn = times(timesteps=name)
    assert bool((drawn > 0).all() and (drawn < 1).all())
    assert torch.equal(drawn, times(timesteps=name))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights(name):
    t = torch.linspace(0.02, 0.98, 97)
    weights = loss_weights(ObjectiveConfig(weighting=name), t)
    assert bool(torch.isfinite(weights).all() and (weights > 0).all())
    expected = {"none": 1.0, "sigma_sqrt": 4.0, "cosmap": 4 / math.pi}.get(name)
    if expected is None:  # a bell of mean 1, highest in the middle
        assert int(weights.argmax()) == 48 and abs(float(weights.mean()) - 1) < 0.05
    else:
        assert float(weights[48]) == pytest.approx(expected, rel=1e-4)

"""What is learned, and at which noise levels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flux_core.models.text_encoders import TextEncoding
from flux_core.sampling.latents import pack
from flux_core.train.config import TIMESTEPS, WEIGHTINGS, ObjectiveConfig
from flux_core.train.history import times_histogram
from flux_core.train.objective import draw_times, losses_of, predict, weights_of


def times(count: int = 20_000, tokens: int = 1024, **more) -> torch.Tensor:
    return draw_times(ObjectiveConfig(**more), count, tokens, torch.Generator().manual_seed(0))


class Oracle(nn.Module):
    """A model that knows the picture: it finds the noise in what it sees."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean
        self.told: dict[str, torch.Tensor] = {}

    def forward(self, img, timesteps, guidance, **_) -> torch.Tensor:
        self.told = {"timesteps": timesteps, "guidance": guidance}
        t = timesteps.view(-1, 1, 1)
        noise = (img - (1 - t) * pack(self.clean)) / t
        return noise - pack(self.clean)


def test_a_perfect_model_has_loss_zero():
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(3, 16, 8, 6, generator=generator) for _ in range(2))
    t = torch.tensor([0.2, 0.5, 0.9])
    level = t.view(-1, 1, 1, 1)
    model = Oracle(clean)
    noisy = (1 - level) * clean + level * noise
    text = TextEncoding(torch.zeros(3, 5, 8), torch.zeros(3, 4))
    velocity = predict(model, noisy, t, text, 1.0)
    assert torch.equal(model.told["guidance"], torch.ones(3))
    assert float(losses_of(velocity, clean, noise, torch.ones(3)).max()) < 1e-10
    worse = losses_of(velocity + 1, clean, noise, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(worse, torch.tensor([1.0, 2.0, 3.0]), atol=1e-4)


def test_a_mask_says_where_it_counts():
    clean, noise = torch.zeros(2, 16, 4, 4), torch.zeros(2, 16, 4, 4)
    velocity = torch.zeros(2, 16, 4, 4)
    velocity[:, :, :, :2] = 3.0
    mask = torch.ones(2, 1, 4, 4)
    mask[0, :, :, :2] = 0
    mask[1, :, :, 2:] = 0
    found = losses_of(velocity, clean, noise, torch.ones(2), mask)
    assert found.tolist() == [0.0, 9.0]  # half of the picture, but its whole loss
    assert losses_of(velocity, clean, noise, torch.ones(2), mask * 0).tolist() == [0.0, 0.0]


def test_noise_levels_are_drawn_as_named():
    assert abs(float(times(timesteps="uniform").mean()) - 0.5) < 0.01
    logits = torch.logit(times(timesteps="logit_normal", mean=0.7, scale=0.5))
    assert abs(float(logits.mean()) - 0.7) < 0.02 and abs(float(logits.std()) - 0.5) < 0.02
    plain = times(timesteps="sigmoid")
    shifted = times(timesteps="shift", shift=3.0)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain), atol=1e-5)
    for tokens, mu in ((256, 0.5), (4096, 1.15)):
        found = times(timesteps="resolution_shift", tokens=tokens)
        factor = math.exp(mu)
        assert torch.allclose(found, factor * plain / (1 + (factor - 1) * plain), atol=1e-4)


@pytest.mark.parametrize("name", TIMESTEPS)
def test_levels_are_inside_and_repeat_with_the_seed(name):
    found = times(timesteps=name)
    assert bool((found > 0).all() and (found < 1).all())
    assert torch.equal(found, times(timesteps=name))
    picture = times_histogram(ObjectiveConfig(timesteps=name))
    assert picture.ndim == 3 and float(picture.std()) > 0.05


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights(name):
    t = torch.linspace(0.02, 0.98, 97)
    found = weights_of(ObjectiveConfig(weighting=name), t)
    assert bool(torch.isfinite(found).all() and (found > 0).all())
    expected = {"none": 1.0, "sigma_sqrt": 4.0, "cosmap": 4 / math.pi}.get(name)
    if expected is None:  # a bell of mean 1, highest in the middle
        assert int(found.argmax()) == 48 and abs(float(found.mean()) - 1) < 0.05
    else:
        assert float(found[48]) == pytest.approx(expected, rel=1e-4)

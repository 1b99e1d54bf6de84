"""What is learned."""

from __future__ import annotations

import torch
from torch import nn

from flux_core.models.text_encoders import TextEncoding
from flux_core.sampling.latents import pack
from flux_core.train.objective import flow_matching_loss, predict_velocity


class Oracle(nn.Module):
    """A model that knows the picture: it finds the noise in what it sees."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean
        self.seen: dict[str, torch.Tensor] = {}

    def forward(self, img, timesteps, guidance, **_) -> torch.Tensor:
        self.seen = {"timesteps": timesteps, "guidance": guidance}
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
    velocity = predict_velocity(model, noisy, t, text, 1.0)
    assert torch.equal(model.seen["guidance"], torch.ones(3))
    assert float(flow_matching_loss(velocity, clean, noise, torch.ones(3)).max()) < 1e-10
    worse = flow_matching_loss(velocity + 1, clean, noise, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(worse, torch.tensor([1.0, 2.0, 3.0]), atol=1e-4)


def test_a_mask_says_where_it_counts():
    clean, noise = torch.zeros(2, 16, 4, 4), torch.zeros(2, 16, 4, 4)
    velocity = torch.zeros(2, 16, 4, 4)
    velocity[:, :, :, :2] = 3.0
    mask = torch.ones(2, 1, 4, 4)
    mask[0, :, :, :2] = 0
    mask[1, :, :, 2:] = 0
    losses = flow_matching_loss(velocity, clean, noise, torch.ones(2), mask)
    assert losses.tolist() == [0.0, 9.0]  # half of the picture, but its whole loss
    assert flow_matching_loss(velocity, clean, noise, torch.ones(2), mask * 0).tolist() == [
        0.0,
        0.0,
    ]

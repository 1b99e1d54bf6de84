"""Colors of one picture given to another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core.sampling.color import match_color


def pictures(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 + 0.4 * torch.rand(batch, height, width, 3, generator=generator)


def test_mean_and_deviation_of_each_channel():
    x, y = pictures(2, 40, 50), 0.2 + 0.5 * pictures(2, 40, 50, 1)
    y[..., 1] *= 0.7
    matched = match_color(x, y, method="mean_std")
    assert torch.allclose(matched.mean((1, 2)), y.mean((1, 2)), atol=1e-5)
    deviations = [z.flatten(1, 2).std(1, correction=0) for z in (matched, y)]
    assert torch.allclose(*deviations, atol=1e-4)
    half = match_color(x, y, method="mean_std", strength=0.5)
    assert torch.allclose(half, (x + matched) / 2, atol=1e-6)
    assert torch.equal(match_color(x, y, strength=0.0), x)


def low_by_dilation(x: Tensor) -> Tensor:
    """Five dilated 3x3 convolutions, as StableSR has them."""
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (row[:, None] * row)[None, None].repeat(3, 1, 1, 1)
    x = x.movedim(-1, 1)
    for level in range(5):
        step = 2**level
        x = F.conv2d(F.pad(x, (step,) * 4, mode="replicate"), kernel, groups=3, dilation=step)
    return x.movedim(1, -1)


def test_wavelets_take_over_low_frequencies_and_keep_detail():
    x, y = pictures(2, 48, 40), pictures(2, 48, 40, 1) * 0.8
    expected = x - low_by_dilation(x) + low_by_dilation(y)
    assert torch.allclose(match_color(x, y), expected.clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize("method", ["mean_std", "wavelet"])
def test_a_mask_says_where_to_measure(method):
    """The picture is the reference 0.1 darker, and its lower half shows something else."""
    y = pictures(1, 80, 64)
    x = y - 0.1
    x[:, 40:] = pictures(1, 40, 64, 2) * 0.5
    mask = torch.zeros(1, 80, 64)
    mask[:, :40] = 1
    matched = match_color(x, y, mask, method)
    assert torch.allclose(matched[:, :40], y[:, :40], atol=1e-3)
    assert torch.allclose(matched[:, 40:], x[:, 40:] + 0.1, atol=1e-2 if method == "wavelet" else 1)
    assert not torch.allclose(match_color(x, y, None, method)[:, :40], y[:, :40], atol=1e-2)


def test_references_of_another_size_are_scaled():
    y = torch.full((1, 20, 30, 3), 0.6)
    x = torch.full((2, 40, 40, 3), 0.5)
    assert torch.allclose(match_color(x, y), torch.full_like(x, 0.6), atol=1e-5)


def test_what_is_wrong_is_named():
    x = pictures(1, 8, 8)
    for arguments, message in (
        ((x, x, None, "lab"), "method is 'lab', expected one of mean_std, wavelet"),
        ((x, x, torch.zeros(1, 8, 8)), "mask is 0 everywhere"),
        ((x, x.repeat(2, 1, 1, 1)), "reference has 2 pictures, the batch 1"),
        ((x, x, None, "wavelet", 2.0), "strength is 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            match_color(*arguments)

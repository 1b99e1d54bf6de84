"""Grey masks by steps, against the host's formula."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from flux_core.models.families import FLUX1_DEV, FLUX1_SCHNELL
from flux_core.sampling.conditioning import Conditioning
from flux_core.sampling.differential import mask_by_steps
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.sigmas import make_sigmas, table_for
from tests import tiny_models


def host_mask(sigma, sigmas, mask, strength, shift, entries):
    """What ComfyUI 0.21's DifferentialDiffusion gives, from its arithmetic: float32 scalars."""
    smallest = torch.arange(1, entries + 1)[0] / entries
    if shift:
        power = torch.exp(torch.tensor(shift, dtype=torch.float64))
        smallest = (power / (power + (1 / smallest - 1))).float()
    end = sigmas[-1] if sigmas[-1] > smallest else smallest
    threshold = (sigma - end) / (sigmas[0] - end)
    binary = (mask >= threshold).float()
    return strength * binary + (1 - strength) * mask if 0 < strength < 1 else binary


@pytest.mark.parametrize("family", [FLUX1_DEV, FLUX1_SCHNELL], ids=lambda family: family.name)
@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("last", [None, 7])
def test_masks_are_the_host_s(family, strength, last):
    table = table_for(family)
    sigmas = make_sigmas(table, "simple", 12)[:last]
    mask = torch.rand(2, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    mask[0, 0, 0, :3] = torch.tensor([0.0, 1.0, 0.5])
    steps = mask_by_steps(sigmas, table, strength)
    masks = [steps(mask, sigma) for sigma in sigmas[:-1]]
    for sigma, ours in zip(sigmas[:-1], masks, strict=True):
        theirs = host_mask(sigma, sigmas, mask, strength, family.sigma_shift, family.sigma_entries)
        assert torch.equal(ours, theirs)
    drawn = [float((m > 0.99).float().mean()) for m in masks]
    assert drawn == sorted(drawn) and (strength == 0.3 or 0 < drawn[0] < 0.1 < drawn[-1])


def test_a_run_without_a_strength_or_steps_has_none():
    table = table_for(FLUX1_DEV)
    assert mask_by_steps(torch.tensor([1.0, 0.0]), table, None) is None
    assert mask_by_steps(torch.tensor([]), table, 1.0) is None


class TestDrawing:
    def request(self, **options) -> DrawRequest:
        model = tiny_models.flux_transformer().requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        text = Conditioning(
            torch.randn(1, 5, tiny_models.CONTEXT, generator=generator),
            torch.randn(1, tiny_models.POOLED, generator=generator),
        )
        start = torch.randn(1, 16, 4, 6, generator=generator)
        mask = torch.zeros(1, 1, 4, 6)
        mask[..., 2:4], mask[..., 4:] = 0.5, 1.0
        return DrawRequest(
            model, text, start, SamplingSettings(steps=4), **{"mask": mask} | options
        )

    def test_every_step_draws_where_the_mask_is_above_its_sigma(self):
        """Euler's steps written out, with the transformer's pictures replaced by their own."""
        request = self.request(differential=1.0)
        model = request.denoiser(torch.device("cpu"))
        noise, sigmas, _ = request.noise_schedule
        start = (request.latents - 0.1159) * 0.3611
        x = noise
        with torch.no_grad():
            for now, after in itertools.pairwise(sigmas):
                last = request.noise_schedule.table.sigmas[0]
                drawn = request.mask >= (now - last) / (1 - last)
                kept = now * noise + (1 - now) * start
                picture = model(torch.where(drawn, x, kept), now)
                picture = torch.where(drawn, picture, start)
                x = x + (x - picture) / now * (after - now)
        assert torch.allclose(sample(request), x / 0.3611 + 0.1159, atol=1e-4)

    def test_what_is_black_is_kept_and_grey_differs_from_blending(self):
        request = self.request(differential=1.0)
        drawn, blended = sample(request), sample(replace(request, differential=None))
        assert torch.allclose(drawn[..., :2], request.latents[..., :2], atol=1e-5)
        assert not torch.allclose(drawn[..., 2:4], blended[..., 2:4], atol=1e-2)
        hard = replace(request, mask=(request.mask > 0.75).float())
        plain = sample(replace(hard, differential=None))
        assert torch.allclose(sample(hard), plain, atol=1e-6)

    def test_strengths_out_of_range_are_refused(self):
        for strength in (-0.1, 1.5, float("nan")):
            with pytest.raises(ValueError, match="strength of differential diffusion is"):
                self.request(differential=strength)

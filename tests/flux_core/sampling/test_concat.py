"""Models that read a picture, and a mask, beside the noise."""

from __future__ import annotations

import dataclasses
import logging
from typing import cast

import pytest
import torch

from flux_core import Conditioning, Control, FluxControlNet
from flux_core.sampling.concat import extra_channels, extra_latents
from flux_core.sampling.latents import pack, standardise
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from tests import tiny_models


class TestWiderModels:
    @pytest.mark.parametrize("channels", [128, 384])
    def test_they_read_the_picture_beside_the_noise(self, channels):
        model = tiny_models.flux_transformer(
            dataclasses.replace(tiny_models.DEV, in_channels=channels)
        )
        seen = []
        model.img_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        generator = torch.Generator().manual_seed(0)
        picture = torch.randn(1, 16, 4, 6, generator=generator)
        mask = (torch.rand(1, 1, 32, 48, generator=generator) > 0.5).float()
        text = Conditioning(
            torch.randn(1, 5, tiny_models.CONTEXT),
            torch.randn(1, tiny_models.POOLED),
            3.5,
            picture,
            mask,
        )
        start = torch.zeros(2, 16, 4, 6)
        request = DrawRequest(model, text, start, SamplingSettings(steps=1))
        sample(request)
        noise_schedule = request.noise_schedule
        (read,) = seen
        assert read.shape == (2, 6, channels)
        assert torch.equal(read[:, :, :64], pack(noise_schedule.sigmas[0] * noise_schedule.noise))
        assert torch.equal(read[1, :, 64:128], pack(standardise(picture))[0])
        if channels == 384:  # 256 numbers a token: which latent of four, row, column of its pixels
            token = read[0, 4, 128:].view(64, 2, 2)  # second row, second column of tokens
            assert torch.equal(
                token.view(8, 8, 2, 2).permute(2, 0, 3, 1).reshape(16, 16), mask[0, 0, 16:, 16:32]
            )

    def test_without_one_they_read_zeros_and_say_so(self, caplog):
        model = tiny_models.flux_transformer(dataclasses.replace(tiny_models.DEV, in_channels=128))
        text = Conditioning(
            torch.zeros(1, 5, tiny_models.CONTEXT), torch.zeros(1, tiny_models.POOLED)
        )
        start = torch.zeros(1, 16, 4, 4)
        with caplog.at_level(logging.WARNING):
            sample(DrawRequest(model, text, start, SamplingSettings(steps=1)))
        assert "reads a picture beside the noise, and none was given" in caplog.text

    @pytest.mark.parametrize("channels", [64, 128, 384])
    def test_a_controlnet_reads_the_noisy_latents_alone(self, channels):
        config = dataclasses.replace(tiny_models.DEV, in_channels=channels)
        model = tiny_models.flux_transformer(config)
        net = cast(FluxControlNet, tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER)))
        text = Conditioning(
            torch.zeros(1, 5, tiny_models.CONTEXT),
            torch.zeros(1, tiny_models.POOLED),
            picture=None if channels == 64 else torch.ones(1, 16, 4, 4),
        )
        read = []
        net.register_forward_pre_hook(lambda _, __, given: read.append(given), with_kwargs=True)
        control = Control(net, torch.ones(1, 16, 4, 4))
        settings = SamplingSettings(steps=1)
        request = DrawRequest(model, text, torch.zeros(1, 16, 4, 4), settings, controls=[control])
        assert sample(request).isfinite().all()
        noise = request.noise_schedule
        assert torch.equal(read[0]["img"], pack(noise.sigmas[0] * noise.noise))

    def test_unknown_widths_are_refused(self):
        with pytest.raises(ValueError, match="reads 200 packed channels, known are 64, 128, 384"):
            extra_channels(200)

    def test_pictures_and_masks_of_other_sizes_are_brought_to_size(self):
        latents = extra_latents(80, torch.ones(1, 16, 8, 8), torch.ones(2, 1, 7, 9), 2, 4, 6)
        assert latents.shape == (2, 80, 4, 6)
        assert torch.allclose(latents[:, 16:], torch.ones(2, 64, 4, 6))

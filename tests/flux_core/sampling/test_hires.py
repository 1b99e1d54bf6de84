"""Drawn small, enlarged, drawn again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import Conditioning, Control, FluxControlNet, OffloadPolicy
from flux_core.models.families import FLUX1_DEV
from flux_core.offload import OffloadRunner
from flux_core.sampling.conditioning import Region
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.hires import (
    ENLARGE,
    Hires,
    check_runs,
    check_vae,
    draw_twice,
    outlined_second,
    plan_draw,
    second_request,
)
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw
from flux_core.sampling.sigmas import make_sigmas, table_for
from flux_core.sampling.tiles import Tiling
from tests import tiny_chroma, tiny_models

NO_VAE = pytest.fail


def text(seed: int = 0, **options) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, 5, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
        **options,
    )


@pytest.fixture(scope="module")
def request_small() -> DrawRequest:
    config = replace(tiny_models.DEV, depth=1, depth_single_blocks=2)
    model = tiny_models.flux_transformer(config).requires_grad_(False)
    settings = SamplingSettings(seed=2, steps=2, shift="resolution")
    return DrawRequest(model, text(), torch.zeros(1, 16, 4, 6), settings)


def decode(latents: Tensor) -> Tensor:
    """Pixels (B, 3, H, W): three channels, each latent 8x8 of them."""
    return F.interpolate(latents[:, :3].clamp(-1, 1), scale_factor=8, mode="nearest-exact")


def encode(pixels: Tensor) -> Tensor:
    return F.avg_pool2d(pixels, 8).repeat(1, 6, 1, 1)[:, :16]


def test_the_second_run_is_that_of_its_size_and_begins_in_the_middle(request_small):
    drawn = torch.randn(1, 16, 4, 6)
    second = second_request(request_small, drawn, Hires(2.4, 0.4, 5), decode, encode)
    assert second.latents.shape == (1, 16, 10, 14)
    sigmas = make_sigmas(table_for(FLUX1_DEV, "resolution", 35), "simple", 5, 0.4)
    assert torch.equal(second.noise_schedule.sigmas, sigmas) and sigmas[0] < 1
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(second.noise_schedule.noise, torch.randn(1, 16, 10, 14, generator=generator))
    same = second_request(request_small, drawn, Hires(1.0, 1.0), decode, encode)
    assert same.steps == 2 and same.latents.shape == drawn.shape


@pytest.mark.parametrize("how", ENLARGE)
def test_every_way_of_enlarging(request_small, how):
    drawn = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0))
    only_latents = how.startswith("latent ")
    convert = (NO_VAE, NO_VAE) if only_latents else (decode, encode)
    latents = second_request(request_small, drawn, Hires(2.0, enlarge=how), *convert).latents
    if only_latents:
        assert torch.equal(latents, F.interpolate(drawn, (8, 12), mode=how[7:]))
    elif how == "nearest-exact":
        expected = F.interpolate(drawn[:, :3].clamp(-1, 1), (8, 12), mode="nearest-exact")
        assert torch.allclose(latents[:, :3], expected, atol=1e-5)
    else:
        pixels = F.interpolate(decode(drawn), (64, 96), mode="bicubic", antialias=True)
        assert torch.allclose(latents, encode(pixels.clamp(-1, 1)), atol=1e-5)


def test_controls_of_the_second_run_see_the_enlarged_picture(request_small):
    net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
    other = Control(net, torch.zeros(1, 16, 2, 2), 0.5)
    drawn = torch.randn(1, 16, 4, 6)
    hires = Hires(2.0, enlarge="latent bilinear", controls=[other])
    second = second_request(request_small, drawn, hires, decode, encode)
    (control,) = second.controls
    assert control.strength == 0.5 and control.cond.shape == (1, 16, 8, 12)
    pixels = F.interpolate(decode(drawn), (64, 96), mode="bicubic", antialias=True)
    assert torch.allclose(control.cond, encode(pixels.clamp(-1, 1)), atol=1e-5)
    assert not request_small.controls


def test_regions_and_masks_grow_along(request_small):
    region = Region(area=(2, 4, 1, 2))
    mask = torch.zeros(1, 1, 4, 6)
    mask[..., :3] = 1
    first = replace(request_small, positive=[text(), text(1, region=region)], mask=mask)
    hires = Hires(2.0, enlarge="latent nearest-exact", tiles=Tiling(64, 16))
    second = second_request(first, torch.zeros(1, 16, 4, 6), hires, NO_VAE, NO_VAE)
    area = second.positives[1].region
    assert area.shares and area.area == (2 / 4, 4 / 6, 1 / 4, 2 / 6)
    assert second.mask is not None and second.mask.shape == (1, 1, 8, 12)
    assert second.mask[..., :5].min() == 1 and second.mask[..., 7:].max() == 0
    assert second.tiles == hires.tiles and first.tiles is None


def test_both_runs_are_drawn_and_their_steps_counted_as_one(request_small):
    seen: list[tuple[int, int]] = []
    hires = Hires(2.0, 0.5, 3, enlarge="latent bilinear")
    runner = OffloadRunner(None, "cpu")
    small, large = draw_twice(
        runner,
        request_small,
        hires,
        NO_VAE,
        NO_VAE,
        lambda step, total, _: seen.append((step, total)),
    )
    assert seen == [(step, 5) for step in range(5)]
    assert torch.equal(small, draw(runner, [request_small])[0])
    second = second_request(request_small, small, hires, NO_VAE, NO_VAE)
    assert torch.equal(large, draw(runner, [second])[0])


class TestBothRunsAreCheckedFirst:
    """What the second run cannot draw is said before the first one's first step."""

    HIRES = Hires(2.0, 0.5, 2, enlarge="latent bilinear")

    def refused(self, first: DrawRequest, hires: Hires, message: str, policy=None) -> None:
        def step(*_: object) -> None:
            pytest.fail("the first run has begun")

        with pytest.raises(ValueError, match=message):
            draw_twice(OffloadRunner(policy, "cpu"), first, hires, NO_VAE, NO_VAE, step)

    def test_controls_without_a_picture_to_scale(self, request_small):
        net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
        first = replace(request_small, controls=[Control(net, torch.zeros(1, 16, 4, 6))])
        message = "the control picture is 48x32 pixels, the picture to draw 96x64"
        self.refused(first, self.HIRES, message)
        pictured = Control(
            net, torch.zeros(1, 16, 4, 6), picture=torch.zeros(1, 3, 32, 48), encode=encode
        )
        drawn = draw_twice(
            OffloadRunner(None, "cpu"),
            replace(request_small, controls=[pictured]),
            self.HIRES,
            NO_VAE,
            NO_VAE,
        )
        assert drawn[1].shape == (1, 16, 8, 12)

    def test_steps_that_only_the_second_run_lacks(self, request_small):
        settings = replace(request_small.settings, guidance_options=GuidanceOptions(zero_steps=1))
        first = replace(request_small, settings=settings)
        message = "zero_steps is 1, expected fewer than the 1 steps"
        self.refused(first, replace(self.HIRES, steps=1), message)

    def test_controls_of_another_family(self):
        model = tiny_chroma.chroma_transformer()
        first = DrawRequest(model, text(), torch.zeros(1, 16, 4, 6), SamplingSettings(steps=2))
        net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
        hires = replace(self.HIRES, controls=[Control(net, torch.zeros(1, 16, 2, 2))])
        self.refused(first, hires, "Chroma takes no ControlNets")

    def test_memory_that_the_second_run_does_not_have(self, request_small):
        runner = OffloadRunner(OffloadPolicy("auto", separate_memory=True), "cpu")
        large = replace(self.HIRES, scale=16.0)
        first = plan_draw(runner, request_small)
        second = plan_draw(runner, outlined_second(request_small, large))
        assert second.least > first.least
        budget = (first.least + second.least) // 2
        policy = OffloadPolicy("auto", vram_budget=budget, separate_memory=True)
        message = "the second run, 768x512 pixels, needs .* at least and has .*: draw it in tiles"
        self.refused(request_small, large, message, policy)
        tiled = replace(large, tiles=Tiling(64, 16))
        check_runs(OffloadRunner(policy, "cpu"), request_small, tiled)

    @pytest.mark.parametrize("controlled", [False, True])
    def test_what_is_planned_is_what_is_drawn(self, request_small, controlled):
        net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
        controls = [Control(net, torch.zeros(1, 16, 2, 2))] if controlled else []
        hires = replace(self.HIRES, controls=controls)
        policy = OffloadPolicy("stream", separate_memory=True)
        planned = plan_draw(OffloadRunner(policy, "cpu"), outlined_second(request_small, hires))
        convert = (decode, encode) if controlled else (NO_VAE, NO_VAE)
        small = torch.randn(1, 16, 4, 6)
        runner = OffloadRunner(policy, "cpu")
        draw(runner, [second_request(request_small, small, hires, *convert)])
        assert runner.report.parts["transformer"].predicted == planned.peak

    def test_a_vae_of_another_model(self, request_small):
        model = request_small.transformer
        with pytest.raises(ValueError, match="the VAE has latents of 128 channels, FLUX.1"):
            check_vae(model, Hires(), 128)
        check_vae(model, self.HIRES, 128)  # which does not ask it
        check_vae(model, Hires(), 16)
        check_vae(model, Hires(), None)


def test_wrong_numbers_are_named():
    for options, message in (
        ({"scale": 0.5}, "scale of hires is 0.5, expected 1 to 16"),
        ({"denoise": 0.0}, "denoise is 0.0"),
        ({"steps": 0}, "steps is 0"),
        ({"enlarge": "lanczos"}, "enlarge is 'lanczos', expected one of bicubic"),
        ({"controls": ["net"]}, "controls has 'net', expected a Control"),
    ):
        with pytest.raises(ValueError, match=message):
            Hires(**options)

"""Nodes of large pictures: tiles and two runs."""

from __future__ import annotations

import pytest
import torch

from flux_core import Control, load_controlnet
from flux_core.offload import OffloadRunner
from flux_core.pocket import pocket_file
from flux_core.report.seams import seam_ratio
from flux_core.sampling.images import to_images, to_pixels
from flux_core.sampling.stitch import resized
from flux_core.sampling.tiles import Tiling
from flux_core.sampling.vae import decode_pictures
from tests.nodes.node_calls import SETTINGS, defaults, empty, node, sample

TILED = {"tile_size": 64, "overlap": 32, "feather": 64, "moving": False}


def tiled(model, **options):
    (model,) = node("FluxFitTiledDrawing").make(model, **TILED | options)
    return model


class TestTiledDrawing:
    def test_it_says_how_a_model_is_drawn(self, loaded, positive):
        model = tiled(loaded[0])
        assert model.tiles == Tiling(64, 32, 32) and model.module is loaded[0].module
        widgets = defaults("FluxFitTiledDrawing")
        assert node("FluxFitTiledDrawing").make(loaded[0], **widgets)[0].tiles.size == 1024
        wired = (model, *loaded[1:])
        small, large = empty(), empty(side=96)
        plain = sample(loaded, positive, small)[0]["samples"]
        assert torch.equal(sample(wired, positive, small)[0]["samples"], plain)
        drawn = sample(wired, positive, large)[0]["samples"]
        assert not torch.equal(drawn, sample(loaded, positive, large)[0]["samples"])

    def test_the_host_s_samplers_are_refused(self, loaded, positive):
        wired = (tiled(loaded[0]), *loaded[1:])
        with pytest.raises(ValueError, match="FluxFitTiledDrawing and FluxFitDifferential"):
            sample(wired, positive, empty(), sampler_object="euler")

    def test_overlapping_windows_leave_no_seam_and_others_do(self, loaded, positive):
        """An upscaler's picture of three windows a side, of which the middle has an edge each."""
        ramp = torch.linspace(0.1, 0.9, 48)
        picture = torch.stack([ramp.expand(48, 48), ramp[:, None].expand(48, 48)], dim=-1)
        picture = torch.cat([picture, picture[..., :1] * 0.5], dim=-1)[None]
        start = loaded[2].encode(resized(picture, 384, 384))
        net = load_controlnet(pocket_file("controlnet", "_upscaler"))
        ratios = []
        for overlap in (0, 64):
            wired = (tiled(loaded[0], tile_size=128, overlap=overlap), *loaded[1:])
            options = {"denoise": 0.5, "steps": 2, "control": [Control(net, start, 0.8)]}
            drawn = sample(wired, positive, {"samples": start}, **options)[0]["samples"]
            seams = wired[0].tiles.seams(48, 48)
            ratios.append(seam_ratio(loaded[2].decode(drawn), *seams))
        assert ratios[0] > 1.5 and ratios[1] <= 1.0, ratios


class TestHiresFix:
    def run(self, loaded, positive, **options):
        more = {
            "vae": loaded[2],
            "scale": 1.5,
            "enlarge": "bicubic",
            "second_steps": 2,
            "second_denoise": 0.5,
        }
        drawn = node("FluxFitHiresFix").sample_twice(
            loaded[0], positive, empty(), **SETTINGS | {"steps": 2} | more | options
        )
        return drawn["result"]

    def test_it_is_the_sampler_twice(self, loaded, positive):
        large, small, report = self.run(loaded, positive)
        assert large["samples"].shape == (1, 16, 12, 12) and "transformer" in report
        first = sample(loaded, positive, empty(), steps=2)[0]
        assert torch.equal(small["samples"], first["samples"])
        (picture,) = decode_pictures(OffloadRunner(None, "cpu"), loaded[2].first_stage_model,
                                     [small["samples"]])  # fmt: skip
        start = loaded[2].encode(resized(to_images(to_pixels(picture)), 96, 96))
        again = sample(loaded, positive, {"samples": start}, steps=2, denoise=0.5)[0]
        assert torch.allclose(large["samples"], again["samples"], atol=1e-3)

    def test_a_vae_of_another_model_is_refused_before_anything_is_drawn(self, loaded, positive):
        class Other:
            latent_channels = 128

        with pytest.raises(ValueError, match="the VAE has latents of 128 channels"):
            self.run(loaded, positive, vae=Other())

    def test_tiles_and_an_upscaler_draw_the_second_run(self, loaded, positive):
        net = load_controlnet(pocket_file("controlnet", "_upscaler"))
        control = Control(net, torch.zeros(1, 16, 8, 8))
        plain = self.run(loaded, positive)[0]["samples"]
        wired = (tiled(loaded[0]), *loaded[1:])
        pictures = [
            self.run(wired, positive)[0]["samples"],
            self.run(loaded, positive, upscaler=(control,))[0]["samples"],
        ]
        for drawn in pictures:
            assert drawn.shape == plain.shape and not torch.allclose(drawn, plain, atol=1e-2)

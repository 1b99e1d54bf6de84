"""Large pictures and inpainting through the pipeline."""

from __future__ import annotations

import pytest
import torch

from flux_core import FluxPipeline, OffloadPolicy
from flux_core.sampling.hires import Hires
from flux_core.sampling.stitch import CropSettings, crop_for_inpaint, stitch_back
from flux_core.sampling.tiles import Tiling

SETTINGS = {"width": 64, "height": 64, "steps": 2, "seed": 3}
TEXT = "a red circle on blue"
TILES = Tiling(64, 32)


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pocket(policy=OffloadPolicy("component"))


@pytest.fixture(scope="module")
def plain(pipeline) -> torch.Tensor:
    return pipeline(TEXT, **SETTINGS).images


def test_tiles_change_large_pictures_alone(pipeline, plain):
    assert torch.equal(pipeline(TEXT, **SETTINGS, tiles=TILES).images, plain)
    large = SETTINGS | {"width": 112}
    drawn = pipeline(TEXT, **large, tiles=TILES)
    assert drawn.images.shape == (1, 64, 112, 3)
    assert not torch.equal(drawn.images, pipeline(TEXT, **large).images)


def test_hires_draws_larger_in_tiles(pipeline, plain):
    hires = Hires(1.5, 0.5, tiles=TILES)
    steps: list[int] = []
    drawn = pipeline(
        TEXT, **SETTINGS, hires=hires, callback=lambda step, total, _: steps.append(total)
    )
    assert drawn.images.shape == (1, 96, 96, 3) and steps == [4] * 4


def test_what_is_kept_is_kept_to_the_bit(pipeline, plain):
    """Latents alone are kept by a mask; their pixels are not."""
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48], mask[:, 24:40, 24:40] = 0.5, 1
    asked = SETTINGS | {"image": image, "mask": mask, "differential": 1.0}
    drawn = pipeline(TEXT, **asked, keep_pixels=4).images
    without = pipeline(TEXT, **asked).images
    outside = mask == 0
    assert torch.equal(drawn[outside], image[outside])
    assert not torch.equal(without[outside], image[outside])
    assert torch.equal(drawn[:, 24:40, 24:40], without[:, 24:40, 24:40])
    blended = pipeline(TEXT, **asked | {"differential": None}).images
    assert not torch.equal(without, blended)


def test_a_crop_is_drawn_and_stitched_under_every_policy():
    picture = torch.rand(1, 160, 200, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 160, 200)
    mask[:, 60:80, 90:120] = 1
    crop = crop_for_inpaint(picture, mask, CropSettings(64, 64, grow=4, blur=4))
    stitched = []
    for mode in ("none", "stream"):
        pipeline = FluxPipeline.from_pocket(policy=OffloadPolicy(mode))
        drawn = pipeline(TEXT, steps=2, seed=1, image=crop.images, mask=crop.masks, tiles=TILES)
        stitched.append(stitch_back(drawn.images, crop.stitch))
    assert torch.equal(*stitched)
    zone = crop.stitch.weights > 0
    assert torch.equal(stitched[0][~zone], picture[~zone])
    assert not torch.equal(stitched[0][zone], picture[zone])


def test_what_does_not_belong_together_is_refused(pipeline):
    painted = {"image": torch.zeros(1, 64, 64, 3), "mask": torch.ones(1, 64, 64)}
    for options, message in (
        ({"keep_pixels": 4}, "keep_pixels keeps those outside of a mask"),
        ({"tiles": 512}, "tiles is 512, expected a Tiling"),
        ({"hires": 2.0}, "hires is 2.0, expected a Hires"),
        ({"differential": 1.0}, "differential says how a mask is read, but there is none"),
        ({"differential": 2.0, **painted}, "strength of differential diffusion is 2.0"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(TEXT, **SETTINGS, **options)

"""Regions and guidance of ``FluxPipeline``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from flux_core import FluxPipeline
from flux_core.sampling.conditioning import RegionalOptions
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.nag import NormalizedAttentionGuidance
from flux_core.sampling.regional import RegionPrompt
from tests.wild.regions import drawn, has_its_colours, pairs

SAMPLE = (0, 3)
SETTINGS = {"width": 48, "height": 32, "steps": 2}
RIGHT = (0.5, 0.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pocket()


def test_a_box_is_a_mask_of_any_kind(pipeline):
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[:, 48:] = 255
    regions = [
        RegionPrompt("a blue square", box=RIGHT),
        RegionPrompt("a blue square", mask=mask),
        RegionPrompt("a blue square", mask=Image.fromarray(mask)),
        RegionPrompt("a blue square", mask=torch.from_numpy(mask.copy()).float() / 255),
    ]
    pictures = [pipeline("white", regions=[region], **SETTINGS).images for region in regions]
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)
    plain = pipeline("white", **SETTINGS).images
    assert not torch.equal(plain, pictures[0])
    none = RegionalOptions(share=0.0)
    assert torch.equal(
        pipeline("white", regions=regions[:1], regional=none, **SETTINGS).images, plain
    )


def test_nag_reads_the_negative_prompt_at_cfg_1(pipeline):
    options = GuidanceOptions(nag=NormalizedAttentionGuidance())
    plain = pipeline("a red circle", negative_prompt="a square", **SETTINGS).images
    assert torch.equal(plain, pipeline("a red circle", **SETTINGS).images)
    guided = [
        pipeline("a red circle", negative_prompt=text, guidance_options=options, **SETTINGS).images
        for text in ("a square", "blue")
    ]
    assert not torch.equal(guided[0], plain) and not torch.equal(guided[0], guided[1])


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"prompt": 3, "box": RIGHT}, "a region's prompt is 3, expected a text"),
        ({"prompt": "a"}, "a region has a box and a mask or neither"),
        ({"prompt": "a", "box": RIGHT, "mask": torch.ones(2, 2)}, "a box and a mask or neither"),
        ({"prompt": "a", "box": (0.5, 0, 0.5, 1)}, "expected its right and bottom behind"),
        ({"prompt": "a", "box": (0, 0, 1)}, "expected left, top, right and bottom"),
        ({"prompt": "a", "box": (0, 0, 2, 1)}, "a box's right is 2, expected 0 to 1"),
        ({"prompt": "a", "box": RIGHT, "strength": -1}, "a region's strength is -1"),
    ],
)
def test_a_region_is_checked(region, message):
    with pytest.raises(ValueError, match=message):
        RegionPrompt(**region)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"regions": "left"}, "regions is 'left', expected a list of RegionPrompt"),
        ({"regions": ["left"]}, "regions has 'left', expected a RegionPrompt"),
        (
            {"regions": [RegionPrompt("a", mask=torch.ones(3, 8, 8))], "batch_size": 2},
            "a region's mask has 3 pictures, the batch 2",
        ),
        (
            {"regions": [RegionPrompt("a", mask=torch.full((8, 8), 7.0))]},
            "a region's mask has values from 7 to 7",
        ),
        ({"guidance_options": 3.5}, "guidance_options is 3.5, expected GuidanceOptions"),
        ({"regional": 0.5}, "regional is 0.5, expected RegionalOptions"),
    ],
)
def test_what_is_no_region_is_refused_before_anything_runs(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline("white", **SETTINGS | arguments)


def test_halves_get_the_colours_of_their_prompts():
    """A sample of ``python -m tests.wild.regions``."""
    pipeline = FluxPipeline.from_pocket(precision="fp32", policy="none")
    for number in SAMPLE:
        pair = pairs(max(SAMPLE) + 1)[number]
        assert has_its_colours(drawn(pipeline, pair, number), pair), pair

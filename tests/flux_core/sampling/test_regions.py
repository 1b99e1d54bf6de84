"""Where prompts count: areas, masks, feathered edges, and what stands on the other side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flux_core import Conditioning
from flux_core.sampling.conditioning import Region
from flux_core.sampling.regions import (
    Area,
    background_weights,
    bounds,
    feather,
    is_alone,
    opposites,
    place_prompt,
    weights,
)

PLAIN = Conditioning(torch.zeros(1, 5, 8), torch.zeros(1, 4))


def prompt(**region) -> Conditioning:
    return replace(PLAIN, region=Region(**region))


def test_an_area_is_cut_to_the_picture():
    assert place_prompt(prompt(area=(8, 6, 2, 3)), 16, 16).area == Area(8, 6, 2, 3)
    assert place_prompt(prompt(area=(99, 99, 10, 12)), 16, 16).area == Area(6, 4, 10, 12)
    shares = place_prompt(prompt(area=(0.5, 0.25, 0.5, 0.0), shares=True), 16, 8)
    assert shares.area == Area(8, 2, 8, 0)
    for outside in ((4, 4, 16, 0), (4, 4, 0, -1)):
        with pytest.raises(ValueError, match="area begins at row"):
            place_prompt(prompt(area=outside), 16, 16)


def test_edges_inside_the_picture_are_feathered():
    whole = feather(Area(16, 16, 0, 0), 16, 16)
    assert torch.equal(whole, torch.ones(16, 16))
    part = feather(Area(16, 16, 0, 8), 16, 24)
    rise = torch.arange(1, 5) / 4
    assert torch.allclose(part[0, :4], rise) and torch.equal(part[:, 4:], torch.ones(16, 12))
    middle = feather(Area(16, 16, 8, 8), 32, 32)
    assert torch.allclose(middle, middle.flip(0)) and torch.allclose(middle, middle.T)


def test_masks_are_scaled_and_repeated():
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    placed = place_prompt(prompt(mask=mask, mask_strength=0.5, strength=2.0), 8, 8)
    weight = weights(placed, (3, 16, 8, 8))
    assert weight.shape == (3, 1, 8, 8)
    assert weight[:, :, :, :3].unique().item() == 1.0 and weight[..., 5:].unique().item() == 0


def test_the_box_around_a_mask():
    mask = torch.zeros(1, 32, 32)
    mask[0, 4:20, 10:24] = 1
    assert bounds(mask) == Area(16, 14, 4, 10)
    assert bounds(torch.zeros(1, 32, 32)) == Area(8, 8, 0, 0)
    assert place_prompt(prompt(mask=mask, mask_bounds=True), 32, 32).area == Area(16, 14, 4, 10)


def test_an_area_gets_its_opposite_from_the_smallest_that_holds_it():
    size = (32, 32)
    ours = [
        place_prompt(prompt(), *size),
        place_prompt(prompt(area=(16, 16, 0, 0), strength=0.7), *size),
    ]
    other = place_prompt(prompt(area=(8, 8, 0, 0)), *size)
    theirs = opposites([other], ours)
    assert theirs == [other], "nothing on that side holds the area"
    whole = place_prompt(prompt(), *size)
    theirs = opposites([whole], ours)
    assert [entry.area for entry in theirs] == [None, Area(16, 16, 0, 0)]
    assert theirs[1].prompt.region.strength == 0.7
    assert opposites(ours, theirs) == ours, "each has the other's already"


def test_what_is_alone_has_no_weight():
    assert is_alone([PLAIN])
    assert not is_alone([PLAIN, PLAIN])
    assert not is_alone([prompt(strength=0.5)])
    assert not is_alone([replace(PLAIN, end=0.5)])


def test_a_background_takes_what_is_left():
    others = [
        (Area(4, 8, 0, 0), torch.full((1, 1, 4, 8), 0.75)),
        (None, torch.full((1, 1, 8, 8), 0.5)),
    ]
    left = background_weights(others, (1, 16, 8, 8))
    assert left[0, 0, 0, 0] == 0 and left[0, 0, 7, 0] == 0.5

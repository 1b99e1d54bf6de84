"""The picture of regions: colours where they are, mixed where they overlap, and names."""

from __future__ import annotations

import pytest
import torch

from flux_core import Conditioning
from flux_core.report.pictures import BACKGROUND, BAR_COLOURS
from flux_core.report.regions import regions_picture
from flux_core.sampling.conditioning import Region, RegionalPrompts


def regional(*places: Region) -> RegionalPrompts:
    return RegionalPrompts([Conditioning(torch.zeros(1, 2, 3), None, region=p) for p in places])


def test_regions_have_their_colours_and_mix_where_they_overlap():
    left = Region(area=(1.0, 0.5, 0.0, 0.0), shares=True)
    mask = torch.zeros(1, 10, 10)
    mask[:, :, 4:8] = 1
    picture = regions_picture(regional(left, Region(mask=mask)), ["", ""], 40, 80)
    first, second = (torch.tensor(c) / 255 for c in BAR_COLOURS[:2])
    for column, expected in (
        (10, first),
        (36, (first + second) / 2),
        (52, second),
        (75, torch.tensor(BACKGROUND) / 255),
    ):
        assert torch.allclose(picture[2, column], expected, atol=0.01), column


def test_names_stand_in_the_middle_of_their_regions():
    right = Region(area=(0.5, 0.5, 0.0, 0.5), shares=True)
    picture = regions_picture(regional(right), ["sky"], 100, 200)
    nameless = regions_picture(regional(right), [""], 100, 200)
    rows, columns = torch.where((picture != nameless).any(-1))
    assert len(rows) > 20
    assert abs(float(rows.float().mean()) - 25) < 5 and abs(float(columns.float().mean()) - 150) < 5
    with pytest.raises(ValueError, match="1 regions have 2 names"):
        regions_picture(regional(right), ["a", "b"], 8, 8)
